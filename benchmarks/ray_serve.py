"""Ray Serve by its own means, as a rival: `python -m benchmarks.ray_serve MODE MODEL REPOSITORY REPLICAS` serves until SIGTERM.

`batch` is what its documentation shows: `@serve.batch` behind its gRPC proxy. `conserving` is the same model with the batcher of
`benchmarks.reference_aio`, which takes whatever waits when it is idle. Which proxies there are Ray's variables say. `headrace` is
Headrace's application, with its balancer.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray import serve
from ray.serve.config import gRPCOptions
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

from benchmarks.reference_aio import Front
from benchmarks.replicas import wait_for_the_end
from headrace.cluster.processes import MARK, end
from tools.ports import free_port

# Its messages have to be found again by the names that they have, in every process.
sys.modules.setdefault("grpc_service_pb2", service_pb2)
sys.modules.setdefault("model_config_pb2", model_config_pb2)
add_service = service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server
_APP = "headrace"
_END_SECONDS = 5.0
_SERVICER = "benchmarks.ray_serve.add_service"  # so that Serve's proxy has this module, and with it those names


class Service:
    """The V2 service for one model; each method as Serve calls it."""

    # ruff: noqa: D102

    async def __init__(self, model: str, repository: str) -> None:
        self.front = Front(model, Path(repository))

    async def ModelInfer(self, request: Any) -> Any:
        return await self.front.ModelInfer(request, None)

    async def ServerLive(self, request: Any) -> Any:
        return await self.front.ServerLive(request, None)

    async def ServerReady(self, request: Any) -> Any:
        return await self.front.ServerReady(request, None)

    async def ServerMetadata(self, request: Any) -> Any:
        return await self.front.ServerMetadata(request, None)

    async def ModelReady(self, request: Any) -> Any:
        return await self.front.ModelReady(request, None)

    async def ModelMetadata(self, request: Any) -> Any:
        return await self.front.ModelMetadata(request, None)

    async def ModelConfig(self, request: Any) -> Any:
        return await self.front.ModelConfig(request, None)


class Batched(Service):
    """The same with `@serve.batch`."""

    async def ModelInfer(self, request: Any) -> Any:
        row = np.frombuffer(request.raw_input_contents[0], np.float32).reshape(-1, self.front.inputs)
        answer = await self.run(row)
        response = service_pb2.ModelInferResponse(
            model_name=self.front.name, model_version="1", id=request.id, raw_output_contents=[answer.tobytes()]
        )
        response.outputs.add(name="y", datatype="FP32", shape=answer.shape)
        return response

    @serve.batch(max_batch_size=64)
    async def run(self, rows: list[np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
        (answers,) = await asyncio.to_thread(self.front.session.run, None, {"x": np.concatenate(rows)})
        ends = np.cumsum([len(row) for row in rows])
        return np.split(answers, ends[:-1])


def main() -> None:
    """Serve until SIGTERM."""
    mode, model, repository, replicas = sys.argv[1:]
    count, port = int(replicas), free_port()
    mark = tempfile.mkdtemp(prefix="headrace-ray-serve-")
    os.environ[MARK] = mark
    slim: dict[str, Any] = {} if mode == "batch" else {"include_dashboard": False, "object_store_memory": 80 << 20}
    ray.init("local", num_cpus=count + 1, log_to_driver=False, **slim)
    if mode == "headrace":
        _serve_headrace(repository, port, count)
    else:
        serve.start(
            grpc_options=gRPCOptions(port=port, grpc_servicer_functions=[_SERVICER]),
            http_options={"host": "127.0.0.1", "port": free_port()},
            logging_config={"enable_access_log": False},
        )
        kind = {"batch": Batched, "conserving": Service}[mode]
        deployed = serve.deployment(kind, num_replicas=count, max_ongoing_requests=1024, ray_actor_options={"num_cpus": 1})
        serve.run(deployed.bind(model, repository))
    print(f"ready grpc=127.0.0.1:{port}", flush=True)
    wait_for_the_end()
    serve.shutdown()
    ray.shutdown()
    end(Path(mark), _END_SECONDS)  # a balancer outlives its replicas for a while
    Path(mark).rmdir()


def _serve_headrace(repository: str, port: int, count: int) -> None:
    from headrace.cluster.launch import settled
    from headrace.cluster.replica import Headrace
    from headrace.cluster.settings import ClusterConfig, Holding

    config = ClusterConfig(repository=Path(repository), grpc=f"127.0.0.1:{port}", metrics=False)
    serve.start(proxy_location="Disabled")
    holding = Holding().model_dump(mode="json")  # without any, a replica waits to be told
    serve.run(Headrace.options(num_replicas=count, user_config=holding).bind(config), name=_APP)
    settled(_APP)


if __name__ == "__main__":
    from benchmarks import ray_serve  # whose classes other processes find by name

    ray_serve.main()
