"""The requests of a batch that the process of a model has, by their places, and who is answered how."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from functools import cached_property

from headrace.backends.base import Batch, Outputs, Part, Partable, Piece
from headrace.backends.channel import Memory
from headrace.backends.triton_python.calls import TO_CODE
from headrace.backends.triton_python.requests import ErrorCode
from headrace.backends.triton_python.talk import Message
from headrace.errors import BackendFailed, HeadraceError, ModelError
from headrace.protocol.origin import leader_of
from headrace.request import Head, Origin
from headrace.tensor import Tensor

log = logging.getLogger("headrace.model")

_ALONE = 2
"""Offsets of a batch of one request."""


class Places:
    """A batch under way.

    A decoupled model has its batch taken apart at once, so that each response leaves as it comes. Of any other model, what was
    sent by a response sender is kept for the end of the call; a batch of which something is missing then is taken apart, too.

    Args:
        batch: what runs.
        heads: its requests, as they go along with what the model asks of others.
        instance: of the model, for messages.
        until: when it takes too long, in ns.
        is_decoupled: whether the model is.

    Raises:
        BackendFailed: the model is decoupled, and the batch is none whose requests can be answered one by one.
    """

    def __init__(self, batch: Batch, heads: Sequence[Head], instance: str, until: int, *, is_decoupled: bool) -> None:
        self.until, self._heads = until, heads
        self.memory: Memory | None = None
        """Where its outputs go."""
        self.told: Message | None = None
        """What came at the end of the call."""
        self.open = set(range(len(batch.offsets) - 1))
        self._batch, self._instance, self._is_decoupled = batch, instance, is_decoupled
        self._lock = threading.Lock()
        self._kept: dict[int, Outputs | HeadraceError] = {}
        self._parts: Sequence[Part] | None = None
        self._cancelled = set[int]()
        if not is_decoupled:
            return
        if self._partable is None:
            raise BackendFailed("the model is decoupled, and here a request gets one answer only")
        self._parts = self._partable.part(self._cancelled.add)

    @cached_property
    def _partable(self) -> Partable | None:
        """The batch, if it can be taken apart. Looked at when it matters: to find out takes as long as all the rest here."""
        return self._batch if isinstance(self._batch, Partable) else None

    def origin(self, place: int | None) -> Origin:
        """Where a call comes from that the model makes for the request at this place, or for all of them: see `leader_of`."""
        return (leader_of(self._heads) or self._heads[0] if place is None else self._heads[place]).origin

    @property
    def is_parted(self) -> bool:
        """Whether each request is answered by itself, perhaps later."""
        return self._parts is not None

    @property
    def is_waited_for(self) -> bool:
        """Whether nobody can be answered before all are."""
        return self._partable is None

    def is_cancelled(self, place: int) -> bool:
        """Whether nobody waits for the answer of a request any more."""
        if place in self._cancelled:
            return True
        is_alone = self._parts is None and len(self._batch.offsets) == _ALONE
        return is_alone and self._partable is not None and not self._partable.is_wanted

    def respond(self, message: Message, tensors: Outputs, until: int) -> None:
        """A response was sent for one request; the next may take until then."""
        with self._lock:
            place = message["index"]
            if place not in self.open:
                return
            self.until = until
            result = tensors if "error" not in message else _error_of(message)
            is_final = message["final"] or not self._is_decoupled or isinstance(result, HeadraceError)
            if is_final:
                self.open.discard(place)
            if self._parts is None:
                self._kept[place] = result
            else:
                self._deliver(place, result, is_final)

    def lose(self, place: int, model: str) -> None:
        """Nobody can answer a request any more."""
        with self._lock:
            if place not in self.open:
                return
            self.open.discard(place)
            error = BackendFailed(
                f"model '{model}' has dropped the response sender of a request "
                + ("without TRITONSERVER_RESPONSE_COMPLETE_FINAL" if self._is_decoupled else "without a response")
            )
            if self._parts is None:
                self._kept[place] = error
            else:
                self._deliver(place, error, is_final=True)

    def end(self, message: Message) -> None:
        """The call of `execute` is over."""
        with self._lock:
            if "names" in message:
                self.open.clear()
            else:
                self.open -= {place for place, entry in enumerate(message.get("each", ())) if entry is not None}
            self.told = message

    def result(self, tensors: Sequence[Tensor]) -> Outputs | list[Piece] | None:
        """What a session returns. Once, by the thread of the batch, when the call is over.

        Raises:
            BackendFailed: it failed, and is no batch of which requests can be answered one by one.
        """
        told = self.told
        assert told is not None
        if "error" in told:
            error = BackendFailed(f"Failed to process the request(s) for model '{self._instance}', message: {told['error']}")
            log.error("%s", error.message, extra={"model": self._instance})
            if self._partable is None:
                raise error
            if self._parts is None:
                return [(place, error, True) for place in range(len(self._batch.offsets) - 1)]
            self.fail_all(error)
            return None
        if self._parts is not None:
            return None
        if "names" in told:
            return dict(zip(told["names"], tensors, strict=True))
        with self._lock:
            answers = {**self._kept, **_returned(told, tensors)}
            if not self.open:
                return [(place, answers[place], True) for place in sorted(answers)]
            assert self._partable is not None
            self._parts = self._partable.part(self._cancelled.add)
            for place, answer in answers.items():
                self._deliver(place, answer, is_final=True)
            return None

    def fail_all(self, error: HeadraceError) -> None:
        """Fail all requests that still wait, of a batch that was taken apart."""
        with self._lock:
            places, self.open = self.open, set()
            for place in places if self._parts is not None else ():
                self._deliver(place, error, is_final=True)

    def _deliver(self, place: int, answer: Outputs | HeadraceError, is_final: bool) -> None:
        assert self._parts is not None
        part = self._parts[place]
        try:
            if not isinstance(answer, HeadraceError):
                part.send(0, answer, is_final)
                return
            part.fail(answer)
        except HeadraceError as error:
            self.open.discard(place)
            part.fail(error)


def _returned(told: Message, tensors: Sequence[Tensor]) -> dict[int, Outputs | HeadraceError]:
    """The responses that `execute` returned, by place."""
    rest = iter(tensors)
    returned: dict[int, Outputs | HeadraceError] = {}
    for place, entry in enumerate(told.get("each", ())):
        if entry is not None:
            returned[place] = _error_of(entry) if "error" in entry else {name: next(rest) for name in entry["names"]}
    return returned


def _error_of(entry: Message) -> HeadraceError:
    return ModelError(entry["error"], TO_CODE[ErrorCode(entry["code"])])
