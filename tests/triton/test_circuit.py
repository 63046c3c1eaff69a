"""When a server is left alone: policy, on instants that are arguments."""

from __future__ import annotations

from headrace.backends.triton.circuit import Circuit
from headrace.clock import MILLISECOND, SECOND


def opened_at(now: int) -> Circuit:
    circuit = Circuit()
    circuit.down("gone", now)
    return circuit


def test_three_in_a_row_that_are_not_answered_open_it() -> None:
    circuit = Circuit()
    for now in (0, 1):
        circuit.timed_out("silent", now)
    circuit.answered()
    for now in (2, 3):
        circuit.timed_out("silent", now)
        assert not circuit.is_open
    circuit.timed_out("silent", 4)
    assert circuit.why == "silent"
    assert circuit.wait(4) == 100 * MILLISECOND


def test_one_that_is_gone_opens_it_at_once_and_all_who_find_out_are_one_failure() -> None:
    circuit = opened_at(0)
    circuit.down("gone", 0)
    assert circuit.is_open
    assert circuit.wait(0) == 100 * MILLISECOND


def test_each_look_in_vain_waits_longer_and_none_for_ever() -> None:
    circuit, now, waits = opened_at(0), 0, list[int]()
    for _ in range(12):
        now += circuit.wait(now)
        circuit.looked("still gone", now)
        waits.append(circuit.wait(now))
    assert waits[:3] == [200 * MILLISECOND, 400 * MILLISECOND, 800 * MILLISECOND]
    assert waits[-1] == 30 * SECOND
    assert circuit.why == "still gone"


def test_one_that_was_found_well_is_on_trial() -> None:
    circuit = opened_at(0)
    circuit.looked("", 100 * MILLISECOND)
    assert not circuit.is_open
    circuit.timed_out("silent", SECOND)
    assert circuit.is_open, "the first failure opens it again"
    assert circuit.wait(SECOND) == 200 * MILLISECOND, "and for longer"
    circuit.looked("", 2 * SECOND)
    circuit.answered()
    circuit.down("gone", 3 * SECOND)
    assert circuit.wait(3 * SECOND) == 100 * MILLISECOND, "an answer ends the trial"


def test_a_look_at_one_that_is_well_changes_nothing() -> None:
    circuit = Circuit()
    circuit.timed_out("silent", 0)
    circuit.looked("", 0)
    circuit.timed_out("silent", 0)
    assert not circuit.is_open
    circuit.timed_out("silent", 0)
    assert circuit.is_open


def test_a_look_that_finds_something_wrong_opens_it() -> None:
    circuit = Circuit()
    circuit.looked("changed", 0)
    assert circuit.why == "changed"
