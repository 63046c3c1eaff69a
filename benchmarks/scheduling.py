"""`python -m benchmarks.scheduling`: what the scheduler itself costs, without a model: CPU time a batch and a request.

Policy: with so many waiting, the plan over their view and what is learned of a batch; with far deadlines, which all meet, and
with near ones, where the plan has to choose. A straight line gives microseconds a batch and a request. Mechanism: what a
prediction at the door adds to a push into a native queue, for those who are taken and those who are refused. Writes
benchmarks/results/scheduling.json and prints what it found.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import check_release, write
from headrace import kernels
from headrace.clock import MICROSECOND, MILLISECOND, MonotonicClock
from headrace.errors import CannotMeetDeadline
from headrace.ledger.ledger import Ledger
from headrace.request import Request
from headrace.scheduling.admission import Estimate, Limits, Line
from headrace.scheduling.entry import Answer
from headrace.scheduling.forecast import Forecast
from headrace.scheduling.native import NativeQueue, NativeQueues, NativeTurn
from headrace.scheduling.plan import MARGIN_NS, VIEW, Plan, Reason, SetPoints, plan
from headrace.scheduling.simulate import model

PROMISED = {"us_a_batch": 10.0, "us_a_request": 1.0}
WAITING = (1, 8, 16, 32, 64, 128, 256)
MAX_ROWS = 64
BASE_NS, ROW_NS = 900 * MICROSECOND, 130 * MICROSECOND
"""Of a batch: a model that takes about as long as `mid`."""
FAR_MS, NEAR_MS = (200, 400), (2, 40)
"""When entries are due, from now: least and most."""
BUCKET = 7


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scheduling", description="Measure what the scheduler costs.")
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    check_release()
    kernel = kernels.load().Kernel()
    queues = NativeQueues(kernel, Ledger(lambda requests, batches: None), MonotonicClock()).start()
    queue = queues(model(MAX_ROWS), Limits())
    forecast = _learned(queue)
    found = {
        "policy, far deadlines": policy(forecast, FAR_MS, given.rounds),
        "policy, near deadlines": policy(forecast, NEAR_MS, given.rounds),
        "at the door, us a request": door(queue, queues, given.rounds),
    }
    queues.close()
    print(json.dumps(found, indent=1))
    write("scheduling", {"promised": PROMISED, **found})


def policy(forecast: Forecast, due_ms: tuple[int, int], rounds: int) -> dict[str, object]:
    """Plan and learning by number of waiting requests, in us of CPU; and the line through those whom one batch can take."""
    points = SetPoints(MAX_ROWS, margin_ns=MARGIN_NS)
    costs: dict[int, float] = {}
    for waiting in WAITING:
        now = time.monotonic_ns()
        view = _view(waiting, now, due_ms)
        rows = max(1, len(plan(view, forecast.predictor, points, now).take))
        lasts = _lasts(rows)

        def once(view: NDArray[np.void] = view, now: int = now, rows: int = rows, lasts: int = lasts) -> None:
            plan(view, forecast.predictor, points, now)
            forecast.ran(BUCKET, rows, lasts)

        costs[waiting] = _cost(once, rounds)
    fitting = [waiting for waiting in WAITING if waiting <= MAX_ROWS]
    request, batch = np.polyfit(fitting, [costs[waiting] for waiting in fitting], 1)
    return {
        "us_a_batch": round(float(batch), 2),
        "us_a_request": round(float(request), 3),
        "us_by_waiting": {str(waiting): round(cost, 2) for waiting, cost in costs.items()},
        "of_that_learning_us": round(_cost(lambda: forecast.ran(BUCKET, MAX_ROWS, _lasts(MAX_ROWS)), rounds), 2),
    }


def door(queue: NativeQueue, queues: NativeQueues, rounds: int) -> dict[str, float]:
    """A push with nothing foretold, what foretelling adds, and a refusal with a full view before it."""
    estimate = Estimate({_bucket(queue): Line(BASE_NS, ROW_NS, MAX_ROWS)}, 1, MARGIN_NS)
    costs: dict[str, list[float]] = {"push": [], "foretelling adds": [], "refusal": []}
    for _ in range(rounds):
        queue.set_limits(Limits())
        plain = _pushes(queue, 10_000)
        queue.set_limits(Limits(estimate=estimate))
        costs["push"].append(plain)
        costs["foretelling adds"].append(_pushes(queue, 10_000) - plain)
        costs["refusal"].append(_refusals(queue))
    return {name: round(statistics.median(each), 3) for name, each in costs.items()}


def _pushes(queue: NativeQueue, due_ms: int) -> float:
    """CPU time of a push into a queue that fills to four batches, in us."""
    requests = [_request(due_ms) for _ in range(4 * MAX_ROWS)]
    sink = _Sink()
    began = time.thread_time_ns()
    for request in requests:
        queue.push(request, sink)
    took = time.thread_time_ns() - began
    _empty(queue)
    return took / len(requests) / MICROSECOND


def _refusals(queue: NativeQueue) -> float:
    """CPU time of a push that is refused because of those who wait, in us; they are looked at one by one."""
    sink = _Sink()
    for _ in range(4 * MAX_ROWS):
        queue.push(_request(10_000), sink)
    requests = [_request(10) for _ in range(4 * MAX_ROWS)]
    began, refused = time.thread_time_ns(), 0
    for request in requests:
        try:
            queue.push(request, sink)
        except CannotMeetDeadline:
            refused += 1
    took = time.thread_time_ns() - began
    _empty(queue)
    assert refused > len(requests) / 2, "the queue was to refuse most of them"
    return took / len(requests) / MICROSECOND


def _bucket(queue: NativeQueue) -> int:
    """The bucket of its requests."""
    queue.push(_request(10_000), _Sink())
    with _turn(queue) as turn:
        bucket = int(turn.view["bucket"][0])
    _empty(queue)
    return bucket


def _empty(queue: NativeQueue) -> None:
    while queue.depth().requests:
        with _turn(queue) as turn:
            taken = tuple(turn.view["number"].tolist())
            batch = turn.take(Plan(taken, (), None, Reason.FULL), 0)
        if batch is not None:
            with batch:
                batch.reply({"y": np.zeros((batch.rows, 1), np.uint8)})


def _turn(queue: NativeQueue) -> NativeTurn:
    turn = queue.turn(None)
    assert turn is not None
    return turn


class _Sink:
    """Settles what it gets."""

    def deliver(self, answers: Sequence[Answer]) -> None:
        for answer in answers:
            answer.settle(time.monotonic_ns())


def _request(due_ms: int) -> Request:
    now = time.monotonic_ns()
    return Request("m", {"x": _ROW}, deadline=now + due_ms * MILLISECOND, received=now, decoded=now)


_ROW = np.zeros((1, 1), np.uint8)


def _learned(queue: NativeQueue) -> Forecast:
    """A forecast that has seen batches of all sizes for a while."""
    forecast = Forecast(queue, SetPoints(MAX_ROWS), 1)
    for _ in range(64):
        for rows in range(1, MAX_ROWS + 1):
            forecast.ran(BUCKET, rows, _lasts(rows))
    return forecast


_random = np.random.default_rng(0)


def _lasts(rows: int) -> int:
    """In ns; no two batches take the same time."""
    return int((BASE_NS + rows * ROW_NS) * _random.uniform(0.95, 1.05))


def _view(waiting: int, now: int, due_ms: tuple[int, int]) -> NDArray[np.void]:
    """So many entries, most urgent first, due at regular intervals."""
    view = np.zeros(waiting, VIEW)
    view["number"] = np.arange(waiting)
    view["deadline"] = now + (np.linspace(*due_ms, waiting) * MILLISECOND).astype(np.int64)
    view["target"] = view["key"] = view["deadline"]
    view["arrival"] = view["deadline"] - FAR_MS[1] * MILLISECOND
    view["bucket"], view["rows"] = BUCKET, 1
    return view


def _cost(once: Callable[[], None], rounds: int) -> float:
    """CPU time of one call in us: the median of some hundred calls each."""
    times: list[float] = []
    for _ in range(rounds):
        began = time.thread_time_ns()
        for _ in range(_CALLS):
            once()
        times.append((time.thread_time_ns() - began) / _CALLS / MICROSECOND)
    return statistics.median(times)


_CALLS = 300


if __name__ == "__main__":
    main()
