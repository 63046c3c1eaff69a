"""One run at a time on one output in a store, wherever the runs are.

The lock is an object that says whose it is, and for how long; who holds it writes it anew before that is over. It changes hands
only by writing it in the place of what was seen, which one of several can do. Clocks of different machines are not compared: a
lock is stale when whoever wants it has seen no change for as long as it says.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

from headrace.errors import JobFailed, JobLocked
from headrace.jobs.stores.objects import Objects

if TYPE_CHECKING:
    from headrace.jobs.stores.objects import Version

log = logging.getLogger(__name__)

_SECONDS = 60.0
"""How long a lock holds that is not written anew."""
_RENEWALS = 4
"""How often it is, in that time."""
_REQUEST_SECONDS = 10.0
_FREE = b""
"""What is in a lock that nobody has; it is not removed, for a store cannot be asked to remove only what was seen."""


class Lease:
    """A lock that is held, and written anew by a thread until `release`. Made by `leased`."""

    def __init__(self, objects: Objects, url: str, holder: dict[str, Any], since: float, version: Version) -> None:
        self._objects, self._url, self._holder, self._since, self._version = objects, url, holder, since, version
        self._lost: str | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="headrace-lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """See that it is still held.

        Raises:
            JobFailed: it is not, or nobody knows.
        """
        if self._lost is None and monotonic() - self._since > self._holder["seconds"]:
            self._lost = f"it could not be written anew for {self._holder['seconds']:g} s"
        if self._lost is not None:
            raise JobFailed(f"the lock {self._url} is not held any more: {self._lost}")

    def lent(self) -> Lent:
        """The same lock, as other processes that work for its holder see it."""
        return Lent(self._url, self._holder["owner"])

    def release(self) -> None:
        """Let others have it."""
        self._ended.set()
        self._thread.join()
        if self._lost is None:
            try:
                self._objects.replace(self._url, _FREE, self._version)
            except JobFailed as error:
                log.warning("the lock %s is left as it is, and holds for %g s: %s", self._url, self._holder["seconds"], error)

    def _renew(self) -> None:
        while not self._ended.wait(self._holder["seconds"] / _RENEWALS):
            now = monotonic()
            self._holder["renewals"] += 1  # what is written must differ, and so its ETag
            try:
                version = self._objects.replace(self._url, json.dumps(self._holder).encode(), self._version)
                if version is not None:
                    self._version, self._since = version, now
                elif (version := _version_of(self._objects, self._url, self._holder["owner"])) is not None:
                    self._version = version  # written before, by a request of which nothing was heard
                else:
                    self._lost = "another run has taken it over"
                    return
            except JobFailed as error:
                log.warning("%s", error)


@dataclass(frozen=True)
class Lent:
    """A lock that another process holds and writes anew. It is looked at each time, and held until somebody has taken it over."""

    url: str
    owner: str
    objects: Objects = field(default_factory=lambda: Objects(_REQUEST_SECONDS))

    def check(self) -> None:
        """See that it is still held.

        Raises:
            JobFailed: it is not, or nobody knows.
        """
        if _version_of(self.objects, self.url, self.owner) is None:
            raise JobFailed(f"the lock {self.url} is not held any more: another run has taken it over")


def _version_of(objects: Objects, url: str, owner: str) -> Version | None:
    """The version of a lock that is there, if it has this owner."""
    try:
        content, version = objects.read(url)
        return version if json.loads(content)["owner"] == owner else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


@contextmanager
def leased(url: str, output: str, machine: str) -> Iterator[Lease]:
    """Hold the lock at `url`, which is made where there is none.

    Args:
        url: of the lock.
        output: what it is for.
        machine: an identity that no process has but the one that calls; a lock that has it is of one that has died.

    Raises:
        JobLocked: another run has it; that takes some seconds to see if it is on another machine.
    """
    objects = Objects(_REQUEST_SECONDS)
    holder = {
        "owner": str(uuid.uuid4()),
        "machine": machine,
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": _SECONDS,
        "renewals": 0,
    }
    content = json.dumps(holder).encode()
    since = monotonic()
    version = objects.create(url, content)
    if version is None:
        seen, found = objects.read(url)
        if seen != _FREE:
            _see_that_it_is_stale(objects, url, output, machine, seen, found)
        since = monotonic()
        version = objects.replace(url, content, found)
    if version is None:
        raise JobLocked(f"another run works on {output}, which has just begun; wait for it, or choose another output")
    lease = Lease(objects, url, holder, since, version)
    try:
        yield lease
    finally:
        lease.release()


def _see_that_it_is_stale(objects: Objects, url: str, output: str, machine: str, seen: bytes, version: Version) -> None:
    """Look at a lock for as long as it holds without being written anew.

    Raises:
        JobLocked: it is written anew, or has been given back.
    """
    try:
        holder = json.loads(seen)
        who = f"process {holder['pid']} on {holder['host']}, since {holder['since']}"
        seconds, is_dead = float(holder["seconds"]), holder["machine"] == machine
    except (ValueError, KeyError, TypeError):
        who, seconds, is_dead = "who, it does not say", _SECONDS, False
    end = monotonic() + seconds
    while not is_dead and monotonic() < end:
        sleep(min(1.0, seconds / 8))
        now = objects.find(url)
        if now is None or now.version != version:
            raise JobLocked(f"another run works on {output}: {who}; wait for it, or choose another output")
    log.warning("the last run did not come to its end: %s. Its lock is taken over", who)
