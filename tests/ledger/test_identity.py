"""Ids of spans: the same for whoever makes them, and never the same for two things."""

from __future__ import annotations

from headrace.ledger.identity import Identity, Part


def test_whoever_knows_the_numbers_makes_the_same_id() -> None:
    assert Identity("4711-abc").of(Part.REQUEST, 3, 17) == Identity("4711-abc").of(Part.REQUEST, 3, 17)


def test_no_two_things_have_the_same_id() -> None:
    one, other = Identity("4711-abc"), Identity("4711-abd")
    made = [
        each.of(part, model, number)
        for each in (one, other)
        for part in Part
        for model in (0, 1, 2, 255, 256, 1 << 31)
        for number in (0, 1, 2, 3, 1 << 32, (1 << 64) - 1)
    ]
    assert len(set(made)) == len(made)
    assert all(0 < each < 1 << 64 for each in made)
