"""The sinks for callers in this process: for threads, for an event loop, for whoever is called back.

All are woken once per batch.
"""

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
Receive = Callable[[Answer], None]
"""What takes the answers to one request, on the event loop. Must not raise."""


class CallSink:
    """Answers for whoever is called back, from the thread that brings them, or waits."""

    def __init__(self, push: Push, clock: Clock) -> None:
        self._push, self._clock = push, clock
        self._calls: dict[int, Callable[[Response | HeadraceError], None]] = {}
        self._lock = Lock()

    def ask(self, request: Request) -> Future[Response]:
        """Push a request; the future gets its one answer, and cannot be cancelled.

        Raises:
            HeadraceError: it was not admitted.
        """
        future: Future[Response] = Future()
        future.set_running_or_notify_cancel()

        def receive(result: Response | HeadraceError) -> None:
            if isinstance(result, HeadraceError):
                future.set_exception(result)
            else:
                future.set_result(result)

        self.call(request, receive)
        return future

    def call(self, request: Request, receive: Callable[[Response | HeadraceError], None]) -> Callable[[], None]:
        """Push a request; `receive` gets each of its answers. It must not block or raise.

        Returns:
            What cancels it: no answer comes after that.

        Raises:
            HeadraceError: it was not admitted.
        """
        with self._lock:
            self._calls[id(request)] = receive
        try:
            entry = self._push(request, self)
        except BaseException:
            self._pop(request)
            raise
        entry.wake()

        def cancel() -> None:
            if self._pop(request) is not None:
                entry.cancel()

        return cancel

    def deliver(self, answers: Sequence[Answer]) -> None:
        """See `Sink.deliver`."""
        now = self._clock.now()
        for answer in answers:
            request = answer.entry.request
            receive = self._pop(request) if answer.is_final else self._calls.get(id(request))
            if receive is None:
                answer.entry.cancel()
                continue
            if answer.is_final:
                answer.settle(now)
            receive(answer.result)

    def _pop(self, request: Request) -> Callable[[Response | HeadraceError], None] | None:
        with self._lock:
            return self._calls.pop(id(request), None)


class LoopSink:
    """Answers for coroutines of one event loop. Use it on that loop only, but for `deliver`."""

    def __init__(self, push: Push, clock: Clock, loop: asyncio.AbstractEventLoop) -> None:
        self._push, self._clock, self._loop = push, clock, loop
        self._calls: dict[int, Receive] = {}
        self._pushed: list[Entry] = []

    async def ask(self, request: Request) -> Answer:
        """Push a request and wait for its one answer, which the caller settles. Being cancelled cancels the entry.

        Raises:
            HeadraceError: it was not admitted.
        """
        future: asyncio.Future[Answer] = self._loop.create_future()

        def receive(answer: Answer) -> None:
            if future.done():
                answer.entry.cancel()
            else:
                future.set_result(answer)

        entry = await self.push(request, receive)
        try:
            return await future
        except asyncio.CancelledError:
            self.forget(entry)
            raise

    async def push(self, request: Request, receive: Receive) -> Entry:
        """Push a request; `receive` is called on the loop with each of its answers, the last of which the caller settles.

        The first may come before this returns. Being cancelled cancels the entry.

        Raises:
            HeadraceError: it was not admitted.
        """
        self._calls[id(request)] = receive
        try:
            # Decoding as many elements as fit into a large request takes long; others shall not wait for that.
            if any(tensor.nbytes > _LARGE_BYTES for tensor in request.inputs.values()):
                entry = await self._push_aside(request)
            else:
                entry = self._push(request, self)
        except BaseException:
            self._calls.pop(id(request), None)
            raise
        # Behind all that has arrived: what comes together runs together, and costs one wake.
        if not self._pushed:
            self._loop.call_soon(self._wake)
        self._pushed.append(entry)
        return entry

    def forget(self, entry: Entry) -> None:
        """Nobody waits for this entry any more: cancel it, and drop the answers it still gets."""
        self._calls.pop(id(entry.request), None)
        entry.cancel()

    def deliver(self, answers: Sequence[Answer]) -> None:
        """See `Sink.deliver`: one wake of the loop."""
        self._loop.call_soon_threadsafe(self._resolve, answers)

    async def _push_aside(self, request: Request) -> Entry:
        """Push from another thread. It cannot be called back: cancelled meanwhile, the entry is cancelled when it is there."""
        pushing = asyncio.ensure_future(asyncio.to_thread(self._push, request, self))
        try:
            return await asyncio.shield(pushing)
        except asyncio.CancelledError:
            pushing.add_done_callback(lambda done: None if done.exception() else done.result().cancel())
            raise

    def _wake(self) -> None:
        pushed, self._pushed = self._pushed, []
        for entry in pushed:
            entry.wake()

    def _resolve(self, answers: Sequence[Answer]) -> None:
        for answer in answers:
            key = id(answer.entry.request)
            receive = self._calls.pop(key, None) if answer.is_final else self._calls.get(key)
            if receive is None:
                answer.entry.cancel()
            else:
                receive(answer)
