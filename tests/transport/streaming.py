"""What the tests of streams share: models, tritonclient's stream as something to wait for, and a raw one."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
import numpy as np
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import InferenceServerException

from headrace.backends.base import Batch
from headrace.ledger.records import Outcome
from headrace.tensor import BytesTensor
from tests.transport.serving import ECHO, PATIENCE, Server, message, tensor

DECOUPLED = ECHO + "model_transaction_policy { decoupled: true }"
SINGLY = ECHO.replace("max_batch_size: 8", "max_batch_size: 1")
"""One request a batch."""
PARALLEL = SINGLY + "instance_group { count: 2 kind: KIND_CPU }"
FINAL = "triton_final_response"


def one(value: int, model: str = "m", **fields: Any) -> pb.ModelInferRequest:
    """A request of one row, the echo of which is `value`."""
    fields.setdefault("id", str(value))
    return message(model, (("x", "INT32", (1, 1)),), (np.int32(value).tobytes(),), **fields)


def flag(**choice: Any) -> dict[str, pb.InferParameter]:
    return {"triton_enable_empty_final_response": pb.InferParameter(**choice)}


@dataclass(frozen=True)
class Told:
    """An answer, in short. `final` is None where the flag is missing."""

    id: str
    values: tuple[int, ...]
    final: bool | None
    error: str = ""

    @staticmethod
    def of(answer: pb.ModelStreamInferResponse) -> Told:
        assert answer.HasField("infer_response")
        response = answer.infer_response
        values = np.frombuffer(b"".join(response.raw_output_contents), np.int32)
        final = response.parameters[FINAL].bool_param if FINAL in response.parameters else None
        return Told(response.id, tuple(int(v) for v in values), final, answer.error_message)


class Addressed(Protocol):
    """A server, in this process or another."""

    @property
    def address(self) -> str: ...


class Raw:
    """A stream whose every message is seen. `close` ends the requests; answers are read only when asked for."""

    def __init__(
        self, server: Addressed, timeout: float | None = PATIENCE, metadata: Any = None, beside: Raw | None = None
    ) -> None:
        """`beside`: on the connection of that one."""
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        options = [("grpc.use_local_subchannel_pool", 1)]
        self._channel = beside._channel if beside else grpc.insecure_channel(server.address, options)
        call = self._channel.stream_stream(
            "/inference.GRPCInferenceService/ModelStreamInfer",
            request_serializer=lambda m: m if isinstance(m, bytes) else m.SerializeToString(),
            response_deserializer=pb.ModelStreamInferResponse.FromString,
        )
        self.call = call(iter(self._requests.get, None), timeout=timeout, metadata=metadata)

    def ask(self, *requests: Any) -> None:
        for request in requests:
            self._requests.put(request)

    def close(self) -> None:
        self._requests.put(None)

    def next(self) -> Told:
        return Told.of(next(self.call))

    def rest(self) -> list[Told]:
        """Half-close, and read to the end, which must be OK."""
        self.close()
        told = [Told.of(answer) for answer in self.call]
        assert self.call.code() is grpc.StatusCode.OK
        return told

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()
        self.call.cancel()
        self._channel.close()


class Conversation:
    """tritonclient's stream."""

    def __init__(self, server: Server, **options: Any) -> None:
        self._answers: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
        self._client = triton.InferenceServerClient(server.address)
        self._client.start_stream(lambda result, error: self._answers.put((result, error)), **options)

    def ask(self, value: int, model: str = "m", **options: Any) -> None:
        options.setdefault("request_id", str(value))
        self._client.async_stream_infer(model, [tensor("x", [[value]])], **options)

    def next(self) -> Told | InferenceServerException:
        result, error = self._answers.get(timeout=PATIENCE)
        return error if error is not None else Told.of(pb.ModelStreamInferResponse(infer_response=result.get_response()))

    def __enter__(self) -> Conversation:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        # To its end, or the server may count as cancelled what has only just arrived here.
        self._client.stop_stream(cancel_requests=kind is not None)
        self._client.close()


def answers(values: Iterator[int] | range, final: bool | None = True) -> list[Told]:
    """The echoes of ordinary requests `one(value)`."""
    return [Told(str(value), (value,), final) for value in values]


def values_of(batch: Batch) -> list[int]:
    (given,) = batch.tensors().values()
    assert not isinstance(given, BytesTensor)
    return [int(v) for v in given.ravel()]


def ended(server: Server, model: str, **counts: int) -> bool:
    server.wait_settled(model)
    return server.ledger(model) == {outcome: counts.get(outcome.name, 0) for outcome in Outcome}
