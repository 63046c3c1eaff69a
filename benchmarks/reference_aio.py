"""The yardstick: the leanest KServe V2 front that grpc.aio gives, with a work-conserving batcher and ONNX Runtime.

`python -m benchmarks.reference_aio MODEL REPOSITORY` serves one model of one FP32 input and output and prints its address. It
checks nothing, accounts for nothing, knows one datatype: whatever a server costs above this is the price of what it does more.
Generated messages and stubs, as in every grpc.aio service; one thread runs the model, and takes whatever waits when it is idle.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
import onnxruntime as ort
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

from benchmarks.models import MODELS

MAX_BYTES = (1 << 31) - 1


class Front(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Answers what a client of one model needs."""

    def __init__(self, name: str, repository: Path) -> None:
        self.name = name
        self.inputs, self.outputs = MODELS[name].input[2], MODELS[name].output[2]
        self.rows = MODELS[name].max_rows
        self.config = text_format.Parse((repository / name / "config.pbtxt").read_text(), model_config_pb2.ModelConfig(name=name))
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = ort.InferenceSession(str(repository / name / "1" / "model.onnx"), options, ["CPUExecutionProvider"])
        self.loop = asyncio.get_running_loop()
        self.waiting: list[tuple[np.ndarray[Any, Any], asyncio.Future[np.ndarray[Any, Any]]]] = []
        self.changed = threading.Condition()
        self.requests = self.batches = 0
        threading.Thread(target=self.run, daemon=True).start()

    def run(self) -> None:
        """Take what waits, run it, hand the answers to the loop with one wake."""
        while True:
            with self.changed:
                while not self.waiting:
                    self.changed.wait()
                batch, self.waiting = self.waiting[: self.rows], self.waiting[self.rows :]
            rows = np.concatenate([row for row, _ in batch]) if len(batch) > 1 else batch[0][0]
            (answers,) = self.session.run(None, {"x": rows})
            self.loop.call_soon_threadsafe(self.resolve, batch, answers)

    def resolve(self, batch: list[Any], answers: np.ndarray[Any, Any]) -> None:
        """Give each caller its rows."""
        at = 0
        self.requests, self.batches = self.requests + len(batch), self.batches + 1
        for row, future in batch:
            if not future.done():
                future.set_result(answers[at : at + len(row)])
            at += len(row)

    # Its methods are the protocol's, and so are their names.
    # ruff: noqa: D102

    async def ModelInfer(self, request: Any, context: Any) -> Any:
        row = np.frombuffer(request.raw_input_contents[0], np.float32).reshape(-1, self.inputs)
        future: asyncio.Future[np.ndarray[Any, Any]] = self.loop.create_future()
        with self.changed:
            self.waiting.append((row, future))
            self.changed.notify()
        answer = await future
        response = service_pb2.ModelInferResponse(
            model_name=self.name, model_version="1", id=request.id, raw_output_contents=[answer.tobytes()]
        )
        response.outputs.add(name="y", datatype="FP32", shape=answer.shape)
        return response

    async def ServerLive(self, request: Any, context: Any) -> Any:
        return service_pb2.ServerLiveResponse(live=True)

    async def ServerReady(self, request: Any, context: Any) -> Any:
        return service_pb2.ServerReadyResponse(ready=True)

    async def ServerMetadata(self, request: Any, context: Any) -> Any:
        return service_pb2.ServerMetadataResponse(name="reference", version="0", extensions=["statistics"])

    async def ModelReady(self, request: Any, context: Any) -> Any:
        return service_pb2.ModelReadyResponse(ready=True)

    async def ModelMetadata(self, request: Any, context: Any) -> Any:
        told = service_pb2.ModelMetadataResponse(name=self.name, versions=["1"], platform="onnxruntime")
        told.inputs.add(name="x", datatype="FP32", shape=(-1, self.inputs))
        told.outputs.add(name="y", datatype="FP32", shape=(-1, self.outputs))
        return told

    async def ModelConfig(self, request: Any, context: Any) -> Any:
        return service_pb2.ModelConfigResponse(config=self.config)

    async def ModelStatistics(self, request: Any, context: Any) -> Any:
        told = service_pb2.ModelStatistics(
            name=self.name, version="1", inference_count=self.requests, execution_count=self.batches
        )
        for stage in ("success", "queue", "compute_input", "compute_infer", "compute_output"):
            getattr(told.inference_stats, stage).count = self.requests
        return service_pb2.ModelStatisticsResponse(model_stats=[told])


async def main() -> None:
    """Serve until killed."""
    server = grpc.aio.server(
        options=[("grpc.max_receive_message_length", MAX_BYTES), ("grpc.max_send_message_length", MAX_BYTES)]
    )
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Front(sys.argv[1], Path(sys.argv[2])), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"ready grpc=127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main())
