"""The two sinks for callers in this process: one for threads, one for an event loop. Both are woken once per batch."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from threading import Lock

from headrace.clock import Clock
from headrace.errors import HeadraceError
from headrace.request import Request, Response
from headrace.scheduling.entry import Answer, Entry, Sink

_LARGE_BYTES = 1 << 20
Push = Callable[[Request, Sink], Entry]
"""How a request gets into a queue: `Routes.push`."""


class ThreadSink:
    """Answers for callers that block."""

    def __init__(self, push: Push, clock: Clock) -> None:
        self._push, self._clock = push, clock
        self._calls: dict[int, Future[Response]] = {}
        self._lock = Lock()

    def ask(self, request: Request) -> Future[Response]:
        """Push a request; the future gets its one answer.

        Raises:
            HeadraceError: it was not admitted.
        """
        future: Future[Response] = Future()
        with self._lock:
            self._calls[id(request)] = future
        try:
            self._push(request, self)
        except BaseException:
            self._pop(request)
            raise
        return future

    def deliver(self, answers: Sequence[Answer]) -> None:
        """See `Sink.deliver`."""
        now = self._clock.now()
        for answer in answers:
            future = self._pop(answer.entry.request)
            if future is None or not future.set_running_or_notify_cancel():
                answer.entry.cancel()
                continue
            answer.settle(now)
            if isinstance(answer.result, HeadraceError):
                future.set_exception(answer.result)
            else:
                future.set_result(answer.result)

    def _pop(self, request: Request) -> Future[Response] | None:
        with self._lock:
            return self._calls.pop(id(request), None)


class LoopSink:
    """Answers for coroutines of one event loop. Use it on that loop only, but for `deliver`."""

    def __init__(self, push: Push, clock: Clock, loop: asyncio.AbstractEventLoop) -> None:
        self._push, self._clock, self._loop = push, clock, loop
        self._calls: dict[int, asyncio.Future[Answer]] = {}

    async def ask(self, request: Request) -> Answer:
        """Push a request and wait for its one answer, which the caller settles. Being cancelled cancels the entry.

        Raises:
            HeadraceError: it was not admitted.
        """
        future: asyncio.Future[Answer] = self._loop.create_future()
        self._calls[id(request)] = future
        try:
            # Decoding as many elements as fit into a large request takes long; others shall not wait for that.
            is_large = sum(tensor.nbytes for tensor in request.inputs.values()) > _LARGE_BYTES
            entry = await asyncio.to_thread(self._push, request, self) if is_large else self._push(request, self)
            try:
                return await future
            except asyncio.CancelledError:
                entry.cancel()
                raise
        finally:
            del self._calls[id(request)]

    def deliver(self, answers: Sequence[Answer]) -> None:
        """See `Sink.deliver`: one wake of the loop."""
        self._loop.call_soon_threadsafe(self._resolve, answers)

    def _resolve(self, answers: Sequence[Answer]) -> None:
        for answer in answers:
            future = self._calls.get(id(answer.entry.request))
            if future is None or future.done():
                answer.entry.cancel()
            else:
                future.set_result(answer)
