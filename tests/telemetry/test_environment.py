"""What OpenTelemetry's variables say of whether and how there are traces."""

from __future__ import annotations

import logging

import pytest

from headrace.telemetry.environment import Wish, wish_of

HERE = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://there:4317"}
WISH = Wish(False, "http://there:4317", None, 8192)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
        {"OTEL_SERVICE_NAME": "x"},
        {"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://there"},
        {**HERE, "OTEL_SDK_DISABLED": "TRUE"},
        {**HERE, "OTEL_TRACES_EXPORTER": "none"},
        {**HERE, "OTEL_TRACES_SAMPLER": "always_off"},
    ],
)
def test_there_are_none(environment: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    assert wish_of(environment) is None
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("environment", "wish"),
    [
        (HERE, WISH),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://there:4317"}, WISH),
        ({**HERE, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "https://other"}, Wish(False, "https://other", None, 8192)),
        ({**HERE, "OTEL_SDK_DISABLED": "false", "OTEL_TRACES_EXPORTER": "console, otlp"}, WISH),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, Wish(False, "http://localhost:4317", None, 8192)),
        (
            {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"},
            Wish(True, "http://localhost:4318", None, 8192),
        ),
        ({**HERE, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, Wish(True, "http://there:4317", None, 8192)),
        ({**HERE, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc"}, WISH),
        ({**HERE, "OTEL_TRACES_SAMPLER": "always_on"}, Wish(False, "http://there:4317", 1.0, 8192)),
        ({**HERE, "OTEL_TRACES_SAMPLER": "parentbased_always_off"}, Wish(False, "http://there:4317", 0.0, 8192)),
        (
            {**HERE, "OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.25"},
            Wish(False, "http://there:4317", 0.25, 8192),
        ),
        ({**HERE, "OTEL_BSP_MAX_QUEUE_SIZE": "17"}, Wish(False, "http://there:4317", None, 17)),
    ],
)
def test_there_are_some(environment: dict[str, str], wish: Wish, caplog: pytest.LogCaptureFixture) -> None:
    assert wish_of(environment) == wish
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("name", "value", "told", "is_wanted"),
    [
        ("OTEL_TRACES_EXPORTER", "zipkin", "OTEL_TRACES_EXPORTER is zipkin, and traces are sent by otlp only", False),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json", "the OTLP protocol is http/json, and can be grpc or http/protobuf", True),
        ("OTEL_TRACES_SAMPLER", "jaeger_remote", "OTEL_TRACES_SAMPLER is jaeger_remote", True),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "many", "OTEL_BSP_MAX_QUEUE_SIZE is many", True),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "0", "OTEL_BSP_MAX_QUEUE_SIZE is 0", True),
    ],
)
def test_what_nobody_understands_is_told_and_left_out(
    name: str, value: str, told: str, is_wanted: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert wish_of({**HERE, name: value}) == (WISH if is_wanted else None)
    assert told in caplog.text


@pytest.mark.parametrize("argument", ["x", "-0.1", "1.1", "nan"])
def test_a_share_is_a_number_from_0_to_1(argument: str, caplog: pytest.LogCaptureFixture) -> None:
    given = {**HERE, "OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": argument}
    assert wish_of(given) == WISH
    assert "OTEL_TRACES_SAMPLER_ARG" in caplog.text
