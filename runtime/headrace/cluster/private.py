"""How replicas call each other: control calls as (method, bytes), over a listener of each that is for the others only.

What comes in there is done by this replica alone. Clients, and balancers, do not know the address.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from headrace.errors import Broken, CannotListen, Code, HeadraceError, Relayed
from headrace.protocol.codec import MAX_MESSAGE_BYTES
from headrace.transport.base import ControlCalls
from headrace.transport.listening import listen

_THREADS = 8
_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.so_reuseport", 0),
)


class PrivateListener:
    """Answers control calls of other replicas.

    Args:
        address: HOST:PORT; port 0 takes a free one.
        control: answers them, and asks nobody else.
    """

    def __init__(self, address: str, control: ControlCalls) -> None:
        self.address, self._control = address, control
        self._server = grpc.server(ThreadPoolExecutor(_THREADS, "headrace-private"), options=_OPTIONS)
        self._server.add_generic_rpc_handlers((_Handlers(control),))

    def start(self) -> None:
        """Listen. Once.

        Raises:
            CannotListen: the address cannot be had.
        """
        listen(self.address).close()  # the operating system says why not, gRPC only that it failed
        try:
            port = self._server.add_insecure_port(self.address)
        except RuntimeError as error:
            raise CannotListen(self.address, str(error)) from None
        self.address = f"{self.address.rpartition(':')[0]}:{port}"
        self._server.start()

    def close(self) -> None:
        """Take no more calls; those that run get an error. Any number of times."""
        self._server.stop(None).wait()


def call_replica(address: str, method: str, payload: bytes, seconds: float) -> bytes:
    """Have another replica answer a control call.

    Raises:
        Relayed: with its code and message; UNAVAILABLE and DEADLINE_EXCEEDED if it cannot be reached, or takes longer.
    """
    with grpc.insecure_channel(address, options=_OPTIONS) as channel:
        try:
            return channel.unary_unary(method)(payload, timeout=seconds)
        except grpc.RpcError as error:
            raise Relayed(_details(error), _code(error)) from None


class _Handlers(grpc.GenericRpcHandler):
    """Every control call by its full name, payloads as bytes."""

    def __init__(self, control: ControlCalls) -> None:
        self._control, self._methods = control, frozenset(control.methods)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        method = handler_call_details.method
        if method not in self._methods:
            return None

        def answer(payload: bytes, context: grpc.ServicerContext) -> bytes:
            try:
                return self._control.handle(method, payload)
            except HeadraceError as error:
                context.abort(grpc.StatusCode[error.code.name], error.message)
                raise Broken("gRPC went on after an abort") from None

        return grpc.unary_unary_rpc_method_handler(answer)


def _code(error: Any) -> Code:
    name = error.code().name
    return Code[name] if name in Code.__members__ else Code.UNKNOWN


def _details(error: Any) -> str:
    return error.details() or error.code().name
