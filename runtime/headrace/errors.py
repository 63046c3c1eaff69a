"""The one tree of errors.

Each class carries a protocol-neutral `Code`; transports translate it. Constructors take what is known in the domain
(model, tensor, both values) and write the sentence themselves. Messages that Triton has are Triton's, letter for letter,
because clients match on them.

    HeadraceError
    ├── InvalidRequest        the client can mend it
    ├── InvalidRepository     a configuration or a file on disk can be mended
    │   └── LoadFailed, NotInRepository, ModelMissing, BackendUnreachable
    ├── InvalidLedger, InvalidObjective, InvalidDirectory
    ├── InvalidCluster, ClusterFailed, DirectoryUnreachable    of a cluster
    ├── InvalidLoad, TargetFailed    of the load generator
    ├── InvalidJob            a batch job cannot begin as it was asked for
    │   └── JobChanged        nor go on as it began
    ├── JobLocked, JobFailed, JobStopped    another run has its output; it had to stop; it was told to
    ├── KernelsUnusable       the native data plane is not here, or is not ours
    ├── ModelNotFound, ModelNotReady
    ├── RegionNotFound, WrongRegion, RegionExists, RegionFailed
    ├── Unsupported, NotAllowed, CannotListen
    ├── CannotBalance, ChangeUnderWay, Relayed, NotByAll    of several replicas
    ├── Overloaded            refused: try again later, or elsewhere
    │   ├── QueueFull, QueueTimeout, QueueClosed, Draining, ServerExiting
    │   └── CannotMeetDeadline, ClassShed, ReaderTooSlow, BackendDown
    ├── DeadlineExpired, Cancelled
    └── BackendFailed         the model raised, or answered with something it had not declared
        ├── ModelError        the model answered with an error of its own
        └── Broken            a broken invariant of Headrace itself
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from typing import Any


class Code(Enum):
    """What went wrong, in words every protocol can translate. The values are the codes in the ledger."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    RESOURCE_EXHAUSTED = 8
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14


_LONGEST_SENTENCE = 4096
"""Characters of a message. A gRPC status travels in a header, and one that is too long takes the status with it."""
_KEPT = 4000


def sentence(error: BaseException) -> str:
    """What an exception says: valid Unicode, not too long, and never another exception."""
    try:
        text = str(error) if isinstance(error, HeadraceError) else str(error) or type(error).__name__
    except Exception:
        text = type(error).__name__
    if len(text) > _LONGEST_SENTENCE:
        text = f"{text[:_KEPT]} … ({len(text)} characters)"
    return text.encode("utf-8", "replace").decode()


class HeadraceError(Exception):
    """Anything Headrace says no with."""

    code = Code.UNKNOWN
    retry_after_ns: int | None = None
    """When it makes sense to try again, if that is known."""

    @property
    def message(self) -> str:
        """The sentence for the client, as every protocol can carry it."""
        return sentence(self)

    def __reduce__(self) -> tuple[Any, ...]:
        """Other processes get the sentence as it is: constructors would write it again."""
        return _same, (type(self), self.args, vars(self))


def _same(kind: type[HeadraceError], args: tuple[Any, ...], state: dict[str, Any]) -> HeadraceError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(state)
    return error


class InvalidRequest(HeadraceError):
    """A request that cannot be served as it is."""

    code = Code.INVALID_ARGUMENT


class InvalidRepository(HeadraceError):
    """A model repository, a configuration or an option that cannot be used as it is."""

    code = Code.INVALID_ARGUMENT


class InvalidLedger(HeadraceError):
    """A ledger, or a question to it, that cannot be used as it is."""

    code = Code.INVALID_ARGUMENT


class InvalidObjective(HeadraceError):
    """Objectives that cannot be used as they are.

    Attributes:
        problems: one sentence each, with file and line.
    """

    code = Code.INVALID_ARGUMENT

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class InvalidDirectory(HeadraceError):
    """A directory of replicas that cannot be used as it is."""

    code = Code.INVALID_ARGUMENT


class InvalidCluster(HeadraceError):
    """A cluster that cannot be started, or ended, as it is asked for."""

    code = Code.INVALID_ARGUMENT


class ClusterFailed(HeadraceError):
    """A cluster did not come up."""

    code = Code.UNAVAILABLE


class DirectoryUnreachable(HeadraceError):
    """The directory of replicas does not answer at present."""

    code = Code.UNAVAILABLE

    def __init__(self, why: str) -> None:
        super().__init__(f"the directory of replicas does not answer: {why}")


class LoadFailed(InvalidRepository):
    """A model did not come up; the reasons name the versions."""

    def __init__(self, model: str, reasons: dict[int, str]) -> None:
        told = "".join(f"version {v} is at UNAVAILABLE state: {why};\n" for v, why in sorted(reasons.items()))
        super().__init__(f"load failed for model '{model}': {told}")


class BackendUnreachable(InvalidRepository):
    """What is to run a model is not there yet. Loading it again later may do."""

    code = Code.UNAVAILABLE


class NotInRepository(InvalidRepository):
    """A load was asked for a model that no repository holds."""

    code = Code.INTERNAL

    def __init__(self, model: str) -> None:
        super().__init__(f"failed to load '{model}', failed to poll from model repository")


class ModelMissing(InvalidRepository):
    """A model runs another that is not there, or not loaded: a graph, or one with a variant. `who` says which."""

    def __init__(self, who: str, model: str, version: int, why: str) -> None:
        which = f"version {version} of model '{model}'" if version else f"model '{model}'"
        super().__init__(f"{who} runs {which}, which is not loaded: {why}")


class InvalidLoad(HeadraceError):
    """A load that cannot be sent as it was asked for: an option, a file or a shape is not right."""

    code = Code.INVALID_ARGUMENT


class TargetFailed(HeadraceError):
    """The server that a load is meant for is not there, or does not know the model."""

    code = Code.UNAVAILABLE


class InvalidJob(HeadraceError):
    """A batch job that cannot begin as it was asked for: its options, its input or its output are not right."""

    code = Code.INVALID_ARGUMENT


class JobChanged(InvalidJob):
    """A batch job that was begun with other input, another graph or other options than it is to go on with.

    Attributes:
        changes: one sentence each.
    """

    def __init__(self, changes: Sequence[str]) -> None:
        super().__init__(
            f"the job cannot go on, for it began otherwise: {'; '.join(changes)}. Begin it anew in another directory, or put "
            "back what it began with"
        )
        self.changes = tuple(changes)


class JobLocked(HeadraceError):
    """Another run works on the output of a batch job."""

    code = Code.ALREADY_EXISTS


class JobFailed(HeadraceError):
    """A batch job had to stop. What was finished is kept, and it can go on from there."""

    code = Code.INTERNAL


class JobStopped(HeadraceError):
    """A batch job was told to stop before its end."""

    code = Code.CANCELLED


class KernelsUnusable(HeadraceError):
    """The native data plane is asked for, and is not installed, does not load or is of another version."""

    code = Code.UNAVAILABLE


class ModelNotFound(HeadraceError):
    """No such model, no such version, or no version that is ready."""

    code = Code.NOT_FOUND

    def __init__(self, model: str, version: int | None = None, *, known: bool = False) -> None:
        if version is not None:
            tail = f" version {version} is not found"
        else:
            tail = " has no available versions" if known else " is not found"
        super().__init__(f"Request for unknown model: '{model}'{tail}")


class ModelNotReady(HeadraceError):
    """The version exists and is loading or unloading."""

    code = Code.UNAVAILABLE

    def __init__(self, model: str, version: int) -> None:
        super().__init__(f"Request for unknown model: '{model}' version {version} is not at ready state")


class RegionNotFound(HeadraceError):
    """No shared-memory region is registered under this name."""

    code = Code.NOT_FOUND

    def __init__(self, region: str, kind: str = "shared memory") -> None:
        super().__init__(f"Unable to find {kind} region: '{region}'")


class WrongRegion(HeadraceError):
    """The shared-memory region under this name is of the other kind."""

    code = Code.NOT_FOUND

    def __init__(self, region: str, found: str, wanted: str) -> None:
        super().__init__(f"The region named '{region}' is registered as {found} shared memory, not {wanted} shared memory")


class RegionExists(HeadraceError):
    """A shared-memory region is registered under this name."""

    code = Code.ALREADY_EXISTS

    def __init__(self, region: str) -> None:
        super().__init__(f"shared memory region '{region}' already in manager")


class RegionFailed(HeadraceError):
    """The segment behind a shared-memory region cannot be opened, or does not hold what it has to."""

    code = Code.INTERNAL


class Unsupported(HeadraceError):
    """The protocol has it, this server does not."""

    code = Code.UNIMPLEMENTED


class NotAllowed(HeadraceError):
    """Asked of a server that is not in the mode for it."""

    code = Code.UNAVAILABLE


class Overloaded(HeadraceError):
    """Refused without having run."""

    code = Code.UNAVAILABLE


def request_prefix(request_id: str) -> str:
    """The words Triton puts before a message about one request."""
    return f"[request id: {request_id or '<id_unknown>'}] "


class QueueFull(Overloaded):
    """The queue's bound in requests, rows or bytes is reached."""

    def __init__(self, request_id: str) -> None:
        super().__init__(f"{request_prefix(request_id)}Exceeds maximum queue size")


class QueueTimeout(Overloaded):
    """Waited longer than the model's queue policy allows."""

    def __init__(self) -> None:
        super().__init__("Request timeout expired")


class QueueClosed(Overloaded):
    """The queue of this version takes no more: it was unloaded or replaced, or the server stops."""

    def __init__(self, request_id: str) -> None:
        super().__init__(
            f"{request_prefix(request_id)}Server is stopping, scheduler for model has stopped accepting new inference requests"
        )


class BackendDown(Overloaded):
    """What runs the model is not there, or is not what was loaded. Nothing of the batch was sent to it."""

    def __init__(self, model: str, why: str, retry_after_ns: int | None = None) -> None:
        super().__init__(f"model '{model}' cannot run now: {why}")
        self.retry_after_ns = retry_after_ns


class Draining(Overloaded):
    """The server stops and takes no more."""

    def __init__(self, server: str = "GRPC") -> None:
        super().__init__(f"{server} server is shutting down and has stopped accepting new requests.")


class ServerExiting(Overloaded):
    """Asked how it is, a server that has ended."""

    def __init__(self) -> None:
        super().__init__("Server exiting")


class CannotMeetDeadline(Overloaded):
    """Predicted to finish after its deadline, so refused at the door, or dropped before it costs the others their time."""

    code = Code.RESOURCE_EXHAUSTED

    def __init__(self, late_by_ns: int | None = None) -> None:
        how_late = "" if late_by_ns is None else f"about {late_by_ns / 1e6:.1f} ms "
        super().__init__(
            f"the request would finish {how_late}after its deadline; "
            "send it with a later deadline, or when the server is less busy"
        )
        self.retry_after_ns = late_by_ns


_SHED_SECONDS = 1
"""How long whoever is shed should stay away: until it is decided anew."""


class ClassShed(Overloaded):
    """Its class is refused at present, so that those before it are in time."""

    code = Code.RESOURCE_EXHAUSTED

    def __init__(self, level: int) -> None:
        super().__init__(
            f"class {level} is not taken at present: the latency budget of the classes before it burns; "
            f"try again in {_SHED_SECONDS} s"
        )
        self.retry_after_ns = _SHED_SECONDS * 1_000_000_000


class ReaderTooSlow(Overloaded):
    """More answers of a stream wait to be read than are kept."""

    code = Code.RESOURCE_EXHAUSTED

    def __init__(self, nbytes: int) -> None:
        super().__init__(
            f"{nbytes / 2**20:.0f} MiB of answers wait on this stream for their reader; read while the model answers, "
            "or ask for fewer answers at a time"
        )


class CannotListen(HeadraceError):
    """An address to listen on cannot be had."""

    code = Code.UNAVAILABLE

    def __init__(self, address: str, why: str) -> None:
        super().__init__(f"cannot listen on {address}: {why}; choose another one, or port 0 for any that is free")


class CannotBalance(HeadraceError):
    """There can be no balancer here, or it does not do what it is told."""

    code = Code.UNAVAILABLE


class ChangeUnderWay(HeadraceError):
    """All replicas are being told something else."""

    code = Code.UNAVAILABLE

    def __init__(self, seconds: float) -> None:
        super().__init__(f"the replicas have been busy with another change for {seconds:g} s; try again when it is over")


class Relayed(HeadraceError):
    """An error of another replica: its words, and its code."""

    def __init__(self, message: str, code: Code) -> None:
        super().__init__(message)
        self.code = code


class NotByAll(HeadraceError):
    """What all replicas have to do was not done by all of them. Its code is that of the first that did not.

    Attributes:
        failed: why not, by the id of the replica.
    """

    def __init__(self, what: str, done: Iterable[str], failed: Mapping[str, HeadraceError]) -> None:
        reasons = "; ".join(f"{replica}: {error.message}" for replica, error in failed.items())
        told = ", ".join(done)
        super().__init__(f"{what} was done by {told or 'no replica'}, and not by {reasons}")
        self.failed = dict(failed)
        self.code = next(iter(failed.values())).code


class SequenceWithoutKey(InvalidRequest):
    """A request of a sequence that nothing keeps with one replica, where there are several."""

    def __init__(self, id: int | str, key: str) -> None:
        super().__init__(
            f"several replicas answer here, and nothing keeps sequence {id!r} with one of them: send all of its requests on one "
            f"ModelStreamInfer stream, or each with the same metadata '{key}'"
        )


class DeadlineExpired(HeadraceError):
    """The deadline passed while the request waited."""

    code = Code.DEADLINE_EXCEEDED

    def __init__(self, model: str) -> None:
        super().__init__(f"the deadline passed before model '{model}' could answer")


class Cancelled(HeadraceError):
    """The client went away."""

    code = Code.CANCELLED

    def __init__(self) -> None:
        super().__init__("")


class BackendFailed(HeadraceError):
    """The model raised, or answered with something it had not declared."""

    code = Code.INTERNAL

    @staticmethod
    def of(error: BaseException) -> HeadraceError:
        """What clients are told when a session raises: the error itself if it is one of these, else its words."""
        return error if isinstance(error, HeadraceError) else BackendFailed(sentence(error))


class ModelError(BackendFailed):
    """The model, or the server that runs it, answered with an error of its own: its words as they are, and its code."""

    def __init__(self, message: str, code: Code) -> None:
        super().__init__(message)
        self.code = code


class Broken(BackendFailed):
    """An invariant of Headrace does not hold."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}; this is a bug in Headrace")
