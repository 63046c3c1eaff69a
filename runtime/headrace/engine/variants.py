"""The cheaper variant of a model: another model that takes batches of it while its latency budget burns.

The parameter `variant` names it. What it runs is accounted under a name of its own, beside what it runs for its own clients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from headrace.backends.base import Batch, Outputs, Piece
from headrace.clock import Clock
from headrace.engine.lifecycle import Lent, Opened, goes_back
from headrace.errors import InvalidRepository
from headrace.graph.steps import Visits
from headrace.ledger.ledger import Ledger
from headrace.model import ModelSpec
from headrace.protocol.headrace_pb2 import ModelConfig
from headrace.tensor import format_shape

PARAMETER = "variant"


def variant_of(config: ModelConfig) -> str:
    """The name of the variant that a configuration declares; empty if it declares none."""
    return config.parameters[PARAMETER].string_value if PARAMETER in config.parameters else ""


def name_in_ledger(model: str, variant: str) -> str:
    """Under which name the ledger has what the variant ran of a model."""
    return f"{model}~{variant}"


class VariantSession:
    """The session of the variant, and the accounts of what it ran.

    Args:
        lent: its version.
        visits: where it is accounted.
        number: under this number of the ledger.
        clock: the clock.
    """

    def __init__(self, lent: Lent, visits: Visits, number: int, clock: Clock) -> None:
        self.lent, self._visits, self.number, self._clock = lent, visits, number, clock
        self._session = lent.running.opened.sessions[0][0]
        self.io = self._session.io

    @property
    def replayable(self) -> bool:
        """See `Session.replayable`."""
        return self._session.replayable

    def run(self, batch: Batch) -> Outputs | Iterator[Piece] | None:
        """See `Session.run`."""
        began, failed = self._clock.now(), None
        try:
            outputs = self._session.run(batch)
            failed = 0
            return outputs
        finally:
            self._visits.write(self.number, batch, batch.rows, began, failed)

    def close(self) -> None:
        """Give the version back."""
        self.lent.running.release()


def with_variant(opened: Opened, lend: Callable[[str], Lent], ledger: Ledger, clock: Clock) -> Opened:
    """The version with the variant that its configuration declares, if it declares one.

    Args:
        opened: the version; it is closed if this raises.
        lend: from the name of a model to its version that runs, held open. Raises ModelMissing.
        ledger: where what the variant runs is accounted.
        clock: the clock.

    Raises:
        InvalidRepository: the variant is not there, or does not take and give the same.
    """
    name = variant_of(opened.config)
    if not name:
        return opened
    try:
        _check_can_vary(opened)
        lent = lend(name)
        try:
            _check_is_alike(opened.spec, lent)
        except BaseException:
            lent.running.release()
            raise
    except BaseException:
        opened.close()
        raise
    own = name_in_ledger(opened.spec.name, name)
    number = ledger.register(replace(opened.spec, name=own, backend=lent.running.opened.spec.backend))
    variant = VariantSession(lent, Visits(ledger.write_batch, clock), number, clock)
    return replace(opened, variant=variant, lent=(*opened.lent, lent), nodes=(*opened.nodes, (own, number)))


def _check_can_vary(opened: Opened) -> None:
    spec = opened.spec
    wrong = (
        "is a graph whose rows go on from one queue to the next"
        if not goes_back(opened.sessions[0][0])
        else "answers a request several times"
        if spec.decoupled
        else "has sequences"
        if spec.sequences
        else ""
    )
    if wrong:
        raise InvalidRepository(f"model '{spec.name}': parameter '{PARAMETER}' is set, and the model {wrong}; leave it out")


def _check_is_alike(spec: ModelSpec, lent: Lent) -> None:
    """Whatever of the model is gathered must be what the variant takes, and whatever it gives must be what was promised."""
    running = lent.running
    other = running.opened.spec
    for what, ours, theirs in (("input", spec.inputs, other.inputs), ("output", spec.outputs, other.outputs)):
        mine, found = ({tensor.name: tensor for tensor in each} for each in (ours, theirs))
        for name in [*mine, *found]:
            told = [
                f"{tensor.datatype}{format_shape(tensor.dims)}" if (tensor := each.get(name)) is not None else "not there"
                for each in (mine, found)
            ]
            if told[0] != told[1] or mine[name].reshape != found[name].reshape or mine[name].optional != found[name].optional:
                raise _differs(spec, other, f"{what} '{name}' is {told[0]} here, and {told[1]} there")
    if other.max_batch_size < spec.max_batch_size or bool(other.max_batch_size) != bool(spec.max_batch_size):
        raise _differs(spec, other, f"max_batch_size is {spec.max_batch_size} here, and {other.max_batch_size} there")
    if other.padding != spec.padding:
        raise _differs(spec, other, "their padding is not the same")
    if other.decoupled or other.sequences or not goes_back(running.opened.sessions[0][0]):
        raise _differs(spec, other, "it does not answer each request once, with what came of its rows")


def _differs(spec: ModelSpec, other: ModelSpec, how: str) -> InvalidRepository:
    return InvalidRepository(
        f"model '{spec.name}': '{other.name}' cannot be its variant, which has to take and give the same: {how}"
    )
