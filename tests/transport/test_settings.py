"""TraceSetting and LogSettings: what is told, what changes, and what it changes."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from pythonjsonlogger.json import JsonFormatter
from tritonclient.grpc import service_pb2 as pb

from headrace.backends.fake import Script
from headrace.engine.engine import ModelControl
from headrace.ledger.collect import REQUEST_KIND, Collector
from headrace.ledger.home import Home, neighbour, open_home
from headrace.ledger.report import Report, read_report, write_report
from headrace.server.logs import TextFormatter
from headrace.telemetry.asked import Asked
from headrace.transport.log_switches import LogSettings, LogSwitches
from tests.logs import logging_kept
from tests.transport.serving import ECHO, PATIENCE, Serve, Server, fails, tensor
from tests.waiting import until

INVALID = grpc.StatusCode.INVALID_ARGUMENT
UNIMPLEMENTED = grpc.StatusCode.UNIMPLEMENTED
OFF = {
    "trace_level": ["OFF"],
    "trace_rate": ["1000"],
    "trace_count": ["-1"],
    "log_frequency": ["0"],
    "trace_file": [""],
    "trace_mode": ["triton"],
}


class Picks:
    """What the side process picks of the requests of a server, as far as clients ask for it."""

    def __init__(self, server: Server, home: Home) -> None:
        server.engine.ledger.share(home)
        server.engine.traces.share(home.path)
        self.me = neighbour(home.path)
        self._asked = Asked(home.path, self.me.names, {})
        self._collector = Collector(self.me)

    def take(self) -> list[np.void]:
        """The new ones."""
        self._asked.look()
        chunks, _ = self._collector.take()
        self.me.learn()
        requests = [chunk.records for chunk in chunks if chunk.kind == REQUEST_KIND]
        picked = [record for records in requests for record in records[self._asked.whys_of(records) > 0]]
        write_report(self.me.path, Report(left=self._asked.left))
        return picked

    def named(self) -> list[tuple[str, int]]:
        """Model of every new one, and the request's number."""
        return [(self.me.names[int(record["model"])][0], int(record["number"])) for record in self.take()]


@pytest.fixture
def traced(serve: Serve) -> Server:
    return serve({"m": (ECHO, Script()), "n": (ECHO, Script())})


@pytest.fixture
def picks(traced: Server) -> Iterator[Picks]:
    home = open_home()
    yield Picks(traced, home)
    home.close()


def traces(server: Server, model: str = "", **settings: Any) -> dict[str, list[str]]:
    """Set these, None for a reset, and tell what holds."""
    told = server.client.update_trace_settings(model, settings)
    return {key: list(setting.value) for key, setting in told.settings.items()}


def infer(server: Server, *models: str) -> None:
    for model in models:
        server.client.infer(model, [tensor("x", [[1]])])
        server.wait_settled(model)


# -- traces -------------------------------------------------------------------------------------------------------------


def test_nothing_is_kept_unless_somebody_asks(traced: Server, picks: Picks) -> None:
    assert traces(traced) == traces(traced, "m") == OFF
    infer(traced, "m", "n")
    assert picks.named() == []


def test_the_rate_says_which_are_kept(traced: Server, picks: Picks) -> None:
    assert traces(traced, trace_level=["TIMESTAMPS"], trace_rate="3") == OFF | {
        "trace_level": ["TIMESTAMPS"],
        "trace_rate": ["3"],
    }
    infer(traced, *"m" * 7)
    assert picks.named() == [("m", 3), ("m", 6)]
    traces(traced, trace_rate="1")
    infer(traced, *"m" * 2)
    assert picks.named() == [("m", 8), ("m", 9)]
    traces(traced, trace_level=["OFF"])
    infer(traced, "m")
    assert picks.named() == []


def test_the_count_runs_out(traced: Server, picks: Picks) -> None:
    traces(traced, trace_level=["TIMESTAMPS"], trace_rate="1", trace_count="2")
    infer(traced, *"mmm")
    assert picks.named() == [("m", 1), ("m", 2)]
    assert traces(traced)["trace_count"] == ["0"]
    assert traces(traced, trace_count="1")["trace_count"] == ["1"]
    infer(traced, *"mm")
    assert picks.named() == [("m", 4)]
    assert traces(traced, trace_count=None)["trace_count"] == ["-1"]


def test_a_model_of_its_own(traced: Server, picks: Picks) -> None:
    traces(traced, trace_level=["TIMESTAMPS"], trace_rate="2")
    own = traces(traced, "m", trace_rate="1", log_frequency="5")
    assert own == OFF | {"trace_level": ["TIMESTAMPS"], "trace_rate": ["1"], "log_frequency": ["5"]}
    infer(traced, *"mnmnm")
    assert picks.named() == [("m", 1), ("m", 2), ("n", 2), ("m", 3)]
    # What a model has not set for itself follows the others'.
    traces(traced, trace_rate="7", trace_count="9")
    assert traces(traced, "m") == own | {"trace_count": ["9"]}
    assert traces(traced, "n")["trace_rate"] == ["7"]
    assert traces(traced, "m", trace_rate=None, log_frequency=None) == traces(traced)
    assert traces(traced, trace_level=None, trace_rate=None, trace_count=None) == OFF == traces(traced, "m")


def test_what_was_refused_is_traced_too(traced: Server, picks: Picks) -> None:
    traces(traced, trace_level=["TIMESTAMPS"], trace_rate="1")
    with fails(grpc.StatusCode.NOT_FOUND, "Request for unknown model: 'z' is not found"):
        traced.client.infer("z", [tensor("x", [[1]])])
    found: list[np.void] = []
    until(lambda: bool(found.extend(picks.take()) or found))
    (record,) = found
    assert (record["model"], record["code"]) == (0, 5)


def test_settings_outlive_the_side_process(traced: Server, picks: Picks) -> None:
    traces(traced, trace_level=["TIMESTAMPS"], trace_rate="1", trace_count="3")
    infer(traced, "m")
    assert picks.named() == [("m", 1)]
    assert traces(traced)["trace_count"] == ["2"]
    told = read_report(picks.me.path).left
    another = Asked(picks.me.path, picks.me.names, told)
    another.look()
    assert another.left == told == {"": (1, 2)}


WRONG_TRACES: dict[str, tuple[str, dict[str, list[str]], grpc.StatusCode, str]] = {
    "file": ("", {"trace_file": ["f"]}, UNIMPLEMENTED, "trace file location can not be updated through network protocol"),
    "model": ("z", {}, INVALID, "Request for unknown model : z"),
    "rate, a word": ("", {"trace_rate": ["x"]}, INVALID, "Unable to parse 'trace_rate', got: x"),
    "rate, two": ("", {"trace_rate": ["1", "2"]}, INVALID, "expect only 1 value for 'trace_rate'"),
    "rate, large": (
        "",
        {"trace_rate": ["9999999999"]},
        INVALID,
        "Unable to parse 'trace_rate', value is out of range [ 0, 4294967295 ], got: 9999999999",
    ),
    "rate, none": ("", {"trace_rate": ["0"]}, INVALID, "sample rate must be non-zero"),
    "count": ("", {"trace_count": ["-2"]}, INVALID, "Unable to parse 'trace_count'. Expecting value >= -1, got: -2"),
    "count, large": (
        "",
        {"trace_count": ["2147483648"]},
        INVALID,
        "Unable to parse 'trace_count', value is out of range [ -1, 2147483647 ], got: 2147483648",
    ),
    "frequency": ("m", {"log_frequency": [""]}, INVALID, "Unable to parse 'log_frequency', got: "),
    "off and on": (
        "",
        {"trace_level": ["TIMESTAMPS", "OFF"]},
        INVALID,
        "Expect only one trace level 'OFF' is specified",
    ),
    "level": ("", {"trace_level": ["LOUD"]}, INVALID, "unknown trace level 'LOUD', expected OFF or TIMESTAMPS"),
    "tensors": (
        "",
        {"trace_level": ["TIMESTAMPS", "TENSORS"]},
        UNIMPLEMENTED,
        "trace level 'TENSORS' is not supported by this server, which keeps TIMESTAMPS",
    ),
    "mode": (
        "",
        {"trace_mode": ["opentelemetry"]},
        UNIMPLEMENTED,
        "trace mode can only be 'triton' in this server, got: opentelemetry",
    ),
    "unknown": (
        "",
        {"colour": ["red"]},
        INVALID,
        "unknown trace setting 'colour'; the settings are trace_level, trace_rate, trace_count, log_frequency, trace_mode",
    ),
}


@pytest.mark.parametrize("case", WRONG_TRACES)
def test_wrong_trace_settings_change_nothing(traced: Server, case: str) -> None:
    model, settings, code, told = WRONG_TRACES[case]
    values = {key: pb.TraceSettingRequest.SettingValue(value=value) for key, value in settings.items()}
    if case != "off and on" and "trace_level" not in values:
        values["trace_level"] = pb.TraceSettingRequest.SettingValue(value=["TIMESTAMPS"])
    with fails(code, told):
        traced.stub.TraceSetting(pb.TraceSettingRequest(settings=values, model_name=model), timeout=PATIENCE)
    assert traces(traced) == traces(traced, "m") == OFF


# -- logs ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    """What this process's log handler writes, and nothing changed afterwards."""
    tree, stream = logging.getLogger("headrace"), io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(TextFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    with logging_kept():
        tree.addHandler(handler)
        tree.setLevel(logging.INFO)
        yield stream


@pytest.fixture
def logging_server(written: io.StringIO, serve: Serve) -> Server:
    return serve({"m": (ECHO, Script())}, control=ModelControl("explicit", ("m",)))


def logs(server: Server, **settings: Any) -> dict[str, Any]:
    told = server.client.update_log_settings(settings) if settings else server.client.get_log_settings()
    return {key: getattr(value, value.WhichOneof("parameter_choice")) for key, value in told.settings.items()}


QUIET = dict(log_file="", log_info=True, log_warning=True, log_error=True, log_verbose_level=0, log_format="default")


def test_a_changed_level_changes_the_log(logging_server: Server, written: io.StringIO) -> None:
    def says() -> list[str]:
        written.truncate(0)
        written.seek(0)
        logging_server.client.unload_model("m")
        logging_server.client.load_model("m")
        with fails(grpc.StatusCode.INTERNAL, "failed to load 'z', failed to poll from model repository"):
            logging_server.client.load_model("z")
        log = logging.getLogger("headrace.somewhere")
        log.debug("a detail")
        log.warning("a warning")
        log.error("an error")
        log.critical("the end")
        logging.getLogger("another").error("not ours")
        return re.findall(r": ([^:=]+?)(?: \w+=.*)?\n", written.getvalue())

    assert logs(logging_server) == QUIET
    everything = ["model unloaded", "version ready", "a warning", "an error", "the end"]
    assert says() == everything
    assert logs(logging_server, log_info=False) == QUIET | {"log_info": False}
    assert says() == ["a warning", "an error", "the end"]
    assert logs(logging_server, log_info=True, log_warning=False)["log_warning"] is False
    assert says() == ["model unloaded", "version ready", "an error", "the end"]
    logs(logging_server, log_warning=True, log_error=False)
    assert says() == ["model unloaded", "version ready", "a warning", "the end"]
    logs(logging_server, log_error=True, log_verbose_level=1)
    assert says() == ["model unloaded", "version ready", "a detail", "a warning", "an error", "the end"]
    assert logs(logging_server, log_verbose_level=0) == QUIET
    assert says() == everything


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_changed_format_changes_the_time(logging_server: Server, written: io.StringIO, form: str) -> None:
    tree = logging.getLogger("headrace")
    (handler,) = tree.handlers
    if form == "json":
        handler.setFormatter(JsonFormatter("%(asctime)s %(message)s"))

    def stamp() -> str:
        written.truncate(0)
        written.seek(0)
        tree.info("now")
        text = written.getvalue()
        return json.loads(text)["asctime"] if form == "json" else text.partition(" INFO")[0]

    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}", stamp())
    assert logs(logging_server, log_format="ISO8601")["log_format"] == "ISO8601"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", stamp())
    assert logs(logging_server, log_format="default")["log_format"] == "default"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}", stamp())


VALUE = pb.LogSettingsRequest.SettingValue
WRONG_LOGS = {
    "file": ("log_file", VALUE(string_param="f"), UNIMPLEMENTED, "log file location can not be updated through network protocol"),
    "info": ("log_info", VALUE(uint32_param=0), INVALID, "expect boolean for 'log_info'"),
    "warning": ("log_warning", VALUE(string_param="no"), INVALID, "expect boolean for 'log_warning'"),
    "error": ("log_error", VALUE(), INVALID, "expect boolean for 'log_error'"),
    "verbose": ("log_verbose_level", VALUE(bool_param=True), INVALID, "expect int32 for 'log_verbose_level'"),
    "format type": ("log_format", VALUE(bool_param=True), INVALID, "expect string for 'log_format'"),
    "format": ("log_format", VALUE(string_param="mine"), INVALID, "invalid argument for log_format, got: mine"),
    "unknown": (
        "log_colour",
        VALUE(bool_param=True),
        INVALID,
        "unknown log setting 'log_colour'; the settings are log_info, log_warning, log_error, log_verbose_level, log_format",
    ),
}


@pytest.mark.parametrize("case", WRONG_LOGS)
def test_wrong_log_settings_change_nothing(logging_server: Server, case: str) -> None:
    key, value, code, told = WRONG_LOGS[case]
    other = "log_info" if key != "log_info" else "log_error"
    with fails(code, told):
        logging_server.stub.LogSettings(pb.LogSettingsRequest(settings={key: value, other: VALUE(bool_param=False)}))
    assert logs(logging_server) == QUIET


def test_of_two_servers_the_last_word_counts(logging_server: Server, written: io.StringIO) -> None:
    logs(logging_server, log_warning=False)
    LogSwitches().turn(LogSettings(log_info=False))
    logging.getLogger("headrace.somewhere").info("some news")
    logging.getLogger("headrace.somewhere").warning("a warning")
    assert [line.partition(": ")[2] for line in written.getvalue().splitlines()][-1:] == ["a warning"]
    assert "some news" not in written.getvalue()
