"""Which actor makes which split."""

from __future__ import annotations

from headrace.cluster.rota import Rota


def test_two_each_in_order() -> None:
    rota = Rota(range(5))
    assert [rota.give(0), rota.give(1), rota.give(0), rota.give(0)] == [0, 1, 2, None]
    rota.made(0, 0)
    assert [rota.give(0), rota.give(1), rota.give(1)] == [3, 4, None]
    assert not rota.is_done
    for actor, split in ((0, 2), (0, 3), (1, 1), (1, 4)):
        rota.made(actor, split)
    assert rota.is_done


def test_what_an_actor_died_of_is_made_by_itself() -> None:
    rota = Rota(range(4))
    assert [rota.give(0), rota.give(0)] == [0, 1]
    assert rota.died(0) is None
    assert [rota.give(1), rota.give(1), rota.give(2), rota.give(2)] == [0, None, 1, None]
    rota.made(2, 1)
    assert [rota.give(2), rota.give(2)] == [2, 3]
    assert rota.died(1) is None
    assert [rota.give(2), rota.give(3)] == [None, 0]
    assert rota.died(3) == 0


def test_an_actor_that_had_nothing_dies() -> None:
    rota = Rota(range(1))
    assert rota.died(7) is None
    assert rota.waiting == 1
