"""What concerns all replicas, whichever of them – native or portable – gets the call, or the balancer in front of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2 as pb

from headrace.cluster.directory import Replica, ReplicaState
from tests.cluster.plain import PATIENCE, Cluster, Load, Process, add_logged_model, answer_of, channel, cluster, message, stub
from tests.transport.serving import TRANSPORTS, fails

KEY = "x-headrace-sequence"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Replicas of both kinds, with the models `m` and `s`, and `n` and `broken` to be loaded. `s` has sequences."""
    with cluster(tmp_path_factory.mktemp("cluster")) as started:
        for name, more in (("m", ""), ("n", ""), ("s", "sequence_batching { oldest {} }")):
            add_logged_model(started.repository, name, started.log, more)
        add_logged_model(started.repository, "broken", started.log)
        (started.repository / "broken" / "1" / "model.py").write_text("raise ValueError('it is broken')")
        for transport in ("portable", TRANSPORTS[-1]):
            started.add_replicas(1, "--load-model=m", "--load-model=s", f"--transport={transport}", "--no-strict-readiness")
        yield started


@pytest.fixture(scope="module")
def balancer(shared: Cluster) -> Process:
    return shared.balance()


@pytest.fixture(params=[0, 1], ids=["portable", "native"])
def asked(request: pytest.FixtureRequest, shared: Cluster) -> Iterator[Any]:
    """One of them, to be asked."""
    with channel(shared.replicas[request.param].grpc) as opened:
        yield stub(opened)


@pytest.fixture
def names(shared: Cluster, request: pytest.FixtureRequest) -> tuple[str, str]:
    """The ids of the one that is asked, and of the other."""
    by_address = {replica.address: name for name, replica in shared.directory.view().replicas.items()}
    place = request.node.callspec.params["asked"]
    return by_address[shared.replicas[place].grpc], by_address[shared.replicas[1 - place].grpc]


def ready(shared: Cluster) -> list[list[str]]:
    """What each of them serves."""
    found: list[list[str]] = []
    for replica in shared.replicas:
        with channel(replica.grpc) as opened:
            names = ["m", "n", "s", "broken"]
            found.append([name for name in names if is_ready(stub(opened), name)])
    return found


def is_ready(asked: Any, name: str) -> bool:
    try:
        return asked.ModelReady(pb.ModelReadyRequest(name=name), timeout=PATIENCE).ready
    except grpc.RpcError:
        return False


def load(asked: Any, name: str) -> None:
    asked.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name=name), timeout=PATIENCE)


def unload(asked: Any, name: str) -> None:
    asked.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name=name), timeout=PATIENCE)


def code(error: Any) -> grpc.StatusCode:
    return error.code()


def details(error: Any) -> str:
    return error.details()


def index(asked: Any, **options: Any) -> dict[str, tuple[str, str]]:
    """State and reason by model."""
    answer = asked.RepositoryIndex(pb.RepositoryIndexRequest(**options), timeout=PATIENCE)
    return {entry.name: (entry.state, entry.reason) for entry in answer.models}


def test_a_model_is_loaded_and_unloaded_by_all(shared: Cluster, asked: Any) -> None:
    assert index(asked)["n"][0] != "READY"
    load(asked, "n")
    assert ready(shared) == [["m", "n", "s"]] * 2
    assert index(asked, ready=True) == dict.fromkeys(("m", "n", "s"), ("READY", ""))
    unload(asked, "n")
    assert ready(shared) == [["m", "s"]] * 2
    assert index(asked, ready=True) == dict.fromkeys(("m", "s"), ("READY", ""))


def test_a_model_that_does_not_come_up_is_tried_by_one_only(shared: Cluster, balancer: Process, asked: Any) -> None:
    before = ready(shared)
    with pytest.raises(grpc.RpcError, match="load failed for model 'broken'"):
        load(asked, "broken")
    assert ready(shared) == before
    state, reason = index(asked)["broken"]
    assert (state, "it is broken" in reason) == ("UNAVAILABLE", True)
    with Load(balancer.grpc, most=50) as asking:
        asking.wait()
    assert asking.codes == {"answered": 50}


def test_who_has_not_done_it_is_named(shared: Cluster, asked: Any, names: tuple[str, str]) -> None:
    me, other = names
    refusal = shared.path / f"refuses-{other.partition('-')[0]}"  # an id begins with the process number
    refusal.touch()
    try:
        with pytest.raises(grpc.RpcError) as caught:
            load(asked, "n")
    finally:
        refusal.unlink()
    told = details(caught.value)
    assert told.startswith(f"RepositoryModelLoad was done by {me}, and not by {other}: load failed for model 'n'")
    assert "this replica will not" in told
    state, reason = index(asked)["n"]
    assert state == "UNAVAILABLE"
    assert f"READY on {me}" in reason
    assert f"UNAVAILABLE on {other}: " in reason
    load(asked, "n")
    assert ready(shared) == [["m", "n", "s"]] * 2
    unload(asked, "n")


def test_statistics_are_those_of_all(shared: Cluster, balancer: Process, asked: Any) -> None:
    request = pb.ModelStatisticsRequest(name="m")
    (before,) = asked.ModelStatistics(request, timeout=PATIENCE).model_stats
    with Load(balancer.grpc, most=200) as asking:
        asking.wait()
    (after,) = asked.ModelStatistics(request, timeout=PATIENCE).model_stats
    assert after.inference_count - before.inference_count == 200
    assert after.inference_stats.success.count - before.inference_stats.success.count == 200
    assert after.execution_count - before.execution_count == sum(b.compute_infer.count for b in after.batch_stats) - sum(
        b.compute_infer.count for b in before.batch_stats
    )
    ran = {pid for number in asking.outcomes for pid in shared.executions()[number]}
    assert ran == {replica.pid for replica in shared.replicas}
    with fails(grpc.StatusCode.INVALID_ARGUMENT, "requested model 'none' is not available"):
        asked.ModelStatistics(pb.ModelStatisticsRequest(name="none"), timeout=PATIENCE)


def test_a_replica_that_cannot_be_asked_is_named(shared: Cluster, asked: Any) -> None:
    """It has published itself, lives, and does not listen."""
    shared.directory.publish(Replica("ghost", "127.0.0.1:1", "127.0.0.1:1", ReplicaState.DRAINING, "node"))
    try:
        with pytest.raises(grpc.RpcError) as caught:
            asked.ModelStatistics(pb.ModelStatisticsRequest(), timeout=PATIENCE)
    finally:
        shared.directory.withdraw("ghost")
    assert code(caught.value) is grpc.StatusCode.UNAVAILABLE
    assert ", and not by ghost: " in details(caught.value)


def test_settings_are_those_of_all(shared: Cluster, asked: Any) -> None:
    request = pb.TraceSettingRequest(model_name="m")
    request.settings["trace_rate"].value.append("77")
    logs = pb.LogSettingsRequest()
    logs.settings["log_verbose_level"].uint32_param = 3
    asked.TraceSetting(request, timeout=PATIENCE)
    asked.LogSettings(logs, timeout=PATIENCE)
    for replica in shared.replicas:
        with channel(replica.grpc) as opened:
            told = stub(opened).TraceSetting(pb.TraceSettingRequest(model_name="m"), timeout=PATIENCE)
            assert list(told.settings["trace_rate"].value) == ["77"]
            told = stub(opened).LogSettings(pb.LogSettingsRequest(), timeout=PATIENCE)
            assert told.settings["log_verbose_level"].uint32_param == 3
    request.settings["trace_rate"].value[:] = []
    logs.settings["log_verbose_level"].uint32_param = 0
    asked.TraceSetting(request, timeout=PATIENCE)
    asked.LogSettings(logs, timeout=PATIENCE)


def test_who_comes_later_is_told_the_same(shared: Cluster, asked: Any) -> None:
    request = pb.TraceSettingRequest()
    request.settings["trace_count"].value.append("9")
    asked.TraceSetting(request, timeout=PATIENCE)
    load(asked, "n")
    (late,) = shared.add_replicas(1, "--load-model=m", "--load-model=s")
    try:
        assert ready(shared) == [["m", "n", "s"]] * 3
        with channel(late.grpc) as opened:
            told = stub(opened).TraceSetting(pb.TraceSettingRequest(), timeout=PATIENCE)
        assert list(told.settings["trace_count"].value) == ["9"]
    finally:
        shared.replicas.remove(late)
        late.stop()
    unload(asked, "n")


@pytest.mark.parametrize("kind", ["System", "Cuda"])
@pytest.mark.parametrize("verb", ["Status", "Register", "Unregister"])
def test_shared_memory_is_not_there(asked: Any, kind: str, verb: str) -> None:
    request = getattr(pb, f"{kind}SharedMemory{verb}Request")(name="r")
    with pytest.raises(grpc.RpcError, match="the one that gets a request need not be the one that knows the region") as caught:
        getattr(asked, f"{kind}SharedMemory{verb}")(request, timeout=PATIENCE)
    assert code(caught.value) is grpc.StatusCode.UNIMPLEMENTED


def test_client_shared_memory_cannot_be_allowed(shared: Cluster) -> None:
    refused = shared.start(
        "serve", "--repository", shared.repository, "--directory", shared.path / "directory", "--allow-client-shm=true"
    )
    told = refused.process.communicate(timeout=PATIENCE)[1]
    assert refused.process.returncode == 2
    assert told.startswith("headrace: allow_client_shm is on: shared memory cannot be used where several replicas answer")


# -- sequences ------------------------------------------------------------------------------------------------------------

_numbers = itertools.count(3_000_000_000)


def in_sequence(balancer: Process, sequence: int, key: str | None, count: int = 1) -> list[int]:
    """Ask `count` requests of a sequence; the numbers they had."""
    numbers = list(itertools.islice(_numbers, count))
    metadata = () if key is None else ((KEY, key),)
    with channel(balancer.grpc) as opened:
        for number in numbers:
            asked = message(number, "s", sequence=sequence)
            assert answer_of(stub(opened).ModelInfer(asked, timeout=PATIENCE, metadata=metadata)) == number
    return numbers


def test_a_sequence_with_a_key_has_one_replica_and_sequences_have_all(shared: Cluster, balancer: Process) -> None:
    homes: set[int] = set()
    for sequence in range(1, 17):
        numbers = in_sequence(balancer, sequence, f"sequence-{sequence}", 4)
        ran = shared.executions()
        (home,) = {pid for number in numbers for pid in ran[number]}
        homes.add(home)
    assert homes == {replica.pid for replica in shared.replicas}


def test_a_sequence_with_a_key_stays_when_a_replica_comes(shared: Cluster, balancer: Process) -> None:
    before = [in_sequence(balancer, sequence, f"stays-{sequence}") for sequence in range(1, 17)]
    (late,) = shared.add_replicas(1, "--load-model=m", "--load-model=s")
    shared.wait_taken_in()
    try:
        after = [in_sequence(balancer, sequence, f"stays-{sequence}") for sequence in range(1, 17)]
    finally:
        shared.replicas.remove(late)
        late.stop()
        shared.wait_taken_in()
    ran = shared.executions()
    assert [ran[number] for (number,) in before] == [ran[number] for (number,) in after]


def test_a_sequence_without_a_key_is_refused(balancer: Process) -> None:
    with fails(
        grpc.StatusCode.INVALID_ARGUMENT,
        "several replicas answer here, and nothing keeps sequence 7 with one of them: send all of its requests on one "
        "ModelStreamInfer stream, or each with the same metadata 'x-headrace-sequence'",
    ):
        in_sequence(balancer, 7, None)


def test_the_others_of_a_batch_run(shared: Cluster) -> None:
    """Whoever has a key is answered, whoever has none is not, and does not run, also in one batch."""
    numbers = list(itertools.islice(_numbers, 24))
    with channel(shared.replicas[0].grpc) as opened:
        calls = [
            stub(opened).ModelInfer.future(
                message(number, "s", sequence=place + 1), timeout=PATIENCE, metadata=((KEY, "k"),) if place % 2 else ()
            )
            for place, number in enumerate(numbers)
        ]
        for place, (number, call) in enumerate(zip(numbers, calls, strict=True)):
            if place % 2:
                assert answer_of(call.result(PATIENCE)) == number
            else:
                assert call.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert [len(shared.executions().get(number, [])) for number in numbers] == [0, 1] * 12


def test_a_sequence_on_a_stream_needs_no_key(shared: Cluster, balancer: Process) -> None:
    numbers = list(itertools.islice(_numbers, 8))
    with channel(balancer.grpc) as opened:
        answers = stub(opened).ModelStreamInfer((message(number, "s", sequence=5) for number in numbers), timeout=PATIENCE)
        assert [answer_of(answer.infer_response) for answer in answers] == numbers
    assert len({pid for number in numbers for pid in shared.executions()[number]}) == 1


def test_alone_a_sequence_needs_no_key(tmp_path: Path) -> None:
    with cluster(tmp_path) as single:
        add_logged_model(single.repository, "s", single.log, "sequence_batching { oldest {} }")
        single.add_replicas(1, "--load-model=s")
        in_sequence(single.balance(), 7, None)
