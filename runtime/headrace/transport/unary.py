"""`ModelInfer` on an event loop: one message in, one out, through the queue of the model."""

from __future__ import annotations

import logging
from collections.abc import Callable

from headrace.clock import Clock
from headrace.engine.routes import Routes
from headrace.errors import Broken, HeadraceError, Unsupported
from headrace.protocol.codec import encode_response
from headrace.request import Response
from headrace.scheduling.entry import Answer
from headrace.scheduling.sinks import LoopSink
from headrace.transport.streams import Call

log = logging.getLogger(__name__)


class Unary:
    """Answers single calls. Everything here lives on one event loop.

    Args:
        routes: where requests go.
        sink: the loop's.
        clock: for stamps.
        check_accepting: called with the instant (ns) a request came; raises `Draining` when none is taken any more.
    """

    def __init__(self, routes: Routes, sink: LoopSink, clock: Clock, check_accepting: Callable[[int], None]) -> None:
        self._routes, self._sink, self._clock, self._check_accepting = routes, sink, clock, check_accepting

    async def answer(self, payload: bytes, received: int, call: Call) -> bytes:
        """A `ModelInferResponse` to a `ModelInferRequest`. Being cancelled takes the request out of its queue.

        Args:
            payload: the request.
            received: when its headers came, in ns.
            call: what holds for it.

        Raises:
            HeadraceError: the call fails with its code and message; the record is written.
        """
        try:
            self._check_accepting(received)
            request = call.decode(payload)
            if (route := self._routes.find(request.model, request.version)) is not None and route.spec.decoupled:
                raise Unsupported("ModelInfer RPC doesn't support models with decoupled transaction policy")
        except HeadraceError as error:
            self._routes.turned_away(error, received, origin=call.origin)
            raise
        request.received, request.decoded, request.origin = received, self._clock.now(), call.origin
        request.deadline = call.deadline
        return self._encode(await self._sink.ask(request))

    def _encode(self, answer: Answer) -> bytes:
        """The last step: the answer is settled here, whatever becomes of it."""
        try:
            if isinstance(answer.result, Response):
                encoded = encode_response(answer.result)
                answer.settle(self._clock.now(), len(encoded))
                return encoded
            error = answer.result
        except HeadraceError as refused:
            answer.result = error = refused
        except Exception as raised:
            log.exception("a response could not be encoded")
            answer.result = error = Broken(f"a response could not be encoded: {raised}")
        answer.settle(self._clock.now())
        raise error
