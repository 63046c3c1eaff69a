"""One address for several replicas: real HAProxy, real servers, load throughout."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest

from headrace.cluster.balancer import orphans
from headrace.cluster.haproxy import AdminSocket
from tests.cluster.plain import (
    PATIENCE,
    Cluster,
    Load,
    Process,
    add_logged_model,
    answer_of,
    channel,
    cluster,
    message,
    run_of,
    stub,
)
from tests.waiting import until
from tools.ports import free_port

ANY_PORT = "127.0.0.1:0"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three replicas of `m`. Tests leave as many, though not the same."""
    with cluster(tmp_path_factory.mktemp("cluster")) as started:
        add_logged_model(started.repository, "m", started.log)
        add_logged_model(started.repository, "slow", started.log, pace=1.0)
        started.add_replicas(3, "--load-model=*")
        yield started


@pytest.fixture(scope="module")
def balancer(shared: Cluster) -> Process:
    return shared.balance()


def haproxy_of(balancer: Process) -> int:
    (pid,) = orphans(run_of(ANY_PORT, balancer.pid))
    return pid


def check(shared: Cluster, load: Load, killed: int = 0) -> None:
    """Every request has one outcome; one that was answered ran once, and one that was not at most once, in who was killed."""
    ran = shared.executions()
    assert set(load.codes) <= {"answered", "UNAVAILABLE"}, load.codes
    for number, outcome in load.outcomes.items():
        if outcome == "answered":
            assert len(ran[number]) == 1
        else:
            assert ran.get(number, []) in ([], [killed]) if killed else len(ran.get(number, [])) <= 1


def test_requests_of_one_channel_reach_every_replica(shared: Cluster, balancer: Process) -> None:
    with Load(balancer.grpc, clients=32, most=10_000) as load:
        load.wait()
    assert load.codes == {"answered": 10_000}
    check(shared, load)
    ran = shared.executions()
    spread = Counter(ran[number][0] for number in load.outcomes)
    assert set(spread) == {replica.pid for replica in shared.replicas}
    assert max(spread.values()) / min(spread.values()) <= 1.5


def test_replicas_come_and_go_without_a_loss(shared: Cluster, balancer: Process) -> None:
    with Load(balancer.grpc) as load:
        load.wait_for(200)
        leaving = shared.replicas.pop(0)
        told = leaving.stop()
        assert leaving.process.returncode == 0, told
        shared.wait_taken_in()
        load.wait_for(200)
        (added,) = shared.add_replicas(1, "--load-model=*")
        until(lambda: any(added.pid in ran for ran in shared.executions().values()), PATIENCE)
    assert set(load.codes) == {"answered"}
    check(shared, load)


def test_a_replica_that_is_killed_takes_nothing_with_it_but_what_it_had(shared: Cluster, balancer: Process) -> None:
    with Load(balancer.grpc) as load:
        load.wait_for(200)
        dying = shared.replicas.pop(0)
        dying.process.kill()
        shared.wait_taken_in()
        load.wait_for(200)
    check(shared, load, killed=dying.pid)
    assert load.codes["UNAVAILABLE"] <= 16
    shared.add_replicas(1, "--load-model=*")
    shared.wait_taken_in()


def test_a_balancer_that_is_killed_comes_back_at_the_same_address(shared: Cluster, balancer: Process) -> None:
    with Load(balancer.grpc) as load:
        load.wait_for(200)
        dying = haproxy_of(balancer)
        os.kill(dying, signal.SIGKILL)
        until(lambda: orphans(run_of(ANY_PORT, balancer.pid)) not in ([], [dying]), PATIENCE)
        load.wait_for(200)
    check(shared, load)
    # Nobody was refused: what failed had been sent, or was being sent, over the connection that broke.
    assert all(told.startswith("Stream removed (") for told in load.details), load.details


def test_a_haproxy_is_replaced_and_runs_nothing_twice(shared: Cluster, balancer: Process) -> None:
    with Load(balancer.grpc) as load:
        load.wait_for(200)
        before = haproxy_of(balancer)
        balancer.process.send_signal(signal.SIGHUP)
        until(
            lambda: (
                orphans(run_of(ANY_PORT, balancer.pid)) not in ([before], [])
                and before not in orphans(run_of(ANY_PORT, balancer.pid))
            ),
            PATIENCE,
        )
        load.wait_for(200)
    check(shared, load)
    # What a client sends in the moment in which its connection ends has not run.
    assert all("GOAWAY" in told for told in load.details), load.details
    assert not [n for n, outcome in load.outcomes.items() if outcome != "answered" and n in shared.executions()]


def test_a_stream_stays_where_it_is_while_replicas_come_and_go(shared: Cluster, balancer: Process) -> None:
    first, more = threading.Event(), threading.Event()
    numbers = [1_000_000_000 + number for number in range(20)]

    def requests() -> Iterator[object]:
        yield from (message(number) for number in numbers[:10])
        assert more.wait(PATIENCE)
        yield from (message(number) for number in numbers[10:])

    with channel(balancer.grpc) as opened:
        answers = []
        for answer in stub(opened).ModelStreamInfer(requests(), timeout=PATIENCE):
            answers.append(answer_of(answer.infer_response))
            if len(answers) == 10:
                shared.add_replicas(1, "--load-model=*")
                shared.wait_taken_in()
                more.set()
        first.set()
    assert answers == numbers
    assert len({pid for number in numbers for pid in shared.executions()[number]}) == 1
    shared.replicas.pop().stop()
    shared.wait_taken_in()


def test_large_messages_pass_whole(balancer: Process) -> None:
    with channel(balancer.grpc) as opened:
        assert answer_of(stub(opened).ModelInfer(message(2_000_000_000, width=4 << 20), timeout=PATIENCE)) == 2_000_000_000


def test_who_does_not_read_stops_nobody_else(shared: Cluster, balancer: Process) -> None:
    numbers = [1_500_000_000 + number for number in range(6)]
    with ExitStack() as stack, Load(balancer.grpc) as load:
        clients = [stub(stack.enter_context(channel(balancer.grpc))) for _ in numbers]
        asked = [iter([message(number, width=1 << 18)] * 4) for number in numbers]
        streams = [client.ModelStreamInfer(each, timeout=PATIENCE) for client, each in zip(clients, asked, strict=True)]
        until(lambda: set(numbers) <= shared.executions().keys(), PATIENCE)
        load.wait_for(300)
        for number, stream in zip(numbers, streams, strict=True):
            assert [answer_of(answer.infer_response) for answer in stream] == [number] * 4
    assert set(load.codes) == {"answered"}


def test_who_gives_up_is_given_up_by_the_replica(shared: Cluster, balancer: Process) -> None:
    """What waits there and is wanted no more, because of its deadline or because its client says so, does not run."""
    key = (("x-headrace-sequence", "one replica"),)
    with channel(balancer.grpc) as opened:
        infer = stub(opened).ModelInfer
        running = infer.future(message(2_000_000_010, "slow"), timeout=PATIENCE, metadata=key)
        until(lambda: 2_000_000_010 in shared.executions(), PATIENCE)
        cancelled = infer.future(message(2_000_000_011, "slow"), timeout=PATIENCE, metadata=key)
        with pytest.raises(grpc.RpcError) as late:
            infer(message(2_000_000_012, "slow"), timeout=0.3, metadata=key)
        cancelled.cancel()
        assert answer_of(running.result(PATIENCE)) == 2_000_000_010
        assert answer_of(infer(message(2_000_000_013, "slow"), timeout=PATIENCE, metadata=key)) == 2_000_000_013
    assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert not {2_000_000_011, 2_000_000_012} & shared.executions().keys()


@pytest.mark.slow
def test_a_replica_that_hangs_gets_nothing_new(shared: Cluster, balancer: Process) -> None:
    (admin,) = (AdminSocket(path) for path in run_of(ANY_PORT, balancer.pid).glob("*.sock"))
    hanging = shared.replicas[0]

    def is_up() -> bool:
        return all(server.is_up for server in admin.servers()["replicas"].values())

    with Load(balancer.grpc, timeout=3.0) as load:
        load.wait_for(200)
        hanging.process.send_signal(signal.SIGSTOP)
        until(lambda: not is_up(), PATIENCE)
    assert set(load.codes) <= {"answered", "DEADLINE_EXCEEDED"}
    with Load(balancer.grpc, most=500) as meanwhile:
        meanwhile.wait()
    assert meanwhile.codes == {"answered": 500}
    hanging.process.send_signal(signal.SIGCONT)
    until(is_up, PATIENCE)
    ran = shared.executions()
    assert all(len(ran.get(number, [])) <= 1 for number in (*load.outcomes, *meanwhile.outcomes))


def test_nothing_of_a_balancer_is_for_others(balancer: Process) -> None:
    run = run_of(ANY_PORT, balancer.pid)
    assert run.stat().st_mode & 0o777 == 0o700
    (admin,) = run.glob("*.sock")
    assert admin.stat().st_mode & 0o777 == 0o600
    listening = subprocess.run(["ss", "-Hltnp"], capture_output=True, text=True, check=True).stdout
    mine = [line.split()[3] for line in listening.splitlines() if f"pid={haproxy_of(balancer)}," in line]
    assert mine == [balancer.grpc]
    assert "Name: HAProxy" in AdminSocket(admin).ask("show info")


def test_where_no_replica_is_clients_are_told_so(tmp_path: Path) -> None:
    with cluster(tmp_path) as empty:
        balancer = empty.balance()
        with channel(balancer.grpc) as opened, pytest.raises(grpc.RpcError) as caught:
            stub(opened).ModelInfer(message(1), timeout=PATIENCE)
        assert (caught.value.code(), caught.value.details()) == (
            grpc.StatusCode.UNAVAILABLE,
            "no replica takes requests now; try again",
        )
        told = balancer.stop()
        assert balancer.process.returncode == 0, told


def test_a_balancer_that_a_crash_left_is_replaced_and_only_that(shared: Cluster, balancer: Process) -> None:
    address = f"127.0.0.1:{free_port()}"
    crashed = shared.start_balancer(address)
    crashed.wait_ready()
    run = run_of(address, crashed.pid)
    (orphan,) = orphans(run)

    second = shared.start_balancer(address)
    told = second.process.communicate(timeout=PATIENCE)[1]
    assert second.process.returncode == 2
    assert f"another balancer runs from {run}" in told

    crashed.process.kill()
    crashed.process.wait()
    mine, more = haproxy_of(balancer), threading.Event()

    def requests() -> Iterator[object]:
        yield message(2_000_000_002)
        assert more.wait(PATIENCE)
        yield message(2_000_000_003)

    with channel(address) as opened, Load(address) as load:  # it answers all the same
        stream = stub(opened).ModelStreamInfer(requests(), timeout=PATIENCE)
        assert answer_of(next(stream).infer_response) == 2_000_000_002
        load.wait_for(100)
        third = shared.start_balancer(address)
        third.wait_ready()
        (successor,) = set(orphans(run)) - {orphan}
        load.wait_for(100)
        assert set(orphans(run)) == {orphan, successor}  # it has the stream
        more.set()
        assert [answer_of(each.infer_response) for each in stream] == [2_000_000_003]
    until(lambda: orphans(run) == [successor], PATIENCE)
    assert haproxy_of(balancer) == mine
    # Nobody was refused; what each client sent in the moment its connection ended may be lost.
    assert load.codes.total() - load.answered <= 16, load.details
    ran = shared.executions()
    assert all(len(ran.get(number, [])) <= 1 for number in load.outcomes)
    third.stop()
    assert not run.exists()


def test_a_port_in_use_is_said_so(shared: Cluster) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        refused = shared.start_balancer(address)
        told = refused.process.communicate(timeout=PATIENCE)[1]
    assert refused.process.returncode == 2
    assert (
        told
        == f"headrace: cannot listen on {address}: Address already in use; choose another one, or port 0 for any that is free\n"
    )
