"""The slow loop: once a second, from how the latency budget burns to what steers a version. Pure: all it needs are arguments.

Three levers, each moved by a step that has a bound:

    caution   prediction quantile, margin and patience with company, between -1 (a budget to spend on throughput) and 1
    variant   the share of batches that run on the declared cheaper variant, 0 to 1
    shed      how many classes are refused, the lowest first; a part of one is a part of its requests

While the budget burns, as many more of a hundred batches go to the variant as requests of a hundred were refused in the last
second, and a third as many as were late: work that is r too much is r less with it, or not quite, and the next second says how
much is left. So it comes near from below. Who is late may be so because nobody knew yet how slow the model has become; that says
less. And of what is bad in the second after a step, some dates from before it: that step is half as large. Where there is no
variant, or no more of it, the lowest classes are shed, in the same steps. Requests that came too late ask for caution; those that
were refused because they would have been ask for less of it, for a prediction that is too careful refuses who could have been
served.

Who gives something back too soon takes it again a moment later. So a budget must be calm for a while first, and for three times
as long if what was given back had to be taken again (after the exponential backoff of Metcalfe and Boggs, "Ethernet", 1976). It
is given back slowly, in steps that are smaller than those that took it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from headrace.clock import SECOND
from headrace.scheduling.admission import SHARE_OF
from headrace.scheduling.steering import QUANTILE, Steering

BURNS, CALM = 1.0, 0.5
"""Burn rates from which on a budget burns, and up to which it is calm. In between it takes three times as long to be."""
TAKES, GIVES = 0.5, 0.05
"""The largest step of a lever, towards caution and back."""
_FEW = 20
"""Requests a second below which one of them says little."""
_HOLD_NS, _LONGEST_HOLD_NS = 10 * SECOND, 270 * SECOND
_SOON_NS = 10 * SECOND
"""Who has to take so soon after giving has given too soon."""
_GAP_NS = 3 * SECOND
"""More than that between two steps, and what happened in between is not known."""
_PLENTY = 0.5
"""Of the budget, what must be left of it to be spent on throughput."""
_MOST_SHED = SHARE_OF - SHARE_OF // 16
"""Of a class: one request in sixteen is served, again and again."""
_QUANTILES = (0.5, QUANTILE, 0.95)
"""At caution -1, 0 and 1."""
_MOST_MARGIN = 8
"""The margin at full caution is one part in so many of the objective."""


class Move(Enum):
    """Which way a decision goes."""

    NONE = "holds"
    TAKE = "takes"
    GIVE = "gives back"
    SPEND = "spends"


@dataclass(frozen=True, slots=True)
class Levers:
    """See the head of this file."""

    caution: float = 0.0
    variant: float = 0.0
    shed: float = 0.0


@dataclass(frozen=True, slots=True)
class Seen:
    """What a decision goes by. Of several objectives of a version, that which burns most.

    `fast` and `slow` are burn rates over the windows that steer, `left` is the share of the budget that is left. Of the last
    second are `requests`, those of them that were `bad`, and those of the bad that were refused because they would have been
    late. `allowed` is the share that may be bad.

    `classes` is how many there are, and `sheddable` how many of the lowest the objective does not speak of. `threshold_ns` is how
    soon it wants an answer.
    """

    fast: float
    slow: float
    left: float
    requests: float
    bad: float
    refused: float
    allowed: float
    threshold_ns: int
    has_variant: bool = False
    classes: int = 0
    sheddable: int = 0


@dataclass(frozen=True, slots=True)
class State:
    """What the controller of one version remembers.

    `calm_ns` is for how long nothing has burnt, `hold_ns` how long that must be before something is given back, `gave_at` and
    `stepped_at` are instants, 0 if never. `is_taking`: the step before took.
    """

    levers: Levers = Levers()
    calm_ns: int = 0
    hold_ns: int = _HOLD_NS
    gave_at: int = 0
    stepped_at: int = 0
    is_taking: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    """What was decided, from what, and why. `why` is a sentence."""

    at: int
    before: Levers
    levers: Levers
    move: Move
    why: str
    seen: Seen
    state: State

    @property
    def steering(self) -> Steering:
        """What follows from it for the version."""
        caution, seen = self.levers.caution, self.seen
        low, usual, high = _QUANTILES
        return Steering(
            quantile=usual + caution * (high - usual if caution > 0 else usual - low),
            margin_ns=int(max(0.0, caution) * seen.threshold_ns) // _MOST_MARGIN,
            patience=1 - caution,
            shed=_shed(self.levers.shed, seen.classes),
            variant=round(self.levers.variant * SHARE_OF),
        )


def decide(state: State, seen: Seen, now: int) -> Decision:
    """One step.

    Args:
        state: of the step before.
        seen: what has happened since.
        now: the instant, in ns.
    """
    before = state.levers
    lasted = now - state.stepped_at
    if not state.stepped_at or not 0 < lasted <= _GAP_NS:
        why = "what happened since the last step is not known"
        return Decision(now, before, before, Move.NONE, why, seen, replace(state, stepped_at=now))
    last = seen.bad / seen.requests / seen.allowed if seen.requests else 0.0
    if seen.fast >= BURNS and last >= BURNS:
        levers, move, why = _take(before, seen, again=state.is_taking)
        is_too_soon = 0 < now - state.gave_at <= _SOON_NS and state.gave_at > 0
        hold = min(3 * state.hold_ns, _LONGEST_HOLD_NS) if is_too_soon else state.hold_ns
        after = State(levers, 0, hold, 0 if is_too_soon else state.gave_at, now, is_taking=True)
        return Decision(now, before, levers, move, why, seen, after)
    # What burns less than it may is no reason to keep what was taken for ever, but one to wait longer.
    calm = state.calm_ns + (lasted if max(seen.fast, last) <= CALM else lasted // 3)
    levers, move, why = _give(before, seen, calm, state.hold_ns)
    hold = _HOLD_NS if levers == Levers(levers.caution) and calm > 2 * state.hold_ns else state.hold_ns
    gave_at = now if move is Move.GIVE else state.gave_at
    return Decision(now, before, levers, move, why, seen, State(levers, calm, hold, gave_at, now))


def _take(levers: Levers, seen: Seen, *, again: bool) -> tuple[Levers, Move, str]:
    refused, late = (count / max(seen.requests, _FEW) for count in (seen.refused, seen.bad - seen.refused))
    step = min(refused + late / 3, TAKES) / (2 if again else 1)
    wanted = min(max(levers.caution + late - refused, 0.0), 1.0)
    levers = replace(levers, caution=min(max(wanted, levers.caution - TAKES), levers.caution + TAKES))
    if seen.has_variant and levers.variant < 1:
        return replace(levers, variant=min(1.0, levers.variant + step)), Move.TAKE, "the budget burns: more goes to the variant"
    if levers.shed < seen.sheddable:
        shed = min(float(seen.sheddable), levers.shed + step)
        return replace(levers, shed=shed), Move.TAKE, "the budget burns: the lowest classes make room"
    return levers, Move.TAKE, "the budget burns"


def _give(levers: Levers, seen: Seen, calm: int, hold: int) -> tuple[Levers, Move, str]:
    if calm < hold:
        return levers, Move.NONE, f"the budget is calm; for {hold // SECOND} s, before anything is given back"
    if levers.shed > 0:
        return replace(levers, shed=max(0.0, levers.shed - GIVES)), Move.GIVE, "the budget is calm: classes come back"
    if levers.variant > 0:
        return replace(levers, variant=max(0.0, levers.variant - GIVES)), Move.GIVE, "the budget is calm: less to the variant"
    if levers.caution > 0:
        return replace(levers, caution=max(0.0, levers.caution - GIVES)), Move.GIVE, "the budget is calm: less caution"
    is_quiet = max(seen.fast, seen.slow) <= CALM
    if levers.caution > -1 and seen.left > _PLENTY and is_quiet and calm >= 3 * hold:
        return replace(levers, caution=max(-1.0, levers.caution - GIVES)), Move.SPEND, "there is budget to spend on throughput"
    return levers, Move.NONE, "the budget is calm"


def _shed(shed: float, classes: int) -> dict[int, int]:
    """Of each class, the share that is refused: the lowest first, and never the first class."""
    shares = {level: round((shed - (classes - level)) * SHARE_OF) for level in range(2, classes + 1)}
    return {level: min(share, _MOST_SHED) for level, share in shares.items() if share > 0}
