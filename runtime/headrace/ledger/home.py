"""Where a server keeps what other processes read of its ledger: a directory of its own, in memory, for as long as it runs.

    server.json       who it is; the server holds a lock on this file, so nobody takes a dead one for a live one
    requests-*.ring   one for each who writes: the kernels, and Python
    batches-*.ring
    models.jsonl      what the numbers of models in the records mean, one a line
    side.tally        what the side process has done (`ledger.tally`)

It is removed when the server ends. What a server left that was killed is removed by the next one that starts.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import mmap
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from headrace.errors import InvalidLedger
from headrace.files import is_locked
from headrace.ledger.records import BATCHES, REQUESTS
from headrace.ledger.ring import HEADER_BYTES, Clocks, make_ring_file
from headrace.ledger.tally import Tally, make_tally
from headrace.version import __version__

log = logging.getLogger(__name__)

_SERVER, _MODELS, _TALLY = "server.json", "models.jsonl", "side.tally"
_UNFINISHED_SECONDS = 60
_STEP_NS = 1_000_000
"""The clocks are not read at the same instant; what differs by less than a millisecond is no step."""

Name = tuple[str, int, str]
"""Model, version, digest."""


def roots() -> list[Path]:
    """Where such directories may be, the best first. `HEADRACE_RUNTIME_DIR` says where instead."""
    told = os.environ.get("HEADRACE_RUNTIME_DIR")
    if told:
        return [Path(told)]
    own = os.environ.get("XDG_RUNTIME_DIR")
    return [Path("/dev/shm"), *([Path(own)] if own else [])]


class Home:
    """The directory of the server that this process is. Make one with `open_home`.

    Attributes:
        path: the directory.
        id: tells this server from every other one.
        tally: what the side process has done.
    """

    def __init__(self, path: Path, id: str, lock: int) -> None:
        self.path, self.id, self._lock = path, id, lock
        self._rings: list[int] = []
        self._headers: list[Clocks] = []
        self._models = os.open(path / _MODELS, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        make_tally(path / _TALLY)
        self.tally = Tally(path / _TALLY)
        self._wall_ahead = _wall_ahead()
        self._closing = threading.Lock()
        self._is_closed = False

    def make_rings(self, who: str, requests: int, batches: int) -> tuple[int, int]:
        """Make the rings of somebody who writes; the descriptors stay ours.

        Raises:
            OSError: there is no room for them.
        """
        made: list[int] = []
        for kind, layout, capacity in (("requests", REQUESTS, requests), ("batches", BATCHES, batches)):
            # Readers look for names that end in `.ring`: it has that one when it is whole.
            beside = self.path / f"{kind}-{who}.new"
            descriptor = make_ring_file(beside, layout, capacity)
            self._rings.append(descriptor)
            header = Clocks(mmap.mmap(descriptor, HEADER_BYTES))
            header.wall_ahead = self._wall_ahead
            self._headers.append(header)
            beside.rename(beside.with_suffix(".ring"))
            made.append(descriptor)
        return made[0], made[1]

    def name(self, number: int, model: str, version: int, digest: str) -> None:
        """Say what a number means. If there is no room for that, readers see the number."""
        if self._is_closed:
            return
        line = json.dumps({"number": number, "model": model, "version": version, "digest": digest}) + "\n"
        try:
            os.write(self._models, line.encode())
        except OSError as error:
            log.warning("the ledger's readers will not know what model number %d is: %s", number, error.strerror)

    def look_at_clocks(self) -> None:
        """Note it where the wall clock was set. Records are stamped by the other one, which never is."""
        ahead = _wall_ahead()
        if abs(ahead - self._wall_ahead) < _STEP_NS:
            return
        log.info("the wall clock was set by %+.3f s", (ahead - self._wall_ahead) / 1e9)
        self._wall_ahead = ahead
        for header in self._headers:
            header.wall_ahead = ahead

    def close(self) -> None:
        """Remove it. Whoever has it mapped keeps what is there. Any number of times."""
        with self._closing:
            if self._is_closed:
                return
            self._is_closed = True
        shutil.rmtree(self.path, ignore_errors=True)
        for descriptor in (*self._rings, self._models, self._lock):
            os.close(descriptor)


def open_home(ledger: Path | None = None) -> Home:
    """A directory for this process; what dead servers left is removed first.

    Args:
        ledger: where its side process writes segments, for those who ask.

    Raises:
        OSError: there is no place for one; the first reason.
    """
    remove_leftovers()
    reason: OSError | None = None
    for root in roots():
        path: Path | None = None
        try:
            path = Path(tempfile.mkdtemp(prefix=f"headrace-{os.getpid()}-", dir=root))
            id = f"{os.getpid()}-{time.time_ns():x}"
            return Home(path, id, _lock_server(path, id, ledger))
        except OSError as error:
            reason = reason or error
            if path is not None:
                shutil.rmtree(path, ignore_errors=True)
    raise reason or OSError("there is no place in memory for files")


def remove_leftovers() -> None:
    """Remove the directories of servers that are dead."""
    for path in _directories():
        with contextlib.suppress(OSError):
            if not is_alive(path) and ((path / _SERVER).exists() or time.time() - path.stat().st_mtime > _UNFINISHED_SECONDS):
                shutil.rmtree(path, ignore_errors=True)


def is_alive(path: Path) -> bool:
    """Whether the server whose directory this is runs."""
    return is_locked(path / _SERVER)


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A server as other processes see it."""

    path: Path
    pid: int
    id: str
    """Tells it from every other server, those that had the same process number among them."""
    ledger: Path | None = None
    """Where its side process writes segments."""
    names: dict[int, Name] = field(default_factory=dict[int, Name])

    @property
    def is_alive(self) -> bool:
        """Whether it runs."""
        return is_alive(self.path)

    @property
    def tally(self) -> Tally:
        """What its side process has done."""
        return Tally(self.path / _TALLY)

    def rings(self) -> list[Path]:
        """The files of its rings, as of now."""
        return sorted(self.path.glob("*.ring"))

    def learn(self) -> Mapping[int, Name]:
        """What the numbers of models mean, as of now; what was known stays known when the server is gone."""
        with contextlib.suppress(OSError, ValueError, KeyError):
            for line in (self.path / _MODELS).read_text(encoding="utf-8").splitlines():
                told = json.loads(line)
                self.names[told["number"]] = (told["model"], told["version"], told["digest"])
        return self.names


def neighbour(path: Path) -> Neighbour:
    """The server whose directory this is, dead or alive.

    Raises:
        InvalidLedger: it is none.
    """
    try:
        told = json.loads((path / _SERVER).read_text(encoding="utf-8"))
        return Neighbour(path, told["pid"], told["id"], Path(told["ledger"]) if "ledger" in told else None)
    except (OSError, ValueError, KeyError, TypeError):
        raise InvalidLedger(f"{path} is no directory of a running server") from None


def neighbours() -> list[Neighbour]:
    """The servers of this user that run on this machine."""
    found: list[Neighbour] = []
    for path in _directories():
        with contextlib.suppress(InvalidLedger):
            if is_alive(path):
                found.append(neighbour(path))
    return sorted(found, key=lambda each: each.pid)


def the_neighbour(pid: int | None) -> Neighbour:
    """The server of this process number; without one, the only server there is.

    Raises:
        InvalidLedger: there is none, or there are several.
    """
    running = neighbours()
    told = ", ".join(str(each.pid) for each in running)
    if pid is not None:
        mine = [each for each in running if each.pid == pid]
        if not mine:
            others = f"; there are {told}" if running else "; no server of this user runs on this machine"
            raise InvalidLedger(f"no server with process number {pid} keeps a ledger here{others}")
        return mine[0]
    if not running:
        raise InvalidLedger("no server of this user runs on this machine: start one with headrace serve")
    if len(running) > 1:
        raise InvalidLedger(f"several servers run here: choose one with --of PID, of {told}")
    return running[0]


def _directories() -> Iterator[Path]:
    for root in roots():
        with contextlib.suppress(OSError):
            yield from [path for path in root.glob("headrace-*-*") if path.is_dir() and path.stat().st_uid == os.getuid()]


def _lock_server(path: Path, id: str, ledger: Path | None) -> int:
    """Write who we are, and hold the lock that says that we live."""
    beside = path / ".server"
    descriptor = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        who = {"pid": os.getpid(), "id": id, "release": __version__}
        if ledger is not None:
            who["ledger"] = str(ledger.absolute())
        os.write(descriptor, json.dumps(who).encode())
        beside.rename(path / _SERVER)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _wall_ahead() -> int:
    """How far the wall clock is ahead; of three looks the one in which nothing came between."""
    looks = [(time.monotonic_ns(), time.time_ns(), time.monotonic_ns()) for _ in range(3)]
    before, wall, after = min(looks, key=lambda look: look[2] - look[0])
    return wall - (before + after) // 2
