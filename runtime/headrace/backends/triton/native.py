"""Calls by the kernels, in the thread that makes them: a message is written once, from the arrays, and nobody else is woken."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headrace import kernels
from headrace.backends.triton.channel import SERVICE, Lost, Metadata, TimedOut, Unreachable, failure_of
from headrace.backends.triton.messages import Answer, Asking, Described, pb
from headrace.backends.triton.settings import Settings
from headrace.clock import SECOND
from headrace.errors import BackendFailed
from headrace.protocol.validate import on_the_wire
from headrace.tensor import datatype_of

if TYPE_CHECKING:
    import headrace_kernels as native
else:
    native = kernels.load()


class NativeChannel:
    """See `Channel`."""

    def __init__(self, settings: Settings) -> None:
        self._core = native.Channel(settings.url, int(settings.connect_timeout * SECOND))

    def infer(self, asking: Asking, until: int, metadata: Metadata) -> Answer:
        """See `Channel.infer`."""
        header, placed = asking.header, asking.placed_inputs
        inputs = [
            (name, datatype_of(tensor), tensor.shape, None, placed[name])
            if name in placed
            else (name, *on_the_wire(tensor), None)
            for name, tensor in asking.inputs.items()
        ]
        outputs = [(name, asking.placed_outputs.get(name)) for name in asking.outputs]
        try:
            version, described, contents = self._core.infer(
                header.model, header.version, header.id, header.all_parameters(), inputs, outputs, until, metadata
            )
        except native.CallError as error:
            raise _failure(*error.args) from None
        except native.KernelError as error:
            raise BackendFailed(error.args[1]) from None
        return Answer(version, [Described(*each) for each in described], contents)

    def ask(self, method: str, request: Any, until: int) -> Any:
        """See `Channel.ask`."""
        try:
            answer = self._core.call(SERVICE + method, request.SerializeToString(), until)
        except native.CallError as error:
            raise _failure(*error.args) from None
        return getattr(pb, f"{method}Response").FromString(answer)

    def connects(self, until: int) -> bool:
        """See `Channel.connects`."""
        return self._core.connect(until)

    def close(self) -> None:
        """See `Channel.close`."""
        self._core.close()


def _failure(what: str, code: int, words: str) -> Exception:
    match what:
        case "unsent":
            return Unreachable(words)
        case "late":
            return TimedOut(words)
        case "lost":
            return Lost(words)
        case _:
            return failure_of(code, words)
