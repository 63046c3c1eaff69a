"""Ray Serve by its own means, as a rival: `python -m benchmarks.ray_serve MODE MODEL REPOSITORY REPLICAS` serves until killed.

`batch` is what its documentation shows: `@serve.batch` behind its gRPC proxy. `conserving` is the same model with the batcher of
`benchmarks.reference_aio`, which takes whatever waits when it is idle. Which proxies there are Ray's variables say. `headrace` is
Headrace's application, with its balancer.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray import serve
from ray.serve.config import gRPCOptions
from tritonclient.grpc import model_config_pb2, service_pb2

from benchmarks.reference_aio import Front
from benchmarks.servers import free_port

# Its messages have to be found again by the names that they have, in every process.
sys.modules.setdefault("grpc_service_pb2", service_pb2)
sys.modules.setdefault("model_config_pb2", model_config_pb2)
_SERVICER = "tritonclient.grpc.service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server"


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
    """Serve until killed."""
    mode, model, repository, replicas = sys.argv[1:]
    count, port = int(replicas), free_port()
    ray.init("local", num_cpus=count + 1, include_dashboard=False, object_store_memory=80 << 20, log_to_driver=False)
    if mode == "headrace":
        serve.start(proxy_location="Disabled")
        serve.run(_headrace(repository, port, count))
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
    signal.pause()


def _headrace(repository: str, port: int, count: int) -> serve.Application:
    from headrace.cluster.replica import Headrace
    from headrace.cluster.settings import ClusterConfig

    config = ClusterConfig(repository=Path(repository), grpc=f"127.0.0.1:{port}", metrics=False)
    return Headrace.options(num_replicas=count).bind(config)


if __name__ == "__main__":
    main()
