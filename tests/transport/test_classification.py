"""The classification extension: the likeliest classes, with their labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2 as pb

from headrace.backends.fake import Gate, Script
from headrace.engine.engine import Engine
from headrace.protocol.classification import top
from headrace.request import Request, Response
from headrace.scheduling.entry import Answer
from headrace.tensor import DTYPES, BytesTensor
from tests.settling import wait_settled
from tests.transport.asking import ask, value
from tests.transport.serving import PATIENCE, Server, fails, fill, serving

INVALID = grpc.StatusCode.INVALID_ARGUMENT
CONFIG = """
backend: "fake"
max_batch_size: 4
input { name: "x" data_type: TYPE_FP32 dims: [2, -1] }
output { name: "y" data_type: TYPE_FP32 dims: [2, -1] label_filename: "labels.txt" }
output { name: "t" data_type: TYPE_STRING dims: 1 }
"""
WHOLE = """
backend: "fake"
input { name: "x" data_type: TYPE_UINT8 dims: [-1] }
output { name: "y" data_type: TYPE_UINT8 dims: [-1] }
"""


@pytest.fixture(scope="module")
def classifier(transport: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    repository: Path = tmp_path_factory.mktemp("repository")
    fake = fill(repository, {"m": (CONFIG, Script()), "whole": (WHOLE, Script())})
    (repository / "m" / "labels.txt").write_text("cat\ndog\n\nowl\n")
    with serving(transport, repository, {"fake": fake}) as started:
        yield started


def given(values: Any, datatype: str = "FP32") -> triton.InferInput:
    array = np.asarray(values, DTYPES[datatype])
    return triton.InferInput("x", list(array.shape), datatype).set_data_from_numpy(array)


def classes(server: Server, values: Any, count: int, model: str = "m", datatype: str = "FP32") -> Any:
    wanted = [triton.InferRequestedOutput("y", class_count=count)]
    answer = server.client.infer(model, [given(values, datatype)], outputs=wanted, client_timeout=PATIENCE)
    assert answer.get_output("y").datatype == "BYTES"
    return answer.as_numpy("y").tolist()


def test_the_likeliest_of_each_row_with_labels(classifier: Server) -> None:
    values = [[[0.5, 2], [-1, 7]], [[3, 3], [4, 0.25]]]
    assert classes(classifier, values, 3) == [
        [b"7.000000:3:owl", b"2.000000:1:dog", b"0.500000:0:cat"],
        [b"4.000000:2", b"3.000000:0:cat", b"3.000000:1:dog"],
    ]


def test_more_classes_than_there_are(classifier: Server) -> None:
    assert classes(classifier, [[[1], [2]]], 99) == [[b"2.000000:1:dog", b"1.000000:0:cat"]]
    assert classes(classifier, [[[1, 2, 3], [4, 5, 6]]], 2) == [[b"6.000000:5", b"5.000000:4"]]
    assert classes(classifier, np.zeros((2, 2, 0)), 3) == [[], []]


def test_without_a_batch_dimension(classifier: Server) -> None:
    assert classes(classifier, [3, 255, 0], 2, "whole", "UINT8") == [b"255:1", b"3:0"]


def test_the_neighbours_in_a_batch_get_their_values(classifier: Server) -> None:
    answer = classifier.client.infer("m", [given([[[1], [2]]])])
    assert answer.as_numpy("y").tolist() == [[[1], [2]]]


def test_too_many_elements(classifier: Server) -> None:
    with fails(INVALID, "classification output tensor too large"):
        classes(classifier, np.zeros((1, 2, 500_001)), 1)
    assert classes(classifier, np.zeros((1, 2, 500_000)), 1) == [[b"0.000000:0:cat"]]


def request(output: str = "y", **parameters: pb.InferParameter) -> pb.ModelInferRequest:
    asked = ask((("x", "FP32", (1, 2, 1)),), (bytes(8),))
    asked.outputs.add(name=output, parameters=parameters)
    return asked


WRONG = {
    "type": (
        request(classification=value(string_param="1")),
        "invalid value type for 'classification' parameter, expected int64_param",
    ),
    "zero": (request(classification=value(int64_param=0)), "invalid value for 'classification' parameter, expected >= 0"),
    "below 0": (request(classification=value(int64_param=-1)), "invalid value for 'classification' parameter, expected >= 0"),
    "shared memory": (
        request(
            classification=value(int64_param=1),
            shared_memory_region=value(string_param="r"),
            shared_memory_byte_size=value(int64_param=8),
        ),
        "output can't set both 'shared_memory_region' and 'classification'",
    ),
    "strings": (
        request("t", classification=value(int64_param=1)),
        "class result not available for output due to unsupported type 'BYTES'",
    ),
    "unknown output": (request("z", classification=value(int64_param=1)), "unexpected inference output 'z' for model 'm'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_refused(classifier: Server, case: str) -> None:
    asked, told = WRONG[case]
    with fails(INVALID, told):
        classifier.stub.ModelInfer(asked, timeout=PATIENCE)
    assert classes(classifier, [[[1], [2]]], 1) == [[b"2.000000:1:dog"]]


def test_it_is_advertised(classifier: Server) -> None:
    assert "classification" in classifier.client.get_server_metadata().extensions


@pytest.mark.part("unit")
@pytest.mark.parametrize("datatype", ["UINT64", "INT64", "INT8", "FP64"])
def test_numbers_of_every_kind(datatype: str) -> None:
    largest: Any = np.finfo(np.float64).max if datatype == "FP64" else np.iinfo(DTYPES[datatype]).max
    told = top(np.array([0, largest, 1], DTYPES[datatype]), 2, (), batched=False)
    first = f"{float(largest):f}:1" if datatype == "FP64" else f"{largest}:1"
    assert told == BytesTensor.of([first, "1.000000:2" if datatype == "FP64" else "1:2"], (2,))


class Sink:
    """Settles and keeps every answer."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []

    def deliver(self, answers: Sequence[Answer]) -> None:
        self.answers += answers
        for answer in answers:
            if answer.is_final:
                answer.settle(1)


@pytest.mark.part("unit")
def test_of_several_answers_the_first_that_fails_is_the_last(tmp_path: Path) -> None:
    config = CONFIG + "dynamic_batching {} model_transaction_policy { decoupled: true }"
    script = Script(answers=2)
    fake = fill(tmp_path, {"m": (config, script)})
    (tmp_path / "m" / "labels.txt").touch()
    with Engine(tmp_path, backends={"fake": fake}) as engine:
        script.gate = gate = Gate()
        first, bad, neighbour = Sink(), Sink(), Sink()

        def push(sink: Sink, columns: int, classes: dict[str, int]) -> None:
            array = np.zeros((1, 2, columns), np.float32)
            engine.routes.push(Request("m", {"x": array}, outputs=("y",), classes=classes), sink).wake()

        push(first, 1, {"y": 1})
        gate.wait_for(1)
        push(bad, 500_001, {"y": 1})
        push(neighbour, 500_001, {})
        gate.open()
        wait_settled(engine, "m")
    assert script.batches[-2:] == [1, 2]
    told = BytesTensor.of(["0.000000:0"], (1, 1))
    assert [a.result.outputs for a in first.answers if isinstance(a.result, Response)] == [{"y": told}, {"y": told}]
    assert [str(a.result) for a in bad.answers] == ["classification output tensor too large"]
    assert [isinstance(a.result, Response) for a in neighbour.answers] == [True, True]
