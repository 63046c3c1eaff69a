"""What a cluster is told: the `args` of the application, and the `user_config` of its deployment, in a Serve YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from headrace.config import Address, Name, Seconds, ServerConfig

_DECIDED = {
    "repository": "it stands beside `server`",
    "grpc": "replicas listen where the balancer finds them; `grpc` beside `server` is where clients do",
    "directory": "replicas find each other through Ray",
    "http": "REST is not balanced",
    "metrics": "replicas listen where there is room; `metrics` beside `server` turns them off",
    "allow_client_shm": "the memory of one machine means nothing behind a balancer",
    "model_control": "replicas hold what `user_config` says",
    "load_model": "replicas hold what `user_config` says",
}
"""Settings of a server that a replica is not free to have, and why."""


def _absolute(path: Path) -> Path:
    if not path.is_absolute():
        raise PydanticCustomError("repository", "expected an absolute path, which is the same on every node")
    return path


def _of_a_replica(server: ServerConfig) -> ServerConfig:
    for key, why in _DECIDED.items():
        if key in server.model_fields_set:
            raise PydanticCustomError("server", "key '{key}' is decided by the cluster: {why}", {"key": key, "why": why})
    return server


class ClusterConfig(BaseModel):
    """The arguments of `headrace.cluster.app:app`: the same for all replicas."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    repository: Annotated[Path, AfterValidator(_absolute)]
    """The folder of models, in Triton's layout, under this path on every node."""
    grpc: Address = "127.0.0.1:8001"
    """Where clients find the balancer, on every node that has replicas."""
    host: Name | None = None
    """Where replicas listen, for balancers and each other: by default at the address that the node has inside the cluster."""
    balancer: bool = True
    """Without one, each replica listens at `grpc` itself: there can be one a node."""
    metrics: bool = True
    """Whether replicas have `/metrics` for Prometheus, at the node's address inside the cluster; `headrace up` prints where."""
    hung_seconds: Annotated[Seconds, Field(gt=0)] = 10.0
    """An instance that has not come back from one batch for so long is hung, and its replica is replaced."""
    run_directory: Path | None = None
    """Where the balancer of a node keeps its files; below the directory for temporary ones by default."""
    server: Annotated[ServerConfig, AfterValidator(_of_a_replica)] = ServerConfig()
    """Further settings of each replica, as in a file for `headrace serve --config`."""

    def of_replica(self, node: str) -> ServerConfig:
        """The settings of a replica on the node that has this address inside the cluster."""
        host = self.host or node
        own = f"[{host}]:0" if ":" in host else f"{host}:0"
        decided = {
            "repository": self.repository,
            "grpc": own if self.balancer else self.grpc,
            "http": None,
            "metrics": own if self.metrics else None,
            "model_control": "explicit",
            "load_model": (),
            "strict_readiness": False,  # that is asked before it takes requests; later a broken model must not take the rest away
        }
        return self.server.model_copy(update=decided)


class Holding(BaseModel):
    """What replicas hold: the `user_config` of the deployment. A change of it changes replicas without starting them anew."""

    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True)

    models: tuple[Name, ...] = ("*",)
    """The models to have loaded, `*` is all there are; others are unloaded."""
    revision: str = ""
    """Anything. When it changes, replicas look at the repository again, and load what has changed there."""
