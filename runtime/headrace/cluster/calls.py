"""The V2 protocol as Serve's own gRPC proxy calls it: a method of the replica for each RPC, bytes in and bytes out.

`grpc_servicer_functions: [headrace.cluster.calls.add_v2_to_server]` in a Serve YAML. Messages pass as bytes: Serve cannot pickle
those of generated modules that it does not find under their name. What is asked goes through the same queues as everything else.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc

from headrace.errors import HeadraceError
from headrace.protocol.codec import decode_request
from headrace.protocol.headers import HeaderForwarding
from headrace.protocol.headrace_pb2 import DESCRIPTOR
from headrace.protocol.origin import origin_of, peer_of_grpc
from headrace.server.server import Server
from headrace.transport.base import WINDOW
from headrace.transport.control import SERVICE
from headrace.transport.streams import Call, Streams
from headrace.transport.unary import Unary

UNARY = tuple(
    method.name for method in DESCRIPTOR.services_by_name["GRPCInferenceService"].methods if not method.client_streaming
)
"""The calls that are one message each way."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A message that is bytes already, as Serve takes one."""

    message: bytes

    def SerializeToString(self) -> bytes:
        """The bytes."""
        return self.message


class Calls:
    """Answers the proxy's calls for a server. Make it, and call it, on one event loop."""

    def __init__(self, server: Server) -> None:
        engine = server.engine
        self._control, self._clock = server.control, engine.clock
        self._forwarding = HeaderForwarding(server.config.grpc_header_forward_pattern)
        sink = engine.loop_sink()
        self._unary = Unary(engine.routes, sink, engine.clock, _accept)
        self._streams = Streams(engine.routes, sink, engine.clock, _accept, WINDOW)

    async def unary(self, name: str, payload: bytes, context: Any) -> Encoded:
        """One of `UNARY`."""
        received = self._clock.now()
        try:
            if name == "ModelInfer":
                return Encoded(await self._unary.answer(payload, received, self._call(context)))
            return Encoded(await asyncio.to_thread(self._control.handle, f"/{SERVICE}/{name}", payload))
        except HeadraceError as error:
            raise _told(context, error) from None

    async def stream(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[Encoded]:
        """`ModelStreamInfer`."""
        answers: asyncio.Queue[bytes | None] = asyncio.Queue(1)

        async def serve() -> None:
            try:
                await self._streams.serve(requests, answers.put, self._call(context))
            finally:
                await answers.put(None)

        serving = asyncio.create_task(serve())
        try:
            while (answer := await answers.get()) is not None:
                yield Encoded(answer)
            await serving
        except HeadraceError as error:
            raise _told(context, error) from None
        finally:
            serving.cancel()

    def _call(self, context: Any) -> Call:
        """What holds for a call. Serve does not say how long its client waits: it cancels."""
        headers = list(context.invocation_metadata() or ())
        forwarded = self._forwarding.parameters(headers) if self._forwarding.is_on else None
        decode = partial(decode_request, windows=self._control.regions, forwarded=forwarded)
        return Call(decode, None, origin_of(headers, peer_of_grpc(context.peer() or "")))


def add_v2_to_server(servicer: Any, server: Any) -> None:
    """A servicer function for Serve: registers the V2 service; Serve puts its own handlers in the place of these."""
    handlers = {name: grpc.unary_unary_rpc_method_handler(getattr(servicer, name)) for name in UNARY}
    handlers["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(servicer.ModelStreamInfer)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))


def _accept(received: int) -> None:
    """Serve asks a replica that stops for nothing more, and the queues turn away what comes all the same."""


def _told(context: Any, error: HeadraceError) -> HeadraceError:
    """The error, once the proxy has been told its code and message."""
    context.set_code(grpc.StatusCode[error.code.name])
    context.set_details(error.message)
    return error
