"""The directory of one machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from headrace.cluster.directory import BalancerReport, Call, FileDirectory, Replica, ReplicaState
from headrace.errors import ChangeUnderWay, InvalidDirectory

OTHER = """
import sys
from pathlib import Path
from headrace.cluster.directory import BalancerReport, FileDirectory, Replica, ReplicaState
directory = FileDirectory(Path(sys.argv[1]))
directory.publish(Replica("other", "127.0.0.1:1", "127.0.0.1:2", ReplicaState.READY, "node"))
directory.report(BalancerReport("b", "127.0.0.1:3", ("other",)))
with directory.turn(1):
    print("there", flush=True)
    sys.stdin.read()
"""
"""A process that is in the directory, and has the turn, until it ends."""


def replica(name: str, state: ReplicaState = ReplicaState.READY) -> Replica:
    return Replica(name, "127.0.0.1:1", "127.0.0.1:2", state, "node")


def test_what_is_published_is_seen_by_all_until_it_is_withdrawn(tmp_path: Path) -> None:
    mine, theirs = FileDirectory(tmp_path), FileDirectory(tmp_path)
    empty = theirs.view()
    assert (dict(empty.replicas), dict(empty.balancers)) == ({}, {})
    mine.publish(replica("a", ReplicaState.STARTING))
    mine.report(BalancerReport("b", "127.0.0.1:3", ("a",)))
    seen = theirs.view()
    assert dict(seen.replicas) == {"a": replica("a", ReplicaState.STARTING)}
    assert dict(seen.balancers) == {"b": BalancerReport("b", "127.0.0.1:3", ("a",))}
    assert seen.token != empty.token
    assert theirs.changed(empty.token, 10).token == seen.token
    assert theirs.changed(seen.token, 0).token == seen.token
    mine.publish(replica("a", ReplicaState.DRAINING))
    assert theirs.view().replicas["a"].state is ReplicaState.DRAINING
    assert not theirs.view().is_out("a")
    mine.report(BalancerReport("b", "127.0.0.1:3"))
    assert theirs.view().is_out("a")
    for _ in range(2):
        mine.withdraw("a")
        mine.withdraw_balancer("b")
    assert theirs.view() == empty


def test_balancers_have_settled_when_each_has_all_that_are_ready(tmp_path: Path) -> None:
    directory = FileDirectory(tmp_path)
    directory.publish(replica("a", ReplicaState.READY))
    directory.publish(replica("b", ReplicaState.STARTING))
    assert directory.view().is_settled  # nobody balances
    directory.report(BalancerReport("x", "127.0.0.1:3", ("a",)))
    directory.report(BalancerReport("y", "127.0.0.1:4"))
    assert not directory.view().is_settled
    directory.report(BalancerReport("y", "127.0.0.1:4", ("a", "gone")))
    assert directory.view().is_settled
    directory.publish(replica("b", ReplicaState.READY))
    assert not directory.view().is_settled


def test_a_process_that_is_killed_takes_what_it_published_with_it(tmp_path: Path) -> None:
    directory = FileDirectory(tmp_path)
    with subprocess.Popen([sys.executable, "-c", OTHER, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"there\n"
        view = directory.view()
        assert (list(view.replicas), list(view.balancers), view.is_out("other")) == (["other"], ["b"], False)
        with pytest.raises(ChangeUnderWay, match="busy with another change for 0 s"), directory.turn(0):
            pass
        other.kill()
        other.wait()
    assert directory.changed(view.token, 10).replicas == {}
    assert directory.view().is_out("other")
    with directory.turn(0):
        pass


def test_the_first_replica_begins_without_what_others_were_told(tmp_path: Path) -> None:
    directory = FileDirectory(tmp_path)
    directory.publish(replica("a"))
    directory.keep("x", Call("/one", b"1"))
    directory.keep("y", Call("/two", b"2\n\x00"))
    directory.keep("x", Call("/one", b"3"))
    directory.publish(replica("b"))
    assert FileDirectory(tmp_path).kept() == [Call("/two", b"2\n\x00"), Call("/one", b"3")]
    directory.withdraw("a")
    directory.withdraw("b")
    directory.publish(replica("c"))
    assert directory.kept() == []


def test_a_file_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InvalidDirectory, match="cannot be a directory of replicas: Not a directory"):
        FileDirectory(tmp_path / "file")
