"""Everything but inference: (method, bytes) in, bytes out, the same for every transport.

Owns nothing; asks the engine. Safe to call from any thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeAlias

from google.protobuf.message import DecodeError, Message
from grpc_reflection.v1alpha import reflection, reflection_pb2

from headrace import __version__
from headrace.backends.fallback import SEVERAL
from headrace.engine.engine import Engine
from headrace.engine.lifecycle import Running
from headrace.engine.regions import Regions
from headrace.engine.several import backends_of
from headrace.engine.slack import slack_of
from headrace.errors import HeadraceError, InvalidRequest, ServerExiting, Unsupported
from headrace.ledger.views import Total, VersionTotals
from headrace.model import State
from headrace.models.pbtxt import parse_json
from headrace.protocol import headrace_pb2 as pb
from headrace.protocol.codec import decode_version
from headrace.protocol.headrace_pb2 import ModelConfig
from headrace.protocol.health_pb2 import HealthCheckRequest, HealthCheckResponse
from headrace.protocol.pool import POOL
from headrace.tensor import TensorSpec
from headrace.transport.log_switches import LogSwitches
from headrace.transport.settings import LogCalls, TraceCalls
from headrace.transport.shared_memory import SharedMemoryCalls

SERVICE = "inference.GRPCInferenceService"
HEALTH = "grpc.health.v1.Health"
REFLECTION = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")
SHARED_MEMORY = "system_shared_memory"
EXTENSIONS = (
    "classification",
    "model_repository",
    "model_repository(unload_dependents)",
    "schedule_policy",
    "model_configuration",
    SHARED_MEMORY,
    "binary_tensor_data",
    "parameters",
    "statistics",
    "trace",
    "logging",
)
"""The extensions of the protocol that this server has, by Triton's names; shared memory only where it is allowed."""

Answer: TypeAlias = Callable[[Any], Message]


class _Method(NamedTuple):
    request: type[Message]
    answer: Answer


class Control:
    """Answers control calls for one engine.

    Args:
        engine: the engine.
        server_name: the name in the server's metadata; some clients insist on `triton`.
        allow_client_shm: whether clients may register system shared memory.
    """

    def __init__(self, engine: Engine, server_name: str = "headrace", allow_client_shm: bool = False) -> None:
        self._engine, self._name = engine, server_name
        self._extensions = [name for name in EXTENSIONS if allow_client_shm or name != SHARED_MEMORY]
        self._reflection = reflection.ReflectionServicer((SERVICE, HEALTH, *REFLECTION), pool=_ReflectedPool())
        answers: dict[str, tuple[type[Message], Answer]] = {
            "ServerLive": (pb.ServerLiveRequest, self._server_live),
            "ServerReady": (pb.ServerReadyRequest, self._server_ready),
            "ServerMetadata": (pb.ServerMetadataRequest, self._server_metadata),
            "ModelReady": (pb.ModelReadyRequest, self._model_ready),
            "ModelMetadata": (pb.ModelMetadataRequest, self._model_metadata),
            "ModelConfig": (pb.ModelConfigRequest, self._model_config),
            "ModelStatistics": (pb.ModelStatisticsRequest, self._model_statistics),
            "RepositoryIndex": (pb.RepositoryIndexRequest, self._repository_index),
            "RepositoryModelLoad": (pb.RepositoryModelLoadRequest, self._load),
            "RepositoryModelUnload": (pb.RepositoryModelUnloadRequest, self._unload),
            **SharedMemoryCalls(engine.regions, is_allowed=allow_client_shm).answers,
            "TraceSetting": (pb.TraceSettingRequest, TraceCalls(engine).answer),
            "LogSettings": (pb.LogSettingsRequest, LogCalls(LogSwitches()).answer),
        }
        self._methods = {f"/{SERVICE}/{name}": _Method(*how) for name, how in answers.items()}
        self._methods[f"/{HEALTH}/Check"] = _Method(HealthCheckRequest, self._health)

    @property
    def methods(self) -> Iterable[str]:
        """See `ControlCalls.methods`."""
        return self._methods

    @property
    def blocking(self) -> frozenset[str]:
        """See `ControlCalls.blocking`."""
        return frozenset(f"/{SERVICE}/RepositoryModel{verb}" for verb in ("Load", "Unload"))

    @property
    def regions(self) -> Regions:
        """See `ControlCalls.regions`."""
        return self._engine.regions

    @property
    def dialogues(self) -> Iterable[str]:
        """See `ControlCalls.dialogues`."""
        return [f"/{service}/ServerReflectionInfo" for service in REFLECTION]

    def handle(self, method: str, payload: bytes) -> bytes:
        """See `ControlCalls.handle`."""
        if method.endswith("/ServerReflectionInfo"):
            return self._reflect(payload)
        request_type, answer = self._methods[method]
        try:
            request = request_type.FromString(payload)
        except DecodeError:
            raise InvalidRequest(f"the {len(payload)} bytes received are not a {request_type.DESCRIPTOR.name} message") from None
        return answer(request).SerializeToString()

    def _reflect(self, payload: bytes) -> bytes:
        try:
            request = reflection_pb2.ServerReflectionRequest.FromString(payload)
        except DecodeError:
            raise InvalidRequest(f"the {len(payload)} bytes received are not a ServerReflectionRequest message") from None
        # It never looks at its context, and this is no gRPC call.
        (answer,) = self._reflection.ServerReflectionInfo(iter([request]), None)  # pyright: ignore[reportArgumentType]
        return answer.SerializeToString()

    # The server.

    def _server_live(self, request: pb.ServerLiveRequest) -> Message:
        self._check_not_exiting()
        return pb.ServerLiveResponse(live=self._engine.is_live)

    def _server_ready(self, request: pb.ServerReadyRequest) -> Message:
        self._check_not_exiting()
        return pb.ServerReadyResponse(ready=self._engine.ready)

    def _health(self, request: HealthCheckRequest) -> Message:
        self._check_not_exiting()
        return HealthCheckResponse(status=HealthCheckResponse.SERVING if self._engine.ready else HealthCheckResponse.NOT_SERVING)

    def _check_not_exiting(self) -> None:
        if self._engine.is_closed:
            raise ServerExiting()

    def _server_metadata(self, request: pb.ServerMetadataRequest) -> Message:
        return pb.ServerMetadataResponse(name=self._name, version=__version__, extensions=self._extensions)

    # Models.

    def _model_ready(self, request: pb.ModelReadyRequest) -> Message:
        self._engine.routes.resolve(request.name, decode_version(request.version))
        return pb.ModelReadyResponse(ready=True)

    def _model_metadata(self, request: pb.ModelMetadataRequest) -> Message:
        version = decode_version(request.version)
        route = self._engine.routes.resolve(request.name, version)
        spec = route.spec
        ready = [spec.version] if version else [route.spec.version for route in self._engine.routes.ready(request.name)]
        running = next((each for each in self._engine.catalog.running() if each.route is route), None)
        properties = {"digest": spec.digest}
        if running is not None:
            properties |= _backends_of(running) | slack_of(self._engine, running).properties()
        message = pb.ModelMetadataResponse(
            name=spec.name, versions=map(str, ready), platform=spec.platform or spec.backend, properties=properties
        )
        batch = (-1,) if spec.max_batch_size > 0 else ()
        _declare(message.inputs, spec.inputs, batch)
        _declare(message.outputs, spec.outputs, batch)
        return message

    def _model_config(self, request: pb.ModelConfigRequest) -> Message:
        return pb.ModelConfigResponse(config=self._engine.routes.resolve(request.name, decode_version(request.version)).config)

    def _model_statistics(self, request: pb.ModelStatisticsRequest) -> Message:
        version = decode_version(request.version)
        if request.name:
            try:
                self._engine.routes.resolve(request.name)
            except HeadraceError:
                raise InvalidRequest(f"requested model '{request.name}' is not available") from None
        routes = self._engine.routes.ready(request.name or None)
        if version:
            routes = [route for route in routes if route.spec.version == version]
            if not routes:
                raise InvalidRequest(f"requested model version is not available for model '{request.name}'")
        self._engine.ledger.drain()
        running = {each.route.queue.model_number: each for each in self._engine.catalog.running()}
        response = pb.ModelStatisticsResponse()
        for route in routes:
            number, version = route.queue.model_number, route.spec.version
            response.model_stats.append(self._statistics_of(route.spec.name, version, number))
            if number not in running:
                continue
            # Behind a graph, what is within it: its segments, and its nodes that are no models; behind a model, its variant.
            response.model_stats.extend(self._statistics_of(name, version, inner) for name, inner in running[number].inner)
            if request.name:  # who asks for all does not want to wait for other servers
                response.model_stats.extend(running[number].statistics_elsewhere())
        return response

    def _statistics_of(self, name: str, version: int, number: int) -> pb.ModelStatistics:
        totals = self._engine.statistics.versions.get(number, VersionTotals())
        stages = {"compute_input": "gather", "compute_infer": "execute", "compute_output": "scatter"}
        return pb.ModelStatistics(
            name=name,
            version=str(version),
            last_inference=totals.last_inference_ms,
            inference_count=totals.inference_count,
            execution_count=totals.execution_count,
            inference_stats=pb.InferStatistics(
                success=_duration(totals.success),
                fail=_duration(totals.fail),
                queue=_duration(totals.queue),
                **{field: _duration(getattr(totals, stage)) for field, stage in stages.items()},
            ),
            batch_stats=[
                pb.InferBatchStatistics(
                    batch_size=rows, **{field: _duration(getattr(sums, stage)) for field, stage in stages.items()}
                )
                for rows, sums in sorted(totals.batches.items())
            ],
        )

    # The repository.

    def _repository_index(self, request: pb.RepositoryIndexRequest) -> Message:
        _check_repository_name(request.repository_name)
        message = pb.RepositoryIndexResponse()
        statuses = self._engine.statuses()
        for status in statuses:
            if not request.ready or status.state is State.READY:
                version = "" if status.version is None else str(status.version)
                message.models.add(name=status.model, version=version, state=status.state.value, reason=status.reason)
        if not request.ready:
            asked_for = {status.model for status in statuses}
            for name in self._engine.repository.names():
                if name not in asked_for:
                    message.models.add(name=name)
        return message

    def _load(self, request: pb.RepositoryModelLoadRequest) -> Message:
        _check_repository_name(request.repository_name)
        self._engine.require_explicit()
        override: ModelConfig | None = None
        files: dict[str, bytes] = {}
        for key, parameter in request.parameters.items():
            if key != "config" and not key.startswith("file:"):
                raise InvalidRequest(f"unrecognized load parameter '{key}'.")
            expected = "string_param" if key == "config" else "bytes_param"
            if parameter.WhichOneof("parameter_choice") != expected:
                raise InvalidRequest(f"invalid value type for load parameter '{key}', expected {expected}.")
            if key == "config":
                override = parse_json(parameter.string_param)
            else:
                files[key.removeprefix("file:")] = parameter.bytes_param
        if files and override is None:
            raise InvalidRequest("load parameters 'file:<version>/<path>' need the parameter 'config', too")
        self._engine.load(request.model_name, override, files)
        return pb.RepositoryModelLoadResponse()

    def _unload(self, request: pb.RepositoryModelUnloadRequest) -> Message:
        _check_repository_name(request.repository_name)
        self._engine.require_explicit()
        for key, parameter in request.parameters.items():
            if key == "unload_dependents" and parameter.WhichOneof("parameter_choice") != "bool_param":
                raise InvalidRequest("invalid value type for 'unload_dependents' parameter, expected bool_param.")
        self._engine.unload(request.model_name)
        return pb.RepositoryModelUnloadResponse()


class _ReflectedPool:
    """Our private pool for our services; reflection's own messages are in the default one."""

    def __getattr__(self, name: str) -> Any:
        from google.protobuf import descriptor_pool

        def find(*arguments: Any) -> Any:
            try:
                return getattr(POOL, name)(*arguments)
            except KeyError:
                return getattr(descriptor_pool.Default(), name)(*arguments)

        return find


def _backends_of(running: Running) -> dict[str, str]:
    """Of a version with several backends: which there are, in order, and which one serves."""
    if running.opened.spec.backend != SEVERAL:
        return {}
    backends = backends_of(running.opened)
    serving = next((name for name, serves in backends.items() if serves), "")
    return {"backends": ", ".join(backends), "backend": serving}


def _check_repository_name(name: str) -> None:
    if name:
        raise Unsupported("'repository_name' specification is not supported")


def _declare(messages: Any, specs: Iterable[TensorSpec], batch: tuple[int, ...]) -> None:
    for spec in specs:
        messages.add(name=spec.name, datatype=spec.datatype, shape=(*batch, *spec.dims))


def _duration(total: Total) -> pb.StatisticDuration:
    return pb.StatisticDuration(count=total.count, ns=total.ns)
