"""What of the optional packages is installed here."""

from __future__ import annotations

from importlib.util import find_spec

from headrace.errors import InvalidLedger

LEDGER = "writing and querying a ledger needs pyarrow and duckdb: pip install 'headrace[ledger]'"


def check_extra(*modules: str) -> None:
    """Raises `InvalidLedger` where what the extra `ledger` installs is missing."""
    if not are_there(*modules):
        raise InvalidLedger(LEDGER)


def can_trace() -> bool:
    """Whether what the extra `traces` installs is there."""
    return are_there("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.grpc", "opentelemetry.exporter.otlp.proto.http")


def check_spans(address: str) -> None:
    """Whether spans of others can be taken at this address.

    Raises:
        InvalidLedger: what the extra `traces` installs is missing.
        CannotListen: the address, or the port that follows it, cannot be had.
    """
    if not can_trace():
        raise InvalidLedger("taking spans needs OpenTelemetry's messages: pip install 'headrace[traces]'")
    from headrace.transport.listening import listen, next_port

    for each in (address, next_port(address)):
        listen(each).close()


def are_there(*modules: str) -> bool:
    """Whether all of these modules can be imported."""
    try:
        return all(find_spec(module) for module in modules)
    except ModuleNotFoundError:  # of what it is in
        return False
