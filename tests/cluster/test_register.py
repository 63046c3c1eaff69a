"""The register of the directory's actor: who has published what, and who has gone silent."""

from __future__ import annotations

from headrace.cluster.actors import SILENT_SECONDS, Register
from headrace.cluster.directory import BalancerReport, Replica, ReplicaState


def replica(id: str, state: ReplicaState = ReplicaState.READY) -> Replica:
    return Replica(id, f"{id}:1", f"{id}:2", state, "node")


def test_what_is_published_is_seen_until_it_is_not_published_any_more() -> None:
    register = Register("run", is_restarted=False, now=0)
    register.hear("a", [replica("r1"), replica("r2")], [], now=1)
    register.hear("b", [], [BalancerReport("n", "n:1", ("r1",))], now=1)
    assert set(register.view().replicas) == {"r1", "r2"}
    assert not register.view().is_out("r1")
    register.hear("a", [replica("r2", ReplicaState.DRAINING)], [], now=2)
    assert register.view().replicas == {"r2": replica("r2", ReplicaState.DRAINING)}


def test_the_token_changes_with_the_view_and_only_then() -> None:
    register = Register("run", is_restarted=False, now=0)
    tokens = [register.token]
    register.hear("a", [replica("r1")], [], now=1)
    tokens.append(register.token)
    register.hear("a", [replica("r1")], [], now=2)
    assert register.token == tokens[-1]
    register.hear("a", [replica("r1", ReplicaState.DRAINING)], [], now=3)
    tokens.append(register.token)
    assert len(set(tokens)) == 3
    assert register.token != Register("another run", is_restarted=False, now=0).token


def test_who_is_silent_is_gone_with_all_of_it() -> None:
    register = Register("run", is_restarted=False, now=0)
    register.hear("a", [replica("r1")], [BalancerReport("n", "n:1")], now=0)
    register.hear("b", [replica("r2")], [], now=0)
    assert register.take_turn("a")
    register.hear("b", [replica("r2")], [], now=SILENT_SECONDS)
    register.forget_silent(now=SILENT_SECONDS)
    assert set(register.view().replicas) == {"r1", "r2"}
    assert not register.take_turn("b")
    register.forget_silent(now=SILENT_SECONDS + 0.1)
    assert (set(register.view().replicas), set(register.view().balancers)) == ({"r2"}, set())
    assert register.take_turn("b")


def test_turns_are_one_after_the_other() -> None:
    register = Register("run", is_restarted=False, now=0)
    assert register.take_turn("a")
    assert not register.take_turn("b")
    register.end_turn("b")
    assert not register.take_turn("b")
    register.end_turn("a")
    assert register.take_turn("b")


def test_the_first_replica_begins_anew_and_a_restarted_register_does_not() -> None:
    fresh = Register("run", is_restarted=False, now=0)
    assert fresh.hear("a", [replica("r1")], [], now=1)
    assert not fresh.hear("b", [replica("r2")], [], now=1)
    restarted = Register("run", is_restarted=True, now=10)
    assert restarted.settled_at == 10 + SILENT_SECONDS
    assert not restarted.hear("a", [replica("r1")], [], now=11)
