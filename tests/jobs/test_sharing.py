"""How much a job that shares a server asks for, by a clock that nobody waits for."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from headrace.clock import MILLISECOND, SECOND
from headrace.jobs.served import PATIENCE_NS
from headrace.jobs.sharing import EVERY_NS, FEW, MANY, MOST, Seen, Share, decide
from headrace.model import Batching
from headrace.request import Request
from headrace.scheduling.admission import due, job_level

BASE_NS = 5 * MILLISECOND


@dataclass
class Shared:
    """A server whose instances take batches of 5 ms one after the other, and a job that goes by it."""

    instances: int = 2
    burn: Callable[[int, int], float | None] = lambda limit, now: 0.0
    refuses: Callable[[int, int], int] = lambda limit, now: 0
    now: int = 100 * SECOND
    share: Share = field(default_factory=Share)

    def step(self) -> Share:
        limit = self.share.limit
        usual = BASE_NS * max(limit, self.instances) // self.instances if limit else 0
        seen = Seen(self.burn(limit, self.now), self.refuses(limit, self.now), usual, BASE_NS)
        self.share = decide(self.share, seen, self.now)
        self.now += EVERY_NS
        return self.share

    def run(self, seconds: float) -> list[int]:
        """The limits, step by step."""
        return [self.step().limit for _ in range(int(seconds * SECOND / EVERY_NS))]


@pytest.mark.parametrize("instances", [1, 2, 4, 8])
def test_a_calm_server_is_kept_busy_and_its_queue_short(instances: int) -> None:
    limits = Shared(instances).run(60)
    assert limits[0] == 1
    assert instances + FEW <= limits[-1] <= instances + MANY
    assert set(limits[-100:]) == {limits[-1]}


@pytest.mark.parametrize("burn", [1.0, 50.0, float("inf")])
def test_nothing_is_sent_while_a_budget_burns_and_soon_all_of_it_again(burn: float) -> None:
    """Within 2 s by at least 95 %, back within 10 s: a step, and what it has to be calm before."""
    begins, ends = 130 * SECOND, 150 * SECOND
    shared = Shared(burn=lambda limit, now: burn if begins <= now < ends else 0.1)
    before = shared.run(30)[-1]
    assert shared.run(20) == [0] * 80
    after = shared.run(10)
    assert after[:3] == [0] * 3
    assert after[-1] == before


def test_a_job_that_makes_the_budget_burn_itself_learns_how_much_that_is() -> None:
    """Ten minutes of it: it burns for a few percent of the time, and the job is at work for most of it."""
    shared = Shared(instances=4, burn=lambda limit, now: 2.0 if limit > 3 else 0.0)
    limits = shared.run(600)
    assert max(limits) == 4
    assert limits.count(4) / len(limits) < 0.05
    assert sum(limit > 0 for limit in limits) / len(limits) > 0.7


def test_between_calm_and_burning_nothing_changes() -> None:
    shared = Shared(burn=lambda limit, now: 0.7 if now > 102 * SECOND else 0.0)
    limits = shared.run(60)
    assert len(set(limits[20:])) == 1
    assert limits[-1] > 0
    waiting = Shared(burn=lambda limit, now: 0.7)
    assert set(waiting.run(60)) == {0}


def test_who_is_refused_asks_for_half_and_waits_as_long_as_it_was_told() -> None:
    shared = Shared(refuses=lambda limit, now: int(now == 130 * SECOND))
    before = shared.run(30)[-1]
    limits = shared.run(30)
    assert limits[:4] == [before // 2] * 4
    assert limits[-1] == before
    assert min(Shared(refuses=lambda limit, now: 1).run(60)[1:]) == 1


def test_without_answers_nothing_is_added() -> None:
    """A batch that waits behind requests for long says nothing yet."""
    share = decide(Share(), Seen(), SECOND)
    assert share.limit == 1
    for second in range(2, 60):
        share = decide(share, Seen(), second * SECOND)
    assert share.limit == 1


def test_whatever_happens_it_stays_within_bounds() -> None:
    chance, share, now = random.Random(7), Share(), 0
    for _ in range(20_000):
        now += chance.randrange(1, SECOND)
        burn = chance.choice([None, 0.0, 0.4, 0.9, 1.0, 9.0])
        seen = Seen(burn, chance.choice([0, 0, 3]), chance.choice([0, BASE_NS, 9 * BASE_NS]), chance.choice([0, BASE_NS]))
        share = decide(share, seen, now)
        assert 0 <= share.limit <= MOST
        assert 1 <= share.ceiling <= MOST
        assert not (burn is not None and burn >= 1 and share.limit)


def test_a_row_never_comes_before_a_request_of_others_however_long_it_waits() -> None:
    """A class is worth an hour in the order of a queue, and no batch of a job waits for more than half a minute."""
    batching, now = Batching(priority_levels=2, default_priority=1), 100 * SECOND
    late = now + PATIENCE_NS
    row = due(Request("m", {}, received=now, priority=job_level(batching), deadline=late), batching, now)
    assert due(Request("m", {}, received=late), batching, late).key < row.key
