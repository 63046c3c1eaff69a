"""One node at a time, in both isolations: whatever it does, the same comes of it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from headrace.errors import BackendFailed, HeadraceError, InvalidRepository, InvalidRequest
from headrace.node import Rows
from headrace.tensor import DTYPES, BytesTensor, TensorSpec
from tests.oracle import bits, sample
from tests.python.conftest import Open
from tests.waiting import until

pytestmark = pytest.mark.usefixtures("leaves_nothing")

ONE = np.float32([[1, 2]])


def words(*texts: str) -> BytesTensor:
    return BytesTensor.of(texts, (len(texts), 1))


def test_what_it_says_of_itself(opened: Open, isolation: str) -> None:
    runner = opened(
        """
        class Model:
            rows, replayable = "many", False
            outputs = {"box": "INT32[4]", "label": "BYTES[1]"}
            def load(self, context):
                self.inputs = {context.parameters["name"]: f"UINT8[{context.parameters['sizes'][0]},-1]"}
            def run(self, tensors): ...
        """,
        isolation,
        {"name": "image", "sizes": [3, 4]},
    )
    assert runner.inputs == {"image": TensorSpec("image", "UINT8", (3, -1))}
    assert list(runner.outputs.values()) == [TensorSpec("box", "INT32", (4,)), TensorSpec("label", "BYTES", (1,))]
    assert (runner.rows, runner.replayable) == ("many", False)


@pytest.mark.parametrize("datatype", DTYPES)
@pytest.mark.parametrize("rows", [0, 3])
def test_every_datatype(opened: Open, isolation: str, datatype: str, rows: int) -> None:
    runner = opened(
        f"""
        import numpy as np
        class Model:
            inputs = outputs = {{"a": "{datatype}[2]", "b": "{datatype}[2]"}}
            def load(self, context): ...
            def run(self, tensors): return {{"a": tensors["b"], "b": np.concatenate([tensors["a"]])}}
        """,
        isolation,
    )
    a, b = sample(datatype, (rows, 2), 1), sample(datatype, (rows, 2), 2)
    result = runner.run({"a": a, "b": b})
    assert isinstance(result, dict)
    assert (bits(result["a"]), bits(result["b"])) == (bits(b), bits(a))


@pytest.mark.parametrize(
    "texts", [(), ("",), ("a", "", "bc", "\N{SNOWMAN}")], ids=["none", "one that is empty", "of several lengths"]
)
def test_text(opened: Open, isolation: str, texts: Sequence[str]) -> None:
    runner = opened(
        """
        import numpy as np
        class Model:
            inputs = {"text": "BYTES[1]"}
            outputs = {"text": "BYTES[1]", "twice": "BYTES[1]", "type": "BYTES[1]"}
            def load(self, context): ...
            def run(self, tensors):
                text = tensors["text"]
                twice = np.array([[one.decode() * 2] for one, in text], object).reshape(text.shape)
                return {"text": text, "twice": twice, "type": np.full(text.shape, type(text[0, 0]).__name__ if len(text) else "")}
        """,
        isolation,
    )
    result = runner.run({"text": words(*texts)})
    assert result == {
        "text": words(*texts),
        "twice": words(*(text * 2 for text in texts)),
        "type": words(*("bytes" for _ in texts)),
    }


def test_some_rows_of_a_larger_text(opened: Open, isolation: str) -> None:
    runner = opened(
        "class Model:\n inputs = outputs = {'t': 'BYTES[1]'}\n def load(self, c): ...\n def run(self, t): return t", isolation
    )
    assert runner.run({"t": words("a", "bc", "def").rows(1, 3)}) == {"t": words("bc", "def")}


def test_what_is_large_and_then_small_and_larger(opened: Open, isolation: str) -> None:
    runner = opened("return {'y': np.repeat(x, 3, axis=1)}", isolation)
    for width in (1, 400_000, 7, 900_000):
        x = np.random.default_rng(width).standard_normal((2, width), np.float32)
        result = runner.run({"x": x})
        assert isinstance(result, dict)
        assert np.array_equal(result["y"], np.repeat(x, 3, axis=1))  # type: ignore[arg-type]


def test_inputs_cannot_be_changed(opened: Open, isolation: str) -> None:
    x = ONE.copy()
    with pytest.raises(BackendFailed, match=r"^ValueError: .*read-only"):
        opened("x += 1; return {'y': x}", isolation).run({"x": x})
    assert x.tolist() == ONE.tolist()
    assert x.flags.writeable


def test_inputs_that_it_keeps_stay_what_they_are(opened: Open, isolation: str) -> None:
    runner = opened(
        """
        class Model:
            inputs = outputs = {"x": "FP32[2]"}
            def load(self, context): self.kept = []
            def run(self, tensors):
                self.kept.append(tensors["x"])
                return {"x": self.kept[0]}
        """,
        isolation,
    )
    for number in range(12):
        result = runner.run({"x": ONE + number})
        assert isinstance(result, dict)
        assert result["x"].tolist() == ONE.tolist()  # type: ignore[union-attr]


ROWS = """
import numpy as np
from headrace.node import Rows
class Model:
    inputs = {{"x": "INT32[1]"}}
    outputs = {{"square": "INT32[-1,-1]", "word": "BYTES[-1]", "flat": "INT32[1]"}}
    rows = "{rows}"
    def load(self, context): ...
    def run(self, tensors):
        sizes = tensors["x"][:, 0].tolist()
        {body}
"""
MANY = ROWS.format(
    rows="many",
    body="""each = [n for size in sizes for n in range(size)]
        return Rows({"square": [np.full((n, n), n, np.int32) for n in each], "word": [["w"] * n for n in each],
                     "flat": np.int32(each).reshape(-1, 1), "unknown": 3}, sizes)""",
)
RAGGED = ROWS.format(
    rows="ragged",
    body="""return Rows({"square": [np.full((n, n), n, np.int32) for n in sizes], "word": np.array([["a"], ["b"], ["c"]])})""",
)


def listed(rows: Rows) -> dict[str, list[Any]]:
    return {
        name: [(row.objects() if isinstance(row, BytesTensor) else np.asarray(row)).tolist() for row in tensor]
        for name, tensor in rows.tensors.items()
    }


def test_any_number_of_rows_for_each(opened: Open, isolation: str) -> None:
    runner = opened(MANY, isolation)
    result = runner.run({"x": np.int32([[2], [0], [3]])})
    assert isinstance(result, Rows)
    assert result.counts == (2, 0, 3)
    assert listed(result) == {
        "square": [[], [[1]], [], [[1]], [[2, 2], [2, 2]]],
        "word": [[], [b"w"], [], [b"w"], [b"w", b"w"]],
        "flat": [[0], [1], [0], [1], [2]],
    }
    nothing = runner.run({"x": np.zeros((2, 1), np.int32)})
    assert isinstance(nothing, Rows)
    assert (listed(nothing), nothing.counts) == ({"square": [], "word": [], "flat": []}, (0, 0))


def test_one_row_for_each_of_shapes_that_differ(opened: Open, isolation: str) -> None:
    result = opened(RAGGED, isolation).run({"x": np.int32([[1], [0], [2]])})
    assert isinstance(result, Rows)
    assert result.counts is None
    assert listed(result) == {"square": [[[1]], [], [[2, 2], [2, 2]]], "word": [[b"a"], [b"b"], [b"c"]]}


@pytest.mark.parametrize(
    ("rows", "body", "told"),
    [
        ("many", "return {}", "node 'n' returned a dict; its rows are 'many', so it must return Rows"),
        ("many", "return Rows({'flat': [[1]]}, [1])", r"node 'n' returned counts \[1\] for 2 rows"),
        ("many", "return Rows({'flat': [[1]]}, [2, -1])", r"node 'n' returned counts \[2, -1\] for 2 rows"),
        ("many", "return Rows({'flat': [[1]]}, [1, 1])", "returned 1 rows of 'flat', where 2 belong to its inputs"),
        ("ragged", "return Rows({'flat': [[1], [1]]}, [1, 1])", r"with 'ragged' there are none"),
        ("ragged", "return Rows({'flat': [[1]]})", "returned 1 rows of 'flat', where 2 belong to its inputs"),
        ("ragged", "return Rows({'flat': 7})", "output 'flat' is a int; it must be a sequence of rows"),
        ("ragged", "return Rows({'flat': 'ab'})", "output 'flat' is a str; it must be a sequence of rows"),
    ],
)
def test_rows_that_belong_to_nothing(opened: Open, isolation: str, rows: str, body: str, told: str) -> None:
    with pytest.raises(BackendFailed, match=told):
        opened(ROWS.format(rows=rows, body=body), isolation).run({"x": np.int32([[1], [1]])})


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("return None", "node 'n' returned None; it must return arrays by output name"),
        ("return [x]", "node 'n' returned a list; it must return arrays by output name"),
        ("return Rows({'y': x})", "node 'n' returned a Rows; it must return arrays by output name"),
        ("return {'y': None}", "output 'y' is None, not an array"),
        ("return {'y': {'z': x}}", "output 'y' is a dict, not an array"),
        ("return {'y': [[1], [1, 2]]}", "output 'y' is a list, of which no tensor can be made: setting an array element"),
        ("return {'y': [[Model]]}", "output 'y' is a list, of which no tensor can be made: an element of a BYTES tensor"),
        ("return {'y': x.astype(complex)}", "output 'y' is a ndarray, of which no tensor can be made: numpy dtype 'complex128'"),
        ("raise KeyError('abc')", "KeyError: 'abc'"),
        ("raise OSError", "OSError"),
        ("return {'y': undefined}", "NameError: name 'undefined' is not defined"),
    ],
)
def test_what_goes_wrong(opened: Open, isolation: str, body: str, told: str) -> None:
    runner = opened(f"if len(x) > 1: {body}\nreturn {{'y': x}}", isolation)
    with pytest.raises(HeadraceError) as caught:
        runner.run({"x": np.zeros((2, 1), np.float32)})
    assert type(caught.value) is BackendFailed
    assert caught.value.message.startswith(told)
    result = runner.run({"x": ONE})
    assert isinstance(result, dict)
    assert bits(result["y"]) == bits(ONE)


def test_what_a_client_did_is_told_so(opened: Open, isolation: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "headrace.node")
    with pytest.raises(InvalidRequest, match=r"^x is too small$"):
        opened("raise InvalidRequest('x is too small')", isolation).run({"x": ONE})
    assert not caplog.records


def test_where_it_failed_is_in_the_log(opened: Open, isolation: str, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(BackendFailed):
        opened("def inner(): raise ValueError('lost')\ninner()", isolation).run({"x": ONE})
    (record,) = [record for record in caplog.records if record.name == "headrace.node"]
    assert record.levelname == "ERROR"
    assert record.getMessage().startswith("node 'n' failed: ValueError: lost")
    for part in ("model.py", "in inner", "ValueError: lost"):
        assert part in caplog.text


def test_outputs_that_nobody_declared_are_left_out(opened: Open, isolation: str) -> None:
    result = opened("return {'y': x, 'z': object()}", isolation).run({"x": ONE})
    assert list(result) == ["y"]  # type: ignore[call-overload]


LOAD = """
import sys
class Model:
    inputs = outputs = {{"x": "FP32[1]"}}
    def load(self, context):
        {body}
    def run(self, tensors): return tensors
"""


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("open('/not/here')", r"node 'n' \(model\.py:Model\) could not be loaded: FileNotFoundError: .* \(.*model\.py:5\)$"),
        ("sys.exit('no')", r"could not be loaded: SystemExit: no \("),
        ("import not_to_be_had", r"could not be loaded: ModuleNotFoundError: No module named 'not_to_be_had'"),
        ("self.rows = 'few'", "node 'n': rows is 'few'; it can be 'same', 'ragged' or 'many'"),
        ("self.inputs = {}", r"node 'n': inputs is \{\}; it must name at least one tensor and its type"),
        ("self.outputs = ['y']", r"node 'n': outputs is \['y'\]; it must name at least one"),
        ("self.outputs = {'y': 'FLOAT'}", r"tensor 'y' is written as 'FLOAT'; write a datatype and its dimensions"),
    ],
)
def test_one_that_cannot_be_loaded(opened: Open, isolation: str, body: str, told: str) -> None:
    with pytest.raises(InvalidRepository, match=told):
        opened(LOAD.format(body=body), isolation)


def test_a_package_that_is_missing(opened: Open, isolation: str) -> None:
    with pytest.raises(
        InvalidRepository, match=r"model\.py imports 'not_to_be_had', which is not installed; install the package"
    ):
        opened("import not_to_be_had\nclass Model: ...", isolation)


def test_an_isolation_that_there_is_not(opened: Open) -> None:
    with pytest.raises(InvalidRepository, match="node 'n': isolation is 'jail'; it can be 'thread' or 'process'"):
        opened("return {}", "jail")


def test_it_is_closed_once(opened: Open, isolation: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "headrace.node")
    runner = opened(
        """
        import logging
        class Model:
            inputs = outputs = {"x": "FP32[1]"}
            def load(self, context): ...
            def run(self, tensors): return tensors
            def close(self): logging.getLogger("headrace.node").warning("closed")
        """,
        isolation,
    )
    runner.close()
    until(lambda: [record.getMessage() for record in caplog.records] == ["closed"])
