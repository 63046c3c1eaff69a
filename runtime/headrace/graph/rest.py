"""A batch of which some requests have failed on the way through a segment: the rest of it goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate

from headrace.backends.base import Batch
from headrace.graph.fan import picked
from headrace.request import Head, Request
from headrace.tensor import Tensor


class Rest:
    """The requests of a batch that are left, as a batch.

    Args:
        whole: the batch.
        places: of those requests in it, ascending.
    """

    def __init__(self, whole: Batch, places: Sequence[int]) -> None:
        self.whole, self._places = whole, places
        self.offsets = [0, *accumulate(whole.offsets[place + 1] - whole.offsets[place] for place in places)]
        self.rows = self.offsets[-1]

    @property
    def requests(self) -> list[Request]:
        """See `backends.base.Batch.requests`."""
        requests = self.whole.requests
        return [requests[place] for place in self._places]

    @property
    def heads(self) -> list[Head]:
        """See `backends.base.Batch.heads`."""
        heads = self.whole.heads
        return [heads[place] for place in self._places]

    def tensors(self) -> Mapping[str, Tensor]:
        """See `backends.base.Batch.tensors`."""
        rows = rows_at(self.whole.offsets, self._places)
        return {name: picked(tensor, rows) for name, tensor in self.whole.tensors().items()}

    def wanted(self) -> tuple[str, ...]:
        """See `backends.base.Batch.wanted`."""
        return self.whole.wanted()

    def away(self) -> None:
        """So is the batch."""
        self.whole.away()


def rows_at(offsets: Sequence[int], places: Sequence[int]) -> list[int]:
    """The rows of the requests at these places."""
    return [row for place in places for row in range(offsets[place], offsets[place + 1])]
