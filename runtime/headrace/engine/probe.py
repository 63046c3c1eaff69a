"""The probe: measures what becomes ready, while nobody asks for anything.

One version after the other, in a thread that lives as long as there are any. Runs are in threads of their own: one that never
comes back costs its version the profile, and nobody anything else. Traffic goes first: no run begins while a request of any
version is under way, and one that a request met does not count.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeVar

from headrace.backends.base import Outside, Session, stands_zeros
from headrace.backends.registry import Backends
from headrace.backends.zeros import Zeros, lengths_of, sizes_of
from headrace.clock import MILLISECOND, SECOND, Clock
from headrace.engine.calls import can_compare, on_one_thread, rows_per_second
from headrace.engine.lifecycle import Running, goes_back
from headrace.engine.profile import Calls, Point, Profile, expected_ns
from headrace.engine.profiles import Profiles
from headrace.errors import sentence
from headrace.machine import usable_cpus
from headrace.model import ModelSpec
from headrace.models.files import ModelFiles, VersionFiles

log = logging.getLogger(__name__)

T = TypeVar("T")

_AT_LOAD = 3
_REPEATS = 5
_ENOUGH = 3
_ENOUGH_NS = 200 * MILLISECOND
"""Of one size: after so many runs that took so long together, there are no more."""
_LONG_NS = SECOND
"""No run is begun that is expected to last longer."""
_BUDGET_NS = 6 * SECOND
_HANGS_NS = 10 * SECOND
_MOST_BYTES = 256 << 20
_LOOK_NS = SECOND
_ROUND_NS = 150 * MILLISECOND
_MOST_CALLS = 100
_ROUNDS, _MOST_ROUNDS = 2, 6
"""Of calls in both ways: as many as that count, unless traffic meets too many of them."""


class _Gone(Exception):
    """The version is leaving, or the engine ends: nobody wants to know any more."""


class _Hung(Exception):
    """A run did not come back."""


class Probe:
    """Measures the versions of one engine.

    Args:
        running: everything that runs, what is being replaced included.
        backends: what loads sessions.
        profiles: where results are kept.
        clock: the clock.
    """

    def __init__(self, running: Callable[[], Sequence[Running]], backends: Backends, profiles: Profiles, clock: Clock) -> None:
        self._running, self._backends, self._profiles, self._clock = running, backends, profiles, clock
        self._changed = threading.Condition()
        self._pending: deque[Running] = deque()
        self._thread: threading.Thread | None = None
        self._is_closed = False
        self._pauses = 0
        self._is_waiting = False
        self._doing = ""

    @property
    def is_waiting(self) -> bool:
        """Whether it lets traffic go first, at present."""
        return self._is_waiting

    @property
    def doing(self) -> str:
        """What it is at, in a few words for people; empty when it is done."""
        return self._doing

    def advice(self, files: ModelFiles, version: VersionFiles) -> Calls | None:
        """See `Profiles.advice`.

        Raises:
            InvalidRepository: the files cannot be read.
        """
        return self._profiles.advice(files, version.digest())

    def prime(self, running: Running) -> None:
        """Tell a version that is about to be published what is known of it: its profile, or three runs at one row."""
        opened = running.opened
        running.unprofiled = _unprofiled(running)
        if running.unprofiled:
            return
        running.profile = self._profiles.get(opened.profile_key)
        if running.profile is not None:
            for point in running.profile.points:
                for ns in point.times:
                    running.forecast.ran(point.bucket, point.rows, ns)
            running.forecast.settle()
            return
        if running.warm_ns is None or running.warm_ns > _LONG_NS:
            return  # slow: nobody should wait for the probe to say so
        batch = Zeros(opened.spec)
        try:
            for _ in range(_AT_LOAD):
                running.forecast.ran(batch.bucket, 1, self._timed(opened.sessions[0][0], batch))
        except (Exception, SystemExit) as error:
            running.unprofiled = _failed(opened.spec, error)

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Begin no run meanwhile: something is being loaded, which keeps the machine busy."""
        with self._changed:
            self._pauses += 1
        try:
            yield
        finally:
            with self._changed:
                self._pauses -= 1
                self._changed.notify_all()

    def add(self, published: Sequence[Running]) -> None:
        """Measure versions when their turn has come, but for those of which enough is known, or nothing can be."""
        with self._changed:
            if self._is_closed:
                return
            self._pending += [one for one in published if one.profile is None and not one.unprofiled]
            if self._pending and self._thread is None:
                self._thread = threading.Thread(target=self._work, name="headrace-probe", daemon=True)
                self._thread.start()

    def wait(self, until: int | None = None) -> bool:
        """Wait until everything that was added has been measured or given up, or `until` (ns); says whether it is so."""
        with self._changed:
            while self._thread is not None and (until is None or self._clock.now() < until):
                self._clock.wait(self._changed, until)
            return self._thread is None

    def close(self) -> None:
        """Measure nothing more. A run that is under way is waited for by its version, for a moment."""
        with self._changed:
            self._is_closed = True
            self._pending.clear()
            self._changed.notify_all()

    # Inside.

    def _work(self) -> None:
        while True:
            with self._changed:
                if not self._pending:
                    self._thread, self._doing = None, ""
                    self._changed.notify_all()
                    return
                running = self._pending.popleft()
            try:
                self._measure(running)
            except _Gone:
                running.unprofiled = "it was not measured to the end"
            except _Hung:
                running.unprofiled = f"a run of zeros did not come back within {_HANGS_NS // SECOND} s"
                log.warning("%s has no profile: %s", running.opened.spec, running.unprofiled)
            except (Exception, SystemExit) as error:
                running.unprofiled = _failed(running.opened.spec, error)

    def _measure(self, running: Running) -> None:
        spec = running.opened.spec
        points: list[Point] = []
        lengths = lengths_of(spec)
        left = 0
        for length in lengths:
            # What the shorter ones left is for the longer ones.
            left += _BUDGET_NS // len(lengths)
            left = self._climb(running, length, points, left)
        if not points:
            running.unprofiled = "there was traffic all the time"
            return
        running.forecast.settle()
        profile = Profile(tuple(points), running.opened.calls)
        try:
            if can_compare(running.opened, _MOST_BYTES):
                profile = replace(profile, calls=self._compare(running, profile))
        except (_Gone, _Hung):
            raise
        except (Exception, SystemExit) as error:
            log.debug("%s: ways of calling cannot be compared: %s", spec, sentence(error))
        self._profiles.put(running.opened.profile_key, profile)
        running.profile = profile

    def _climb(self, running: Running, length: int, points: list[Point], left: int) -> int:
        """Measure ever larger batches of one length. Returns what is left of the `left` ns."""
        known: list[Point] = []
        for rows in sizes_of(running.opened.spec, length):
            batch = Zeros(running.opened.spec, rows, length)
            expected = expected_ns(known, rows)
            if batch.nbytes > _MOST_BYTES or (known and (expected > _LONG_NS or 2 * expected > left)):
                break
            self._doing = f"{rows} rows" + (f" of length {length}" if length else "")
            times, spent = self._repeat(running, batch, left)
            left -= spent
            if not times:
                break
            known.append(Point(batch.bucket, length, rows, tuple(times)))
        points += known
        return left

    def _repeat(self, running: Running, batch: Zeros, left: int) -> tuple[list[int], int]:
        """The times of one size, and what they took together, what does not count included."""
        times: list[int] = []
        spent = 0
        while len(times) < _REPEATS and spent <= left and not (len(times) >= _ENOUGH and spent > _ENOUGH_NS):
            wanted = _REPEATS - len(times)
            lasted, is_quiet = self._alone(running, lambda session, wanted=wanted: self._burst(running, session, batch, wanted))
            spent += sum(lasted)
            # A new thread and a new size are slow at first; and the last run may have met traffic.
            counting = lasted[1 if lasted[0] < _ENOUGH_NS else 0 : len(lasted) if is_quiet else -1]
            for ns in counting:
                running.forecast.ran(batch.bucket, batch.rows, ns)
            times += counting
            if lasted[-1] > _LONG_NS:
                break
        return times, spent

    def _burst(self, running: Running, session: Session, batch: Zeros, wanted: int) -> tuple[list[int], bool]:
        """One run after the other while it is quiet, but not for long; and whether it was quiet to the end."""
        lasted: list[int] = []
        is_quiet = True
        while is_quiet and len(lasted) <= wanted and sum(lasted) < _ENOUGH_NS:
            lasted.append(self._timed(session, batch))
            is_quiet = self._is_quiet() and not running.is_leaving and not self._is_closed
        return lasted, is_quiet

    def _compare(self, running: Running, profile: Profile) -> Calls | None:
        """Take turns in calling both ways, at the best size that leaves the slower one short; the best round of each counts."""
        count = usable_cpus()
        middle = profile.lengths[len(profile.lengths) // 2]
        short = [point for point in profile.at(middle) if count * point.median <= _LONG_NS // 2]
        if not short:
            return None
        point = max(short, key=lambda point: point.rate)
        batch = Zeros(running.opened.spec, point.rows, point.length)
        times = max(1, min(_MOST_CALLS, _ROUND_NS // max(1, point.median)))
        self._doing = f"{count} calls on one thread each"
        self._wait_until_quiet(running)
        second = self._apart(lambda: on_one_thread(running.opened, self._backends))

        def one(session: Session) -> float:
            return rows_per_second(session, batch, 1, times, self._clock)

        def many(session: Session) -> float:
            return rows_per_second(second, batch, count, times, self._clock)

        self._alone(running, many)  # its first runs lay out its memory
        rates: dict[str, list[float]] = {"one": [], "many": []}
        for _ in range(_MOST_ROUNDS):
            for way, measure in (("one", one), ("many", many)):
                rate = self._alone(running, measure)
                if self._is_quiet():
                    rates[way].append(rate)
            if min(map(len, rates.values())) >= _ROUNDS:
                break
        second.close()
        return Calls(count, point.rows, max(rates["one"]), max(rates["many"])) if all(rates.values()) else None

    def _alone(self, running: Running, measure: Callable[[Session], T]) -> T:
        """Measure with the session of a version, once it is quiet."""
        self._wait_until_quiet(running)
        return self._apart(lambda: _borrowed(running, measure))

    def _timed(self, session: Session, batch: Zeros) -> int:
        batch.tensors()
        began = self._clock.now()
        session.run(batch)
        return self._clock.now() - began

    def _apart(self, call: Callable[[], T]) -> T:
        """The result of `call`, made in a thread of its own, which is left behind when it does not come back in time."""
        result: Future[T] = Future()

        def work() -> None:
            try:
                result.set_result(call())
            except BaseException as error:
                result.set_exception(error)
            with self._changed:
                self._changed.notify_all()

        until = self._clock.now() + _HANGS_NS
        threading.Thread(target=work, name="headrace-probe-run", daemon=True).start()
        with self._changed:
            while not result.done():
                if self._is_closed:
                    raise _Gone
                if self._clock.now() >= until:
                    raise _Hung
                self._clock.wait(self._changed, until)
        return result.result()

    def _is_quiet(self) -> bool:
        now = self._clock.now()
        return not self._pauses and all(one.route.queue.wait_settled(now) for one in self._running())

    def _wait_until_quiet(self, running: Running) -> None:
        while True:
            self._is_waiting = not self._is_quiet()
            if self._is_closed or running.is_leaving:
                raise _Gone
            if not self._is_waiting:
                return
            until = self._clock.now() + _LOOK_NS
            with self._changed:
                while self._pauses and not self._is_closed and self._clock.now() < until:
                    self._clock.wait(self._changed, until)
            for one in self._running():
                one.route.queue.wait_settled(until)


def _borrowed(running: Running, measure: Callable[[Session], T]) -> T:
    with running.borrow() as session:
        if session is None:
            raise _Gone
        return measure(session)


def _unprofiled(running: Running) -> str:
    """Why a version is not measured, known beforehand."""
    spec = running.opened.spec
    if spec.decoupled:
        return "it answers a request several times"
    if spec.sequences:
        return "it has sequences"
    if isinstance(running.opened.sessions[0][0], Outside):
        return "it runs elsewhere, for others too"
    if not goes_back(running.opened.sessions[0][0]):
        return "its rows go on from one queue to the next"
    if not stands_zeros(running.opened.sessions[0][0]):
        return "its code is called for requests only"
    return "" if running.warm_ns is not None else "zeros of the declared shape do not run"


def _failed(spec: ModelSpec, error: BaseException) -> str:
    log.debug("%s has no profile", spec, exc_info=error)
    return f"a run of zeros failed: {sentence(error)}"
