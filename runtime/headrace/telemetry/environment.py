"""What OpenTelemetry's environment variables say, those that concern us; the others are the SDK's own business.

As its specification asks, a value that nobody understands is told in the log, and then as if it were not there.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass

log = logging.getLogger(__name__)

EXTRA = "making traces needs OpenTelemetry's SDK and exporters: pip install 'headrace[traces]'"
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_GRPC, _HTTP = "grpc", "http/protobuf"
_MOST_BUFFERED = 8192


@dataclass(frozen=True, slots=True)
class Wish:
    """How traces are to be made.

    `baseline` is the share of dull requests to keep, None where it was not said; `buffer` how many spans may wait to be sent.
    """

    is_http: bool
    endpoint: str
    baseline: float | None
    buffer: int


def wish_of(environment: Mapping[str, str]) -> Wish | None:
    """What is wanted; None for no traces.

    They are wanted where there is an endpoint to send them to, or where `OTEL_TRACES_EXPORTER` says so, and neither that nor
    `OTEL_SDK_DISABLED` nor a sampler `always_off` says otherwise.
    """
    given = {name: value.strip() for name, value in environment.items() if name.startswith("OTEL_") and value.strip()}
    if given.get("OTEL_SDK_DISABLED", "").lower() == "true" or given.get("OTEL_TRACES_SAMPLER") == "always_off":
        return None
    exporters = [each.strip() for each in given.get("OTEL_TRACES_EXPORTER", "").split(",") if each.strip()]
    if exporters and "otlp" not in exporters:
        if exporters != ["none"]:
            log.warning("OTEL_TRACES_EXPORTER is %s, and traces are sent by otlp only: there are none", ",".join(exporters))
        return None
    endpoint = _first(given, _ENDPOINTS)
    if not endpoint and not exporters:
        return None
    protocol = _first(given, _PROTOCOLS) or _GRPC
    if protocol not in (_GRPC, _HTTP):
        log.warning("the OTLP protocol is %s, and can be %s or %s: it is %s", protocol, _GRPC, _HTTP, _GRPC)
    is_http = protocol == _HTTP
    if not endpoint:
        endpoint = f"http://localhost:{4318 if is_http else 4317}"
    return Wish(is_http, endpoint, _baseline(given), _buffer(given))


def _first(given: Mapping[str, str], names: tuple[str, ...]) -> str:
    return next((given[name] for name in names if name in given), "")


def _baseline(given: Mapping[str, str]) -> float | None:
    sampler, argument = given.get("OTEL_TRACES_SAMPLER", ""), given.get("OTEL_TRACES_SAMPLER_ARG", "1")
    kind = sampler.removeprefix("parentbased_")
    if kind in ("always_on", "always_off"):
        return 1.0 if kind == "always_on" else 0.0
    if kind == "traceidratio":
        try:
            share = float(argument)
        except ValueError:
            share = math.nan
        if 0 <= share <= 1:
            return share
        log.warning("OTEL_TRACES_SAMPLER_ARG is %s, and has to be a number from 0 to 1: it is left out", argument)
    elif sampler:
        log.warning("OTEL_TRACES_SAMPLER is %s, which is not known here: it is left out", sampler)
    return None


def _buffer(given: Mapping[str, str]) -> int:
    told = given.get("OTEL_BSP_MAX_QUEUE_SIZE", "")
    if told.isdecimal() and int(told) > 0:
        return int(told)
    if told:
        log.warning("OTEL_BSP_MAX_QUEUE_SIZE is %s, and has to be a number of spans: it is %d", told, _MOST_BUFFERED)
    return _MOST_BUFFERED
