"""What the processes of a model may do while they run, and what that costs whom."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from logging.handlers import QueueHandler
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import pytest

import headrace
from headrace.backends.triton_python.session import TritonSession
from headrace.engine.engine import Engine, ModelControl
from headrace.errors import Code, HeadraceError
from headrace.request import Request, Sequence
from tests.python.test_process import in_dev_shm, kill
from tests.triton_python.conftest import parameter, write_model
from tests.waiting import until

pytestmark = pytest.mark.usefixtures("leaves_nothing")

ECHO = "return [response(x_of(request)) for request in requests]"
DECOUPLED = "model_transaction_policy { decoupled: true }\n"

Run = Callable[..., Engine]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """`run(text, more)`: an engine with the model `m` of that text."""
    with ExitStack() as stack:

        def start(text: str, more: str = "", **others: str) -> Engine:
            write_model(tmp_path, "m", text, more)
            for name, other in others.items():
                write_model(tmp_path, name, other)
            engine = stack.enter_context(Engine(tmp_path))
            assert engine.ready, engine.statuses()
            return engine

        yield start


def pids(engine: Engine, model: str = "m") -> list[int | None]:
    running = next(running for running in engine.catalog.running() if running.opened.spec.name == model)
    session = running.opened.sessions[0][0]
    assert isinstance(session, TritonSession)
    return session.pids


def infer(engine: Engine, *values: int, model: str = "m", **options: float) -> list[int]:
    return engine.infer(model, {"x": np.int32(values)}, **options)["y"].tolist()


@contextmanager
def fails(told: str, code: Code = Code.INTERNAL) -> Iterator[None]:
    with pytest.raises(HeadraceError, match=told) as caught:
        yield
    assert caught.value.code is code


def test_a_model_without_sequences_sees_them_all_the_same(run: Run) -> None:
    engine = run("return [response(x_of(request) + request.correlation_id() + request.flags()) for request in requests]")
    asked = Request("m", {"x": np.int32([1])}, sequence=Sequence(40, start=True), received=engine.clock.now())
    answer = engine._calls.ask(asked).result()
    assert np.asarray(answer.outputs["y"]).tolist() == [42]


def test_a_kill_fails_the_batch_that_runs_and_nothing_else(run: Run, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "began")
    began = f"open({str(tmp_path / 'began')!r}, 'w').close()"
    engine = run(f"if x_of(requests[0])[0] < 0:\n    {began}\n    signal.pause()\n{ECHO}", "instance_group { count: 1 }")
    (first,) = pids(engine)
    assert first is not None
    with ThreadPoolExecutor(12) as pool:
        bad = pool.submit(infer, engine, -1)
        (tmp_path / "began").read_text()
        others = [pool.submit(infer, engine, number) for number in range(11)]
        os.kill(first, 9)
        with fails("^the process of model 'm' ended: killed by signal 9; it is being restarted$"):
            bad.result()
        assert [other.result() for other in others] == [[number] for number in range(11)]
    assert pids(engine) not in ([first], [None])


def test_a_kill_between_two_batches_fails_none(run: Run) -> None:
    engine = run(ECHO)
    for number in range(3):
        (pid,) = pids(engine)
        assert pid is not None
        kill(pid)
        assert infer(engine, number) == [number]


@pytest.mark.parametrize(
    ("does", "told"),
    [
        ("os._exit(4)", "^the process of model 'm' ended: exit status 4; it is being restarted$"),
        ("import ctypes; ctypes.string_at(0)", "^the process of model 'm' ended: killed by signal 11; it is being restarted$"),
        ("signal.pause()", r"^the process of model 'm' did not answer within 0\.5 s and was ended; it is being restarted$"),
        ("sys.exit(5)", "^Failed to process the request.* message: SystemExit: 5"),
        ("raise MemoryError", "^Failed to process the request.* message: MemoryError: <EMPTY MESSAGE>"),
    ],
)
def test_what_execute_does_fails_its_batch(run: Run, does: str, told: str) -> None:
    engine = run(f"if x_of(requests[0])[0] < 0:\n    {does}\n{ECHO}", parameter("run_timeout_s", 0.5))
    with fails(told):
        infer(engine, -1)
    assert infer(engine, 1) == [1]


def test_one_that_leaks_meets_its_limit(run: Run) -> None:
    """Its process starts anew, with nothing of what it had."""
    text = """
        class TritonPythonModel:
            kept = []

            def execute(self, requests):
                if x_of(requests[0])[0] < 0:
                    while True:
                        self.kept.append(np.ones(1 << 20))
                return [response([len(self.kept)])]
    """
    engine = run(text, parameter("memory_limit_mib", 700))
    first = pids(engine)
    with fails("message: .*MemoryError: "):
        infer(engine, -1)
    assert infer(engine, 1) == [0]
    assert pids(engine) != first


def test_the_inputs_that_a_model_keeps_are_its_own(run: Run) -> None:
    text = """
        class TritonPythonModel:
            kept = []

            def execute(self, requests):
                self.kept += [x_of(request) for request in requests]
                return [response(np.concatenate(self.kept))]
    """
    engine = run(text)
    assert [infer(engine, number) for number in range(4)] == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3]]


def test_outputs_that_grow_find_room(run: Run) -> None:
    engine = run("return [response(np.arange(x_of(request)[0])) for request in requests]")
    for count in (1, 1_000_000, 10, 2_000_000):
        assert infer(engine, count) == list(range(count))


def test_each_instance_has_a_process_and_a_name(run: Run, tmp_path: Path) -> None:
    text = f"""
        class TritonPythonModel:
            def initialize(self, args):
                open(os.path.join({str(tmp_path)!r}, args["model_instance_name"]), "w").close()

            def execute(self, requests):
                return [response([os.getpid()]) for request in requests]
    """
    engine = run(text, 'instance_group [ { count: 2 }, { count: 1 name: "more" } ]')
    assert len(set(pids(engine))) == 3
    assert {path.name for path in tmp_path.iterdir()} == {"m", "m_0_0", "m_0_1", "more_0"}
    assert infer(engine, 1)[0] in pids(engine)


def test_nothing_is_left_in_shared_memory(run: Run) -> None:
    before = in_shared_memory()
    engine = run("return [response(x_of(request)) for request in requests]")
    infer(engine, *range(100_000))
    (pid,) = pids(engine)
    for process in (os.getpid(), pid):
        maps = Path(f"/proc/{process}/maps").read_text()
        assert "/memfd:headrace" in maps
        assert not in_dev_shm(maps)
    assert pid is not None
    kill(pid)
    assert infer(engine, 1) == [1]
    engine.close()
    assert in_shared_memory() == before


def in_shared_memory() -> set[str]:
    """What is there, but for what other tests put there, which may run at the same time."""
    others = ("headrace-test", "triton_python_backend_shm_region_")
    return {path.name for path in Path("/dev/shm").iterdir() if not path.name.startswith(others)}


SELF = """
    asked = pb_utils.InferenceRequest(
        model_name="m", inputs=[pb_utils.Tensor("x", x_of(requests[0]) + 1)], requested_output_names=["y"]
    )
    if x_of(requests[0])[0] == 1:
        return [response([1])]
    answer = asked.exec()
    if answer.has_error():
        return [answer]
    return [response([2])]
"""


def test_one_that_asks_itself_and_is_alone_is_told_in_time(run: Run) -> None:
    """Triton waits for ever. Here a call is answered before its batch takes too long."""
    engine = run(SELF, parameter("run_timeout_s", 2))
    first = pids(engine)
    with fails("^the deadline passed before model 'm' could answer$", Code.UNAVAILABLE):
        infer(engine, 0)
    assert pids(engine) == first
    assert infer(engine, 1) == [1]


def test_one_that_asks_itself_and_is_not_alone(run: Run) -> None:
    assert infer(run(SELF, "instance_group { count: 2 }"), 0) == [2]


def test_models_are_asked_from_many_threads_with_much(run: Run) -> None:
    text = """
        from concurrent.futures import ThreadPoolExecutor

        class TritonPythonModel:
            def execute(self, requests):
                def ask(number):
                    x = pb_utils.Tensor("x", np.full(50_000 + number, number, np.int32))
                    asked = pb_utils.InferenceRequest(model_name="other", inputs=[x], requested_output_names=["y"])
                    y = pb_utils.get_output_tensor_by_name(asked.exec(), "y").as_numpy()
                    return [len(y), int(y.min()), int(y.max())]

                with ThreadPoolExecutor(4) as pool:
                    return [response(sum(pool.map(ask, range(20)), [])) for request in requests]
    """
    engine = run(text, other=ECHO)
    for _ in range(3):
        assert infer(engine, 1) == [value for number in range(20) for value in (50_000 + number, number, number)]


def test_a_call_ends_when_the_asked_one_does(run: Run) -> None:
    text = """
        asked = pb_utils.InferenceRequest(
            model_name="other", inputs=[pb_utils.Tensor("x", x_of(requests[0]))], requested_output_names=["y"]
        )
        answer = asked.exec()
        return [answer if answer.has_error() else response([7])]
    """
    engine = run(text, other=f"if x_of(requests[0])[0] < 0:\n    os._exit(1)\n{ECHO}")
    with fails("^the process of model 'other' ended: exit status 1; it is being restarted$"):
        infer(engine, -1)
    assert infer(engine, 1) == [7]


@pytest.fixture
def lines() -> Iterator[SimpleQueue[logging.LogRecord]]:
    """All that models log, by a handler of its own: what clients turn off in other tests stays off for those that are there."""
    records = SimpleQueue[logging.LogRecord]()
    logger, handler = logging.getLogger("headrace.model"), QueueHandler(records)
    level = logger.level
    logger.setLevel(logging.DEBUG)
    logger.addHandler(handler)
    yield records
    logger.removeHandler(handler)
    logger.setLevel(level)


def test_the_lines_of_its_logger_have_levels(run: Run, lines: SimpleQueue[logging.LogRecord]) -> None:
    text = """
        log = pb_utils.Logger
        log.log_info("one")
        log.log_warn("two\\nlines")
        log.log_error("three")
        log.log_verbose("four")
        log.log("five", log.WARNING)
        print("six")
        return [response([1])]
    """
    engine = run(text)
    infer(engine, 1)
    engine.close()
    kept = [lines.get() for _ in range(lines.qsize())]
    found = [(record.levelname, record.getMessage()) for record in kept if vars(record).get("model") == "m"]
    expected = [
        ("INFO", "one"),
        ("WARNING", "two"),
        ("WARNING", "lines"),
        ("ERROR", "three"),
        ("DEBUG", "four"),
        ("WARNING", "five"),
    ]
    assert [line for line in found if line in expected] == expected
    assert ("INFO", "six") in found


def test_a_model_knows_which_others_are_ready(run: Run) -> None:
    text = """
        return [response([pb_utils.is_model_ready(*each) for each in (["m"], ["m", "1"], ["m", "2"], ["none"])])]
    """
    assert infer(run(text), 1) == [1, 1, 0, 0]


def test_models_are_not_loaded_by_a_model_where_they_are_not_by_clients(run: Run) -> None:
    """Triton ends with that."""
    engine = run("pb_utils.load_model('m')")
    with fails("TritonModelException: explicit model load / unload is not allowed if polling is enabled"):
        infer(engine, 1)


def test_an_environment_of_its_own(run: Run, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Its interpreter, and of ours nothing but Headrace."""
    environment = tmp_path_factory.mktemp("environments") / "environment"
    environment.symlink_to(sys.prefix)
    below = os.path.relpath(environment, tmp_path / "m")
    text = """
        import headrace
        told = [sys.executable, headrace.__file__, os.environ["PYTHONPATH"]]
        return [response(list("\\n".join(told).encode()))]
    """
    engine = run(text, parameter("EXECUTION_ENV_PATH", f"$$TRITON_MODEL_DIRECTORY/{below}"))
    told = bytes(infer(engine, 1)).decode().split("\n")
    assert told == [f"{environment}/bin/python", str(Path(headrace.__file__)), ""]


def test_a_model_loads_and_unloads_another(tmp_path: Path) -> None:
    text = """
        name = "other"
        if x_of(requests[0])[0] == 1:
            pb_utils.load_model(name)
        elif x_of(requests[0])[0] == 2:
            pb_utils.unload_model(name)
        elif x_of(requests[0])[0] == 3:
            pb_utils.load_model("none")
        return [response([pb_utils.is_model_ready(name)])]
    """
    write_model(tmp_path, "m", text)
    write_model(tmp_path, "other", ECHO)
    with Engine(tmp_path, control=ModelControl("explicit", ("m",))) as engine:
        assert [infer(engine, number) for number in (0, 1, 2)] == [[0], [1], [0]]
        with fails("TritonModelException: failed to load 'none', failed to poll from model repository"):
            infer(engine, 3)


def test_answers_that_a_model_does_not_wait_for_are_dropped(run: Run, tmp_path: Path) -> None:
    """It asks a decoupled model, takes the first answer, and forgets the rest; that model hears of it."""
    endless = f"""
        class TritonPythonModel:
            def execute(self, requests):
                for request in requests:
                    threading.Thread(target=self.send, args=[request.get_response_sender()]).start()

            def send(self, sender):
                while not sender.is_cancelled():
                    sender.send(response([1]))
                sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
                open({str(tmp_path / "heard")!r}, "w").close()
    """
    write_model(tmp_path, "other", endless, DECOUPLED)
    text = """
        x = pb_utils.Tensor("x", x_of(requests[0]))
        asked = pb_utils.InferenceRequest(model_name="other", inputs=[x], requested_output_names=["y"])
        return [next(asked.exec(decoupled=True))]
    """
    engine = run(text)
    # What its process says between two batches is read with the next.
    until(lambda: infer(engine, 1) == [1] and (tmp_path / "heard").exists())


def test_a_request_that_was_answered_stays_so(run: Run) -> None:
    """Whatever a model does with the sender of a request that it has kept, nobody is answered twice."""
    text = """
        class TritonPythonModel:
            kept = []

            def execute(self, requests):
                for request in self.kept:
                    sender = request.get_response_sender()
                    assert not sender.is_owing
                    sender.send(response([-1]))
                self.kept = requests if x_of(requests[0])[0] == 1 else []
                return [response(x_of(request)) for request in requests]
    """
    engine = run(text)
    assert infer(engine, 1) == [1]
    with fails("Unable to send response. Non-decoupled model cannot send more than one response."):
        infer(engine, 2)


def test_flags_of_a_request_can_be_set(run: Run) -> None:
    text = """
        flags = [requests[0].flags()]
        requests[0].set_flags(3)
        return [response([*flags, requests[0].flags(), requests[0].timeout(), requests[0].correlation_id()])]
    """
    engine = run(text)
    assert [infer(engine, 1) for _ in range(2)] == [[0, 3, 0, 0]] * 2


PAIRS = """
backend: "python"
max_batch_size: 8
input {{ name: "x" data_type: TYPE_INT32 dims: 1 }}
output {{ name: "y" data_type: TYPE_INT32 dims: 1 }}
dynamic_batching {{ max_queue_delay_microseconds: 200000 preferred_batch_size: 6 }}
{more}
"""


def test_responses_that_make_no_stack_go_one_by_one(tmp_path: Path) -> None:
    """One has another datatype than its neighbours, and only it fails."""
    text = """
        xs = [x_of(request) for request in requests]
        ys = [x.astype(np.int64) if x[0, 0] == 1 else x for x in xs]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", y)]) for y in ys]
    """
    write_model(tmp_path, "m", text, config=PAIRS)
    with Engine(tmp_path) as engine, ThreadPoolExecutor(3) as pool:
        rows = {0: 2, 1: 1, 2: 3}
        asked = {value: pool.submit(engine.infer, "m", {"x": np.full((rows[value], 1), value, np.int32)}) for value in rows}
        with fails("INT64"):
            asked[1].result()
        assert {value: asked[value].result()["y"].tolist() for value in (0, 2)} == {0: [[0]] * 2, 2: [[2]] * 3}
