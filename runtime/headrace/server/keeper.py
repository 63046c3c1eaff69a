"""What a server does beside serving: the directory that others read, the side process, the pulse, budgets."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.budgets.keeping import Keeping
from headrace.config import ServerConfig
from headrace.errors import InvalidLedger, sentence
from headrace.ledger.home import Home, open_home
from headrace.ledger.identity import Identity
from headrace.server.extras import can_trace, check_extra, check_spans
from headrace.telemetry import environment
from headrace.telemetry.pulse import Pulse

if TYPE_CHECKING:
    from headrace.engine.engine import Engine
    from headrace.ledger.side import SideProcess
    from headrace.ledger.tally import Tally

log = logging.getLogger("headrace.serve")

_FINISH_SECONDS = 20.0
"""How long the side process may take to write what is left."""


class Keeper:
    """Keeps the ledger of one server.

    Where there is no shared memory, the ledger is the server's own: it is served all the same, nobody else can read it, and
    there is no side process.

    Args:
        config: of the server.
        engine: which it serves.

    Raises:
        InvalidLedger: `--ledger` or `--otlp` was given, and cannot be done here.
        CannotListen: where `--otlp` says, somebody else listens.
    """

    def __init__(self, config: ServerConfig, engine: Engine) -> None:
        self._home: Home | None = None
        self._side: SideProcess | None = None
        if config.ledger is not None:
            _check_directory(config.ledger)
        if config.otlp is not None:
            check_spans(config.otlp)
        needs = [f"--{name}" for name in ("ledger", "otlp") if getattr(config, name) is not None]
        wants_traces = _wants_traces()
        try:
            self._home = open_home(config.ledger)
            engine.ledger.share(self._home)
            engine.traces.share(self._home.path)
            if wants_traces or config.otlp is not None:
                engine.ledger.identity = Identity(self._home.id)
        except OSError as error:
            if self._home is not None:
                self._home.close()
                self._home = None
            reason = sentence(error)
            if needs:
                raise InvalidLedger(f"{needs[0]} needs shared memory, and there is none for it here: {reason}") from None
            log.warning("nobody else can read the ledger, there is no shared memory for it: %s", reason)
        if self._home is not None and (wants_traces or needs):
            self._side = _side_process(config, self._home)
        self._budgets: Keeping | None = None
        if engine.budgets.accounts:
            published = self._home and self._home.path
            self._budgets = Keeping(engine.budgets, engine.ledger, published, config.ledger, decisions=engine.steering.decisions)
        self.pulse = Pulse(self._beat)

    @property
    def tally(self) -> Tally | None:
        """What the side process has done, if there is to be one."""
        return self._home.tally if self._side is not None and self._home is not None else None

    @property
    def directory(self) -> Path | None:
        """Where the side process tells what it keeps, if there is to be one."""
        return self._home.path if self._side is not None and self._home is not None else None

    def start(self) -> None:
        """Begin."""
        self._beat()
        self.pulse.start()
        if self._side is not None:
            self._side.start()

    def close(self) -> None:
        """Let the side process write what is left, and remove what others read."""
        self.pulse.close()
        if self._budgets is not None:
            self._budgets.close()
        if self._side is not None:
            self._side.close(_FINISH_SECONDS)
        if self._home is not None:
            self._home.close()

    def _beat(self) -> None:
        if self._home is not None:
            self._home.look_at_clocks()
        if self._budgets is not None:
            self._budgets.beat()


def _wants_traces() -> bool:
    """Whether the environment asks for traces. It may be that of a whole machine: where they cannot be made, that is said."""
    if environment.wish_of(os.environ) is None:
        return False
    if can_trace():
        return True
    log.warning("OpenTelemetry's variables ask for traces, and there will be none: %s", environment.EXTRA)
    return False


def _check_directory(path: Path) -> None:
    """Now, rather than in the side process: whoever has just started the server still looks.

    Raises:
        InvalidLedger: nothing can be written there, or pyarrow is not installed.
    """
    check_extra("pyarrow")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidLedger(f"cannot keep a ledger in {path}: {error.strerror}") from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise InvalidLedger(f"cannot keep a ledger in {path}: it may not be written to")


def _side_process(config: ServerConfig, home: Home) -> SideProcess:
    from headrace.ledger.side import SideProcess

    options: dict[str, object] = {
        "of": home.path,
        "ledger": config.ledger,
        "segment-bytes": config.ledger_segment_bytes,
        "segment-seconds": config.ledger_segment_seconds,
        "keep-bytes": config.ledger_keep_bytes,
        "keep-seconds": config.ledger_keep_seconds,
        "spans-per-second": config.spans_per_second,
        "otlp": config.otlp,
        "log-level": config.log_level,
        "log-format": config.log_format,
    }
    given = [word for key, value in options.items() if value is not None for word in (f"--{key}", str(value))]
    return SideProcess([sys.executable, "-m", "headrace", "observe", *given], home.tally)
