"""A load, from what was asked for to what came back. The kernels send it; Python only looks on."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from google.protobuf.message import Message

from headrace import kernels
from headrace.clock import SECOND
from headrace.errors import InvalidLoad, TargetFailed
from headrace.load.analysis import SAMPLE, Samples, Shares, Summary, Window, is_steady, name_of, summarise
from headrace.load.arrivals import due
from headrace.load.messages import Messages, Share, messages_of_file, random_messages
from headrace.protocol.headrace_pb2 import ModelMetadataRequest, ModelMetadataResponse

_SERVICE = "/inference.GRPCInferenceService/"
_CALL_PATIENCE = 10 * SECOND
_PATIENCE = 10 * SECOND
_LOOK_SECONDS = 0.25
MOST_OUTSTANDING = 1 << 14
MOST_WARM_UP = 5
MOST_SAMPLES = 10_000_000

_Answer = TypeVar("_Answer", bound=Message)


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """What is asked for: exactly one of `concurrency` (closed loop) and `rate` or a file of `arrivals` (open loop).

    Attributes:
        target: `HOST:PORT` or `unix:PATH` of any V2 server.
        model: its name; `version` empty is the default.
        concurrency: clients, each of which waits for its answer.
        rate: requests/s, whether answered or not.
        arrivals: see `arrivals.due`.
        objective: a good answer comes within so many ns.
        deadline: a request is given up so many ns after it was due, and its server is told.
        data: a table of inputs; without it, they are random, as `shares` say.
        channels: connections.
        warm_up: seconds before what counts, at the least: it goes on until latencies are steady, up to `MOST_WARM_UP` times that.
        seconds: what counts, and all of it.
        seed: of whatever is random.
    """

    target: str
    model: str
    version: str = ""
    concurrency: int | None = None
    rate: float | None = None
    arrivals: str = "poisson"
    objective: int | None = None
    deadline: int | None = None
    data: Path | None = None
    shares: Sequence[Share] = (Share(),)
    channels: int = 1
    warm_up: float = 1.0
    seconds: float = 10.0
    seed: int = 0

    @property
    def is_open(self) -> bool:
        """Whether requests come whether or not there are answers."""
        return self.concurrency is None


@dataclass(frozen=True, slots=True)
class Look:
    """The last moment of a running load: samples that came in it, its length, how far the load is (0 to 1; 0 is warming up)."""

    samples: Samples
    seconds: float
    done: float


@dataclass(frozen=True, slots=True)
class Recording:
    """What became of a load: its summary, and the samples that it counts."""

    plan: LoadPlan
    summary: Summary
    samples: Samples
    warm_up: float
    """How long it took to warm up, in seconds."""
    is_cut: bool
    """It was stopped before its end."""

    def told(self) -> str:
        """What was asked for, in one line."""
        plan, summary = self.plan, self.summary
        loop = f"{summary.offered:,.1f} requests/s offered ({plan.arrivals})" if plan.is_open else f"{plan.concurrency} clients"
        cut = ", cut short" if self.is_cut else ""
        connections = "" if plan.channels == 1 else f" over {plan.channels} connections"
        return f"{loop}{connections}, {summary.seconds:.1f} s after a warm-up of {self.warm_up:.1f} s{cut}"


def run(plan: LoadPlan, watch: Callable[[Look], None]) -> Recording:
    """Carry out a load; `watch` is shown every moment of it. An interrupt ends it early, and what there is counts.

    Raises:
        InvalidLoad: it cannot be sent as it is.
        TargetFailed: the server is not there, or does not have the model.
        KernelsUnusable: the kernels are not here.
    """
    core = kernels.load()
    messages = _messages(plan)
    # A look longer than it can last: it is stopped when it is time.
    lasts = MOST_WARM_UP * plan.warm_up + plan.seconds + 4 * _LOOK_SECONDS
    if plan.is_open:
        instants = due(plan.arrivals, plan.rate, lasts, plan.seed)
        if not len(instants):
            raise InvalidLoad("no request is due in that time; raise the rate or the seconds")
        when = {"due": instants.astype("<i8").tobytes()}
    else:
        when = {"clients": plan.concurrency, "lasts": int(lasts * SECOND)}
    try:
        load = core.Load(
            plan.target,
            messages.packed,
            messages.picks.astype("<u4").tobytes(),
            **when,
            channels=plan.channels,
            deadline=plan.deadline or 0,
            most=MOST_OUTSTANDING,
            patience=max(_PATIENCE, (plan.deadline or 0) + SECOND),
        )
    except ConnectionError as error:
        raise TargetFailed(str(error)) from None
    lookout = _Lookout(plan, load, watch)
    lookout.look_on()
    samples = lookout.samples()
    window = lookout.window(samples)
    shares = Shares(messages.shares, messages.names)
    summary = summarise(samples, window, shares, plan.objective, lookout.cores(), is_open=plan.is_open)
    if lookout.is_full:
        full = f"ended early: more than {MOST_SAMPLES} requests are more than one load may have"
        summary = replace(summary, doubts=[*summary.doubts, full])
    counted = samples[window.holds(samples["due"])]
    warm_up = (window.begin - lookout.start) / SECOND if plan.warm_up else 0.0
    return Recording(plan, summary, counted, warm_up, lookout.is_cut)


class _Lookout:
    """Watches a load: says when it is warm, and when it has lasted long enough."""

    def __init__(self, plan: LoadPlan, load: Any, watch: Callable[[Look], None]) -> None:
        self._plan, self._load, self._watch = plan, load, watch
        self.start = self._begin = self._last = time.monotonic_ns()
        self._is_warm = plan.warm_up == 0
        self._cpu = (0, self.start)
        self._end: int | None = None
        self._cpu_end = (0, self.start + 1)
        self._taken: list[Samples] = []
        self._count = 0
        self.is_cut = self.is_full = False

    def look_on(self) -> None:
        """Until the load is over. An interrupt ends it, a second one is passed on."""
        with _interrupts(self._cut):
            is_over = False
            while not is_over:
                time.sleep(_LOOK_SECONDS)
                is_over = self._load.is_over
                self._look(time.monotonic_ns())

    def samples(self) -> Samples:
        """All of them; of those of the warm-up, the ones that were still on their way when it ended."""
        return np.concatenate([*self._taken, np.empty(0, SAMPLE)])

    def window(self, samples: Samples) -> Window:
        """The time that counts: after the warm-up; of a load that ended before it was warm, all."""
        if not len(samples):
            return Window(self._begin, self._begin + 1)
        begin = self._begin if self._is_warm and self._plan.warm_up else int(samples["due"].min())
        # A load that ran out of requests by itself ends with its last answer.
        end = self._end if self._end is not None else int(samples["done"].max()) + 1
        return Window(begin, min(end, begin + int(self._plan.seconds * SECOND)))

    def cores(self) -> float:
        """How many cores the sending thread kept busy in that time."""
        (cpu, since), (cpu_then, until) = self._cpu, self._cpu_end
        return (cpu_then - cpu) / max(1, until - since)

    def _cut(self) -> None:
        if self.is_cut:
            raise KeyboardInterrupt
        self.is_cut = True
        self._stop(time.monotonic_ns())

    def _stop(self, now: int) -> None:
        if self._end is None:
            self._end = now
        self._load.stop()

    def _look(self, now: int) -> None:
        plan, samples = self._plan, np.frombuffer(self._load.take(), SAMPLE)
        self._taken.append(samples)
        self._count += len(samples)
        if not self._is_warm:
            self._is_warm = self._has_warmed_up(now)
            self._begin, self._cpu = now, (self._load.cpu, now)
            if self._is_warm:
                # What came to an end before is of no further use.
                self._taken.clear()
        if self._end is None:
            self._cpu_end = (self._load.cpu, now)
        done = (now - self._begin) / SECOND / plan.seconds if self._is_warm else 0.0
        self.is_full = self._count >= MOST_SAMPLES
        if done >= 1.0 or self.is_full:
            self._stop(now)
        self._watch(Look(samples, (now - self._last) / SECOND, min(1.0, done)))
        self._last = now

    def _has_warmed_up(self, now: int) -> bool:
        least = int(self._plan.warm_up * SECOND)
        if now - self.start < least:
            return False
        return now - self.start >= MOST_WARM_UP * least or is_steady(self.samples(), now, least // 2)


@contextmanager
def _interrupts(told: Callable[[], None]) -> Iterator[None]:
    """Have Ctrl-C tell somebody instead of raising wherever this thread happens to be."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, lambda number, frame: told())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _messages(plan: LoadPlan) -> Messages:
    asked = ModelMetadataRequest(name=plan.model, version=plan.version)
    model = _call(plan.target, "ModelMetadata", asked, ModelMetadataResponse())
    if plan.data is not None:
        return messages_of_file(model, plan.version, plan.data)
    return random_messages(model, plan.version, plan.shares, plan.seed)


def _call(target: str, method: str, asked: Message, answer: _Answer) -> _Answer:
    native = kernels.load()
    channel = native.Channel(target, _CALL_PATIENCE)
    try:
        answer.ParseFromString(channel.call(_SERVICE + method, asked.SerializeToString(), time.monotonic_ns() + _CALL_PATIENCE))
    except native.CallError as error:
        what, code, words = error.args
        if what == "unsent":
            raise TargetFailed(f"cannot connect to {target}: {words}") from None
        told = name_of(code) if what == "answered" else what
        raise TargetFailed(f"{target}: {method}: {told}: {words}") from None
    return answer
