"""Graphs whose rows become others: one image is many crops, and texts are of all lengths."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest
from typing import Any

import numpy as np
import pytest

from headrace.backends.fake import Gate, Script
from headrace.clock import SECOND
from headrace.engine.engine import ModelControl
from headrace.errors import BackendFailed, DeadlineExpired, HeadraceError, InvalidRequest
from headrace.ledger.records import Outcome
from tests.graph.conftest import Home, Serve, statistics
from tests.transport.serving import Asked, Server, tensor
from tests.waiting import until

COUNT = """
max_batch_size: 8
inputs: {NUMBER: "INT64[1]"}
outputs: {OUT: "FP32[-1,1]", PLACE: "INT64[-1,1]"}
nodes:
  split: {run: "nodes.py:Split", inputs: {number: NUMBER}, outputs: {part: part, place: PLACE}}
  work: {model: work, inputs: {x: part}, outputs: {y: t}}
  end: {run: "nodes.py:End", inputs: {x: t, number: NUMBER}, outputs: {y: OUT}}
"""
"""n becomes n rows, 0.0 to n - 1; of each comes twice its value and n more."""
NODES = """
class Split(Node):
    inputs = {"number": "INT64[1]"}
    outputs = {"part": "FP32[1]", "place": "INT64[1]"}
    rows = "many"

    def run(self, tensors):
        counts = tensors["number"][:, 0]
        if (counts < 0).any():
            raise ValueError("below zero")
        places = np.concatenate([np.arange(count) for count in counts] or [np.arange(0)]).reshape(-1, 1)
        return Rows({"part": places.astype(np.float32), "place": places}, counts.tolist())


class End(Node):
    inputs = {"x": "FP32[1]", "number": "INT64[1]"}
    outputs = {"y": "FP32[1]"}

    def run(self, tensors):
        return {"y": tensors["x"] + tensors["number"].astype(np.float32)}


class Letters(Node):
    inputs = {"text": "BYTES[1]"}
    outputs = {"letters": "INT64[-1]", "text": "BYTES[1]"}
    rows = "ragged"

    def run(self, tensors):
        rows = [np.frombuffer(text, np.uint8).astype(np.int64) for text, in tensors["text"]]
        return Rows({"letters": rows, "text": tensors["text"]})


class Sum(Node):
    inputs = {"letters": "INT64[-1]", "text": "BYTES[1]"}
    outputs = {"sum": "INT64[1]", "text": "BYTES[1]"}
    shapes = []

    def run(self, tensors):
        Sum.shapes.append(tensors["letters"].shape)
        return {"sum": tensors["letters"].sum(axis=1, keepdims=True), "text": tensors["text"]}
"""
TEXTS = """
max_batch_size: 8
inputs: {TEXT: "BYTES[1]"}
outputs: {SUM: "INT64[1]", SAID: "BYTES[1]"}
nodes:
  letters: {run: "nodes.py:Letters", inputs: {text: TEXT}, outputs: {letters: letters, text: text}}
  sum: {run: "nodes.py:Sum", inputs: {letters: letters, text: text}, outputs: {sum: SUM, text: SAID}}
"""
BOTH = """
max_batch_size: 8
inputs: {TEXT: "BYTES[1]", NUMBER: "INT64[1]"}
outputs: {SUM: "INT64[1]", SAID: "BYTES[1]", OUT: "FP32[-1,1]", PLACE: "INT64[-1,1]"}
nodes:
  letters: {run: "nodes.py:Letters", inputs: {text: TEXT}, outputs: {letters: letters, text: text}}
  split: {run: "nodes.py:Split", inputs: {number: NUMBER}, outputs: {part: part, place: PLACE}}
  sum: {run: "nodes.py:Sum", inputs: {letters: letters, text: text}, outputs: {sum: SUM, text: SAID}}
  end: {run: "nodes.py:End", inputs: {x: part, number: NUMBER}, outputs: {y: OUT}}
"""
"""Two borders in one segment, of which each leads to a queue of its own."""


def double(**more: Any) -> Script:
    return Script(compute=lambda tensors: {"y": 2 * np.asarray(tensors["x"])}, **more)


@pytest.fixture
def counting(home: Home) -> Home:
    home.model("work", double(replayable=True), rows=4, dims="1")
    home.graph("count", COUNT, NODES)
    home.graph("texts", TEXTS, NODES)
    return home


def ask(server: Server, *numbers: int, **options: Any) -> dict[str, Any]:
    return server.engine.infer("count", {"NUMBER": np.array([[number] for number in numbers], np.int64)}, **options)


def expected(number: int) -> Any:
    return (2 * np.arange(number, dtype=np.float32) + number).reshape(1, number, 1)


@pytest.mark.parametrize("number", [0, 1, 3, 4, 5, 257, 5_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_one_row_becomes_as_many_as_it_likes(counting: Home, serve: Serve, number: int) -> None:
    server = serve()
    answer = ask(server, number)
    assert answer["OUT"].dtype == np.float32
    assert np.array_equal(answer["OUT"], expected(number))
    assert answer["PLACE"].tolist() == [[[place] for place in range(number)]]
    assert max(counting.scripts["work"].batches, default=0) <= 4


def test_a_request_may_not_become_more_rows_than_the_graph_says(counting: Home, serve: Serve) -> None:
    counting.graph("count", f"max_rows_per_request: 10\n{COUNT}", NODES)
    server = serve()
    assert np.array_equal(ask(server, 10)["OUT"], expected(10))
    with pytest.raises(InvalidRequest, match="node 'split' made 11 rows of this request, and at most 10 are allowed"):
        ask(server, 11)


def test_rows_of_a_request_that_become_equally_many_are_one_tensor(counting: Home, serve: Serve) -> None:
    server = serve()
    assert np.array_equal(ask(server, 5, 5, 5)["OUT"], np.repeat(expected(5), 3, axis=0))


def test_rows_of_a_request_that_differ_cannot_be_one_tensor(counting: Home, serve: Serve) -> None:
    server = serve()
    with pytest.raises(BackendFailed, match=r"output '(OUT|PLACE)', .* differs in shape between the rows of this request"):
        ask(server, 2, 3)
    assert np.array_equal(ask(server, 2)["OUT"], expected(2))


def test_what_nobody_asks_for_is_neither_made_nor_can_it_fail(counting: Home, serve: Serve) -> None:
    server = serve()
    assert ask(server, 3, 3, outputs=["PLACE"])["PLACE"].shape == (2, 3, 1)
    assert counting.scripts["work"].batches == []
    counting.graph("both", BOTH, NODES)
    server.engine.load("both")
    inputs = {"TEXT": [["a"], ["bc"]], "NUMBER": np.array([[2], [3]], np.int64)}
    answer = server.engine.infer("both", inputs, outputs=["SAID", "SUM"])
    assert answer["SAID"].tolist() == [[b"a"], [b"bc"]]
    with pytest.raises(BackendFailed, match="differs in shape between the rows"):
        server.engine.infer("both", inputs, outputs=["OUT"])


def test_what_rows_bring_from_above_is_copied_for_few_at_a_time(
    counting: Home, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.graph.join._COPIED", 64)  # eight rows, of a number of eight bytes each
    counting.graph("count", COUNT, NODES)
    server = serve()
    script = counting.scripts["work"]
    script.gate = Gate()
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask, server, 257)
        script.gate.wait_for(1)
        until(lambda: sum(script.batches) + behind(server) == 8)
        script.gate.open()
        assert np.array_equal(asked.result()["OUT"], expected(257))
    server.wait_settled("count")
    assert server.ledger("count")[Outcome.ANSWERED] == 1


def test_texts_of_all_lengths_come_back_in_order(counting: Home, serve: Serve) -> None:
    server = serve()
    texts = ["a", "bb", "c", "", "dd", "a"]
    answer = server.engine.infer("texts", {"TEXT": [[text] for text in texts]})
    assert answer["SAID"].tolist() == [[text.encode()] for text in texts]
    assert answer["SUM"].tolist() == [[sum(text.encode())] for text in texts]


def test_rows_go_over_two_borders_of_one_segment(home: Home, serve: Serve) -> None:
    home.graph("both", BOTH, NODES)
    server = serve()
    for number in (2, 0, 9):
        inputs = {"TEXT": [["abc"]], "NUMBER": np.array([[number]], np.int64)}
        answer = server.engine.infer("both", inputs, timeout=20)
        assert (answer["SUM"].tolist(), answer["SAID"].tolist()) == ([[sum(b"abc")]], [[b"abc"]])
        assert answer["OUT"].reshape(-1).tolist() == [place + number for place in range(number)]
        assert answer["PLACE"].reshape(-1).tolist() == [*range(number)]


def test_rows_of_several_requests_share_batches(counting: Home, serve: Serve) -> None:
    server = serve()
    script = counting.scripts["work"]
    script.gate = Gate()
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(ask, server, 1) for _ in range(4)]
        script.gate.wait_for(1)
        until(lambda: server.waiting("count") == 0)
        until(lambda: sum(script.batches) + behind(server) == 4)
        script.gate.open()
        assert all(np.array_equal(each.result()["OUT"], expected(1)) for each in asked)
    assert sum(script.batches) == 4
    assert len(script.batches) <= 3
    server.wait_settled("count")
    (stats,) = statistics(server, "work")
    assert (stats.inference_count, stats.execution_count) == (4, len(script.batches))
    inner = {each.name: each for each in statistics(server, "count")}
    assert list(inner) == ["count", "count#2", "count/split", "count/end"]
    assert (inner["count#2"].inference_count, inner["count#2"].execution_count) == (4, len(script.batches))
    assert (inner["count/split"].inference_count, inner["count/end"].inference_count) == (4, 4)


def behind(server: Server) -> int:
    """Rows that wait behind the border of `count`."""
    (running,) = [each for each in server.engine.catalog.running() if each.opened.spec.name == "count"]
    return sum(crew.queue.depth().rows for crew in running.behind)


def ask_together(server: Server, well: Sequence[int], ill: Sequence[int], message: str) -> None:
    """Requests at the same time, of which some fail and the others do not."""
    with ThreadPoolExecutor(8) as pool:
        asked = {
            number: pool.submit(ask, server, number) for pair in zip_longest(well, ill) for number in pair if number is not None
        }
        for number in well:
            assert np.array_equal(asked[number].result()["OUT"], expected(number))
        for number in ill:
            with pytest.raises(HeadraceError, match=message):
                asked[number].result()


def test_a_row_that_fails_fails_its_request_only(counting: Home, serve: Serve) -> None:
    server = serve()

    def fail(batch: Any) -> None:
        if (np.asarray(batch.tensors()["x"]) == 6).any():
            raise RuntimeError("six")

    counting.scripts["work"].fail = fail
    ask_together(server, well=(1, 3, 5, 2, 6), ill=(7, 9), message="six")


def test_what_a_border_cannot_stand_fails_its_request_only(counting: Home, serve: Serve) -> None:
    ask_together(serve(), well=(1, 3, 2), ill=(-1, -2), message="below zero")


def test_rows_expire_with_their_request(counting: Home, serve: Serve) -> None:
    server = serve()
    script = counting.scripts["work"]
    script.gate = Gate()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(ask, server, 1)
        script.gate.wait_for(1)
        with pytest.raises(DeadlineExpired, match="before model 'count' could answer"):
            ask(server, 40, timeout=0.2)
        assert behind(server) == 0
        script.gate.open()
        assert np.array_equal(first.result()["OUT"], expected(1))
    assert sum(script.batches) == 1
    server.wait_settled("count")
    ended = server.ledger("count")
    assert (ended[Outcome.ANSWERED], ended[Outcome.EXPIRED]) == (1, 1)


def test_rows_leave_with_a_client_that_has_gone(counting: Home, serve: Serve) -> None:
    server = serve()
    script = counting.scripts["work"]
    script.gate = Gate()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(ask, server, 1)
        script.gate.wait_for(1)
        asked = Asked(server, "count", [tensor("NUMBER", [[40]], "INT64")])
        until(lambda: behind(server) == 40)
        asked.call.cancel()
        until(lambda: behind(server) == 0)
        script.gate.open()
        assert np.array_equal(first.result()["OUT"], expected(1))
    server.wait_settled("count")
    assert sum(script.batches) == 1
    assert server.ledger("count")[Outcome.CANCELLED] == 1


def test_who_sends_waits_while_much_is_under_way_and_nobody_is_refused(counting: Home, serve: Serve) -> None:
    server = serve()
    script = counting.scripts["work"]
    script.gate = Gate()
    with ThreadPoolExecutor(64) as pool:
        asked = [pool.submit(ask, server, 7) for _ in range(64)]
        script.gate.wait_for(1)
        # Four full batches of four rows may be under way, and whoever finds fewer may send all that it has.
        until(lambda: server.waiting("count") > 0 and behind(server) >= 12)
        assert behind(server) <= 16 + 8 * 7
        script.gate.open()
        assert all(np.array_equal(each.result()["OUT"], expected(7)) for each in asked)
    server.wait_settled("count")
    assert server.ledger("count")[Outcome.ANSWERED] == 64


def test_draining_waits_for_rows_behind_the_border(counting: Home, serve: Serve) -> None:
    server = serve()
    script = counting.scripts["work"]
    script.gate = Gate()
    with ThreadPoolExecutor(2) as pool:
        asked = pool.submit(ask, server, 9)
        script.gate.wait_for(1)
        assert not server.engine.drain(server.engine.clock.now() + SECOND // 20)
        script.gate.open()
        assert server.engine.drain(server.engine.clock.now() + 20 * SECOND)
        assert np.array_equal(asked.result()["OUT"], expected(9))


def test_a_reload_answers_what_is_under_way(counting: Home, serve: Serve) -> None:
    server = serve(control=ModelControl("explicit", ("count",)))
    script = counting.scripts["work"]
    script.gate = Gate()
    with ThreadPoolExecutor(2) as pool:
        asked = pool.submit(ask, server, 9)
        script.gate.wait_for(1)
        counting.graph("count", COUNT.replace("max_batch_size: 8", "max_batch_size: 4"), NODES)
        loading = pool.submit(server.client.load_model, "count")
        script.gate.wait_for(2)  # what warms the new one up has come
        script.gate.open()
        loading.result()
        assert np.array_equal(asked.result()["OUT"], expected(9))
        assert server.engine.routes.resolve("count").spec.max_batch_size == 4
        assert np.array_equal(ask(server, 3)["OUT"], expected(3))


def test_closing_in_the_middle_answers_everybody_and_leaves_nothing_open(
    counting: Home, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    server = serve()
    script = counting.scripts["work"]
    script.gate = Gate()
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(ask, server, 30) for _ in range(8)]
        script.gate.wait_for(1)
        closing = threading.Thread(target=server.engine.close, args=(server.engine.clock.now() + SECOND // 5,))
        closing.start()
        outcomes = [each.exception(20) for each in asked]
        script.gate.open()
        closing.join(20)
    assert not closing.is_alive()
    assert all(isinstance(each, HeadraceError) for each in outcomes)
    assert "still runs; its session is not closed" not in caplog.text


def test_wrong_rows_are_told(home: Home, serve: Serve) -> None:
    wrong = NODES.replace("places.astype(np.float32)", "places")
    home.model("work", double(), rows=4, dims="1")
    home.graph("count", COUNT, wrong)
    server = serve()
    with pytest.raises(BackendFailed, match=r"a row of 'part' is INT64\[1\], declared is FP32\[1\]"):
        ask(server, 2)


def test_rows_that_go_on_cannot_be_split(home: Home, serve: Serve) -> None:
    home.model("work", double(), rows=4, dims="1")
    home.graph("count", f"parameters: {{split_oversize: true}}\n{COUNT}", NODES)
    (reason,) = [status.reason for status in serve().engine.statuses() if status.model == "count"]
    assert "'split_oversize' is 'true', but the rows of node 'split' go" in reason


def test_what_did_not_change_is_not_brought_up_again(counting: Home, serve: Serve) -> None:
    server = serve(control=ModelControl("explicit", ("count", "texts")))
    before = [server.engine.routes.resolve(name) for name in ("count", "texts")]
    for name in ("count", "texts", "work"):
        server.client.load_model(name)
    assert [server.engine.routes.resolve(name) for name in ("count", "texts")] == before


def test_a_graph_that_is_asked_wrongly_says_so(counting: Home, serve: Serve) -> None:
    server = serve()
    with pytest.raises(InvalidRequest, match="NUMBER"):
        server.engine.infer("count", {"NUMBER": np.zeros((1, 2), np.int64)})


def test_nothing_is_made_up_where_no_row_came(counting: Home, serve: Serve) -> None:
    counting.graph("count", COUNT.replace('OUT: "FP32[-1,1]"', 'OUT: "FP32[3,1]"'), NODES)
    server = serve()
    assert np.array_equal(ask(server, 3)["OUT"], expected(3))
    with pytest.raises(BackendFailed, match="nothing became of this request"):
        ask(server, 0)


def test_what_may_be_as_long_as_its_padding_is_refused(home: Home, serve: Serve) -> None:
    parameters = {"padding": "x=0", "padding_buckets": "4 8"}
    more = "".join(f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n' for key, value in parameters.items())
    home.model("encode", dims="-1", more=more)
    nodes = (
        NODES
        + NODES[NODES.index("class Letters") :]
        .replace("Letters", "Floats")
        .replace("INT64[-1]", "FP32[-1]")
        .replace("np.int64", "np.float32")
        + NODES[NODES.index("class End") : NODES.index("class Letters")]
        .replace("End", "Tag")
        .replace('inputs = {"x": "FP32[1]", "number": "INT64[1]"}', 'inputs = {"x": "FP32[-1]"}')
        .replace('"FP32[1]"}', '"FP32[-1]"}')
    )
    text = """
max_batch_size: 8
inputs: {TEXT: "BYTES[1]"}
outputs: {OUT: "FP32[%s]"}
nodes:
  letters: {run: "nodes.py:Floats", inputs: {text: TEXT}, outputs: {letters: letters}}
  encode: {model: encode, inputs: {x: letters}, outputs: {y: encoded}}
  tag: {run: "nodes.py:Tag", inputs: {x: encoded}, outputs: {y: OUT}}
"""
    home.graph("tags", text % "-1", nodes)
    home.graph("fixed", text % "4", nodes)
    reasons = {status.model: status.reason for status in serve().engine.statuses()}
    assert "output 'OUT' is made of rows that are padded, and its size varies" in reasons["tags"]
    assert reasons["fixed"] == ""
