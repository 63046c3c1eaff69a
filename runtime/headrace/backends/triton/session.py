"""A model that a Triton runs, as a session. Batches are made here, and go over as one request.

It is called from several instance threads at once, each with a line of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from headrace.backends.base import Batch, Outputs
from headrace.backends.triton.channel import FAILURES, Lost, TimedOut, UnknownRegion, Unreachable
from headrace.backends.triton.client import Client, Line
from headrace.backends.triton.forwarding import Part, header_of, latest_deadline, parts_of, trace_of
from headrace.backends.triton.messages import (
    Answer,
    Asking,
    Place,
    Signature,
    difference,
    nbytes_of,
    signature_of,
    size_of,
    tensors_of,
)
from headrace.backends.triton.settings import Settings
from headrace.backends.triton.shared_memory import WORTHWHILE, Region, lay_out
from headrace.backends.triton.watch import Watch
from headrace.clock import MICROSECOND, SECOND, Clock
from headrace.errors import (
    BackendDown,
    BackendFailed,
    Code,
    DeadlineExpired,
    ModelError,
)
from headrace.model import GraphIO, GraphTensor
from headrace.protocol.headrace_pb2 import ModelConfig, ModelStatistics
from headrace.tensor import Tensor, concatenate, rows_of

log = logging.getLogger(__name__)

_MOST_REGIONS = 2
"""That a server forgets during one call, until tensors go over the network."""


class Loaded(NamedTuple):
    """What the server said of the model when it was loaded, and whether it maps memory of ours."""

    signature: Signature
    io: GraphIO
    shares: bool


class TritonSession:
    """One model on one server. A change of what it was when it was loaded is noticed, and told.

    Args:
        client: what asks the server; it is closed with the session.
        settings: how.
        config: of the model here.
        loaded: what the server said.
        clock: the clock.
    """

    replayable = False

    def __init__(self, client: Client, settings: Settings, config: ModelConfig, loaded: Loaded, clock: Clock) -> None:
        self._client, self._settings, self._clock, self._name = client, settings, clock, config.name
        self._signature, self.io, self._shares = loaded
        self._version = ""
        self._outputs = {tensor.name: tensor for tensor in self.io.outputs}
        self._sizes = {tensor.name: size for tensor in self.io.outputs if (size := size_of(tensor, bool(self.io.max_batch_size)))}
        policies = (config.dynamic_batching.default_queue_policy, *config.dynamic_batching.priority_queue_policy.values())
        # There, the V2 timeout says how long to wait, not when to be done.
        self._timeout_is_deadline = not any(each.allow_timeout_override for each in policies)
        self._watch = Watch(str(settings), self._look, clock)

    def run(self, batch: Batch) -> Outputs:
        """Send the batch, and wait for the answer. See `Session.run`.

        Raises:
            BackendDown: nothing was sent.
            ModelError: the server's own error.
            DeadlineExpired: nobody waits for the answer any more.
            BackendFailed: there is no answer, or it is not what the model declared.
        """
        if why := self._watch.why:
            raise BackendDown(self._name, why, self._watch.wait_ns())
        heads, inputs, wanted = batch.heads, batch.tensors(), batch.wanted()
        parts = parts_of(heads, batch.offsets)
        if len(parts) == 1:
            return self._run_part(parts[0], inputs, wanted)
        done: list[Outputs] = []
        for part in parts:
            own = {name: rows_of(tensor, part.start, part.stop) for name, tensor in inputs.items()}
            try:
                done.append(self._run_part(part, own, wanted))
            except BackendDown as error:
                if not done:
                    raise
                # Some of the batch has run: nobody else may be asked for it.
                raise ModelError(error.message, error.code) from None
        return {name: concatenate([each[name] for each in done]) for name in wanted}

    def close(self) -> None:
        """Give everything back."""
        self._watch.close()
        self._client.close()

    @property
    def is_healthy(self) -> bool:
        """See `Outside.is_healthy`."""
        return not self._watch.why

    @property
    def is_watched(self) -> bool:
        """Whether the server is being looked at."""
        return self._watch.is_watching

    def has_changed(self) -> bool:
        """See `Outside.has_changed`. Of a server that is not there, nothing is known to have changed."""
        try:
            return bool(difference(self._signature, signature_of(self._client.metadata())))
        except FAILURES:
            return False

    def statistics(self) -> list[ModelStatistics]:
        """See `Outside.statistics`; of each version there, as MODEL@URL."""
        if self._watch.why:
            return []
        try:
            told = [ModelStatistics.FromString(each.SerializeToString()) for each in self._client.statistics()]
        except FAILURES:
            return []
        for each in told:
            each.name = f"{self._name}@{self._settings.url}"
        return told

    def _run_part(self, part: Part, inputs: Mapping[str, Tensor], wanted: Sequence[str]) -> Outputs:
        now = self._clock.now()
        deadline = latest_deadline(part.requests, timeout_is_deadline=self._timeout_is_deadline)
        patience = now + int(self._settings.run_timeout * SECOND)
        if deadline is not None and deadline <= now:
            raise DeadlineExpired(self._name)
        line = self._client.take()
        try:
            until = patience if deadline is None else min(patience, deadline)
            answer, outputs = self._exchange(line, part, inputs, wanted, until, deadline)
        except Unreachable as error:
            why = f"no Triton answers at {self._settings.url} ({error})"
            self._watch.down(why)
            raise BackendDown(self._name, why, self._watch.wait_ns()) from None
        except TimedOut:
            # What it still does with this memory must not meet the next batch.
            self._client.abandon(line)
            if deadline is not None and deadline <= patience:
                self._watch.doubt()
                raise DeadlineExpired(self._name) from None
            why = f"{self._settings} has not answered within run_timeout_s, {self._settings.run_timeout:g} s"
            self._watch.timed_out(why)
            raise ModelError(f"model '{self._name}': {why}", Code.UNAVAILABLE) from None
        except Lost as error:
            self._client.abandon(line)
            self._watch.doubt()
            raise ModelError(str(error), Code.UNAVAILABLE) from None
        except ModelError as error:
            self._watch.answered()
            if error.code in (Code.INVALID_ARGUMENT, Code.NOT_FOUND):
                self._check_same()
            raise
        finally:
            self._client.give_back(line)
        self._watch.answered()
        self._check_answer(answer)
        return outputs

    def _exchange(
        self, line: Line, part: Part, inputs: Mapping[str, Tensor], wanted: Sequence[str], until: int, deadline: int | None
    ) -> tuple[Answer, dict[str, Tensor]]:
        """Send one request and read its answer. A server that has forgotten our memory has run nothing, and is asked again."""
        metadata, tries = trace_of(part.requests), _MOST_REGIONS
        while True:
            region, placed, wanted_placed = self._place(line, inputs, wanted, until) if tries else (None, {}, {})
            left = 0 if deadline is None else max(1, (deadline - self._clock.now()) // MICROSECOND)
            header = header_of(self._settings, part.requests, left)
            asking = Asking(header, inputs, wanted, placed, wanted_placed)
            try:
                answer = self._client.infer(line, asking, until, metadata)
            except UnknownRegion:
                line.region = None
                tries -= 1
                continue
            memory = {name: region.view(place) for name, place in wanted_placed.items()} if region is not None else {}
            return answer, tensors_of(answer, memory)

    def _place(
        self, line: Line, inputs: Mapping[str, Tensor], wanted: Sequence[str], until: int
    ) -> tuple[Region | None, dict[str, Place], dict[str, Place]]:
        """Put inputs into shared memory, where that is worth it; places of inputs and of outputs."""
        if not self._shares:
            return None, {}, {}
        rows = next(iter(inputs.values())).shape[0] if inputs else 1
        into = {name: nbytes for name, tensor in inputs.items() if (nbytes := nbytes_of(tensor))}
        out = {name: size.of(rows) for name in wanted if (size := self._sizes.get(name)) is not None}
        if sum(into.values()) + sum(out.values()) < WORTHWHILE:
            return None, {}, {}
        _, end = lay_out("", {**into, **{f"{name} out": nbytes for name, nbytes in out.items()}})
        region = self._region(line, end, until)
        if region is None:
            return None, {}, {}
        placed, end = lay_out(region.name, into)
        region.write(inputs, placed)
        return region, placed, lay_out(region.name, out, end)[0]

    def _region(self, line: Line, nbytes: int, until: int) -> Region | None:
        if line.region is not None and line.region.size >= nbytes:
            return line.region
        self._client.abandon(line)
        self._client.forget_abandoned()
        soon = min(until, self._clock.now() + int(self._settings.connect_timeout * SECOND))
        try:
            line.region = Region(line.channel, nbytes, soon)
        except (OSError, ModelError) as error:
            log.info("%s: no shared memory, tensors go over the network of the machine: %s", self._settings, error)
            self._shares = False
        except FAILURES:
            pass  # the call itself will say what is wrong
        return line.region

    # What is watched.

    def _check_answer(self, answer: Answer) -> None:
        """Whether the model is still the one that was loaded: looked at when its version is another, or its outputs are."""
        if answer.version == self._version and all(
            _fits(self._outputs.get(output.name), output.datatype, output.shape) for output in answer.outputs
        ):
            return
        self._check_same()
        self._version = answer.version

    def _check_same(self) -> None:
        """Look whether the model is still what was loaded.

        Raises:
            BackendFailed: it is not.
        """
        try:
            changed = difference(self._signature, signature_of(self._client.metadata()))
        except FAILURES:
            self._watch.doubt()
            return
        if changed:
            why = self._changed(changed)
            self._watch.down(why)
            raise BackendFailed(f"model '{self._name}': {why}")

    def _look(self) -> str:
        """What is wrong with the server; empty when it is well."""
        try:
            if not self._client.model_ready():
                return f"{self._settings} is not ready"
            changed = difference(self._signature, signature_of(self._client.metadata()))
        except (Unreachable, TimedOut) as error:
            return f"no Triton answers at {self._settings.url} ({words_of(error)})"
        except (Lost, ModelError) as error:
            return f"{self._settings} is not ready ({words_of(error)})"
        self._client.forget_abandoned()
        return self._changed(changed) if changed else ""

    def _changed(self, changed: str) -> str:
        return f"{self._settings} is not what was loaded: {changed}; load '{self._name}' again"


def _fits(declared: GraphTensor | None, datatype: str, shape: Sequence[int]) -> bool:
    return (
        declared is not None
        and declared.datatype == datatype
        and len(declared.shape) == len(shape)
        and all(size in (-1, got) for size, got in zip(declared.shape, shape, strict=True))
    )


def words_of(error: Exception) -> str:
    """What an error says, or at least what it is."""
    return str(error) or type(error).__name__
