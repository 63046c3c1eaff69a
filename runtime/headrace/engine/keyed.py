"""Sequences where several replicas answer: a request has to say what keeps its sequence with one of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import cast

from headrace.backends.base import Batch, Outputs, Piece, Session
from headrace.errors import BackendFailed, SequenceWithoutKey
from headrace.protocol.headers import SEQUENCE_KEY
from headrace.scheduling.base import Batch as QueuedBatch


class KeyedSession:
    """A session of a model with sequences. While keys are needed, a request of a sequence that has none does not run.

    The key is a header, which balancers go by, and which the transport makes a parameter; of a stream, the balancer gives one.

    Args:
        session: runs the others.
        are_needed: whether keys are needed now.
    """

    def __init__(self, session: Session, are_needed: Callable[[], bool]) -> None:
        self._session, self._are_needed = session, are_needed
        self.io = session.io

    @property
    def replayable(self) -> bool:
        """See `Session.replayable`."""
        return self._session.replayable

    def run(self, batch: Batch) -> Outputs | Iterator[Piece] | None:
        """See `Session.run`.

        Raises:
            SequenceWithoutKey: the only request of the batch has no key.
        """
        keyless = _keyless(batch) if self._are_needed() else {}
        if not keyless:
            return self._session.run(batch)
        if len(batch.heads) == 1:
            raise keyless[0]
        return self._run_others(cast("QueuedBatch", batch), keyless)

    def close(self) -> None:
        """See `Session.close`."""
        self._session.close()

    def _run_others(self, batch: QueuedBatch, keyless: Mapping[int, SequenceWithoutKey]) -> Iterator[Piece]:
        for place in range(len(batch)):
            if place in keyless:
                yield place, keyless[place], True
                continue
            outputs = self._session.run(batch.only(place))
            if outputs is None:
                raise BackendFailed("a model with sequences answers later, which it cannot where several replicas answer")
            if isinstance(outputs, Mapping):
                yield place, outputs, True
            else:
                yield from ((place, piece, final) for _, piece, final in outputs)


def _keyless(batch: Batch) -> dict[int, SequenceWithoutKey]:
    """The errors of the requests that have no key, by their places."""
    return {
        place: SequenceWithoutKey(head.sequence.id, SEQUENCE_KEY)
        for place, head in enumerate(batch.heads)
        if head.sequence is not None and SEQUENCE_KEY not in head.parameters
    }
