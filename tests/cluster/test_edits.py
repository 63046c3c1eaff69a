"""What an agent does to a balancer: pure."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.cluster.agent import Edit, Verb, edits
from headrace.cluster.directory import Replica, ReplicaState
from headrace.cluster.haproxy import Admin, Server

STARTING, READY, DRAINING = ReplicaState
HERE = "127.0.0.1:1"


def replica(name: str, state: ReplicaState, address: str = HERE) -> Replica:
    return Replica(name, address, "127.0.0.1:2", state, "node")


@pytest.mark.parametrize(
    ("state", "server", "expected"),
    [
        (None, None, []),
        (STARTING, None, []),
        (READY, None, [Edit(Verb.ADD, "r", HERE)]),
        (DRAINING, None, []),
        (STARTING, Server(HERE), [Edit(Verb.DRAIN, "r")]),
        (READY, Server(HERE), []),
        (READY, Server(HERE, is_up=False), []),
        (READY, Server(HERE, Admin.DRAINED), [Edit(Verb.ENABLE, "r")]),
        (READY, Server(HERE, Admin.MAINTENANCE), [Edit(Verb.ENABLE, "r")]),
        (DRAINING, Server(HERE, streams=3), [Edit(Verb.DRAIN, "r")]),
        (DRAINING, Server(HERE, Admin.DRAINED), []),
        (None, Server(HERE, streams=3), [Edit(Verb.HOLD, "r")]),
        (None, Server(HERE, Admin.DRAINED), [Edit(Verb.HOLD, "r")]),
        (None, Server(HERE, Admin.MAINTENANCE, streams=3), []),
        (None, Server(HERE, Admin.MAINTENANCE), [Edit(Verb.REMOVE, "r")]),
        (READY, Server("127.0.0.1:9"), [Edit(Verb.HOLD, "r")]),
        (READY, Server("127.0.0.1:9", Admin.MAINTENANCE), [Edit(Verb.REMOVE, "r")]),
    ],
)
def test_one_server(state: ReplicaState | None, server: Server | None, expected: list[Edit]) -> None:
    replicas = {} if state is None else {"r": replica("r", state)}
    assert edits(replicas, {} if server is None else {"r": server}) == expected


NAMES = st.sampled_from(["a", "b", "c"])
ADDRESSES = st.sampled_from([HERE, "127.0.0.1:9"])
SERVERS = st.dictionaries(
    NAMES,
    st.builds(Server, ADDRESSES, st.sampled_from([Admin.READY, Admin.DRAINED, Admin.MAINTENANCE]), st.booleans(), st.just(0)),
)


@given(states=st.dictionaries(NAMES, st.tuples(st.sampled_from(list(ReplicaState)), ADDRESSES)), servers=SERVERS)
@settings(deadline=None)
def test_edits_come_to_an_end_with_the_servers_that_are_ready(
    states: dict[str, tuple[ReplicaState, str]], servers: dict[str, Server]
) -> None:
    replicas = {name: replica(name, state, address) for name, (state, address) in states.items()}
    servers = dict(servers)
    for _ in range(4):
        for verb, name, address in edits(replicas, servers):
            match verb:
                case Verb.ADD:
                    assert name not in servers
                    servers[name] = Server(address)
                case Verb.REMOVE:
                    assert servers.pop(name).admin is Admin.MAINTENANCE
                case Verb.ENABLE | Verb.DRAIN | Verb.HOLD:
                    admin = {Verb.ENABLE: Admin.READY, Verb.DRAIN: Admin.DRAINED, Verb.HOLD: Admin.MAINTENANCE}[verb]
                    servers[name] = Server(servers[name].address, admin)
    assert edits(replicas, servers) == []
    ready = {name: server.address for name, server in servers.items() if server.admin is Admin.READY}
    assert ready == {name: each.address for name, each in replicas.items() if each.state is READY}
