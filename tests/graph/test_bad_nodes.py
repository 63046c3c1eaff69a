"""Nodes that do what they should not, and inputs that a node cannot stand: whose request it is, it fails, and no other."""

from __future__ import annotations

import os
import signal
from concurrent.futures import Future, ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from demo.minilm import tokenizer_file
from headrace.errors import BackendFailed, InvalidRequest
from headrace.model import State
from tests.graph.conftest import Home, Serve
from tests.transport.serving import Server
from tests.waiting import until

GRAPH = """
max_batch_size: 8
inputs: {{TEXT: "BYTES[1]"}}
outputs: {{OUT: "INT64[1]"}}
nodes:
  odd: {{run: "nodes.py:Odd", inputs: {{text: TEXT}}, outputs: {{length: OUT}}{more}}}
"""
NODES = """
class Odd(Node):
    inputs = {"text": "BYTES[1]"}
    outputs = {"length": "INT64[1]"}

    def run(self, tensors):
        import os, sys, time
        texts = [text for text, in tensors["text"]]
        lengths = np.array([[len(text)] for text in texts])
        if b"pid" in texts:
            return {"length": np.full((len(texts), 1), os.getpid())}
        if b"raise" in texts:
            raise ValueError("it raised")
        if b"exit" in texts:
            sys.exit(3)
        if b"hang" in texts:
            while True:
                time.sleep(0.05)
        if b"fewer" in texts:
            return {"length": lengths[:-1]}
        if b"other" in texts:
            return {"size": lengths}
        if b"float" in texts:
            return {"length": lengths.astype(np.float32)}
        if b"none" in texts:
            return None
        return {"length": lengths}
"""


def ask(server: Server, text: str | bytes, name: str = "odd") -> int:
    return int(server.engine.infer(name, {"TEXT": [[text]]})["OUT"][0, 0])


@pytest.mark.parametrize("isolation", ["thread", "process"])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("raise", "it raised"),
        ("exit", "sys.exit|exit status 3"),
        ("fewer", r"the model returned shape \[0,1\], expected is \[1,1\]"),
        ("other", "output 'length': the model did not return it"),
        ("float", "the model returned datatype FP32, declared is INT64"),
        ("none", "returned None; it must return arrays by output name"),
    ],
)
def test_a_node_that_goes_wrong_fails_its_request_only(home: Home, serve: Serve, isolation: str, text: str, message: str) -> None:
    home.graph("odd", GRAPH.format(more=f", isolation: {isolation}"), NODES)
    server = serve()
    with ThreadPoolExecutor(4) as pool:
        asked: dict[str, Future[int]] = {each: pool.submit(ask, server, each) for each in ("fine", text, "good")}
        with pytest.raises(BackendFailed, match=message):
            asked[text].result()
        for each in ("fine", "good"):
            # Whoever ran in the process that ended has lost, too, and is told so.
            error = asked[each].exception()
            assert error is None or "it is being restarted" in str(error)
    until(lambda: ask_again(server) == 5)


def ask_again(server: Server) -> int:
    """A node whose process ended comes back."""
    try:
        return ask(server, "again")
    except BackendFailed:
        return 0


def test_a_process_that_hangs_is_ended_and_started_again(home: Home, serve: Serve) -> None:
    home.graph("odd", GRAPH.format(more=", isolation: process, run_timeout_s: 0.3"), NODES)
    server = serve()
    before = ask(server, "pid")
    assert before != os.getpid()
    with pytest.raises(BackendFailed, match=r"did not answer within 0\.3 s and was ended; it is being restarted"):
        ask(server, "hang")
    until(lambda: ask_again(server) == 5)
    assert ask(server, "pid") != before


def test_a_process_that_is_killed_in_a_batch_fails_that_one(home: Home, serve: Serve) -> None:
    home.graph("odd", GRAPH.format(more=", isolation: process"), NODES)
    server = serve()
    before = ask(server, "pid")
    with ThreadPoolExecutor(1) as pool:
        hanging = pool.submit(ask, server, "hang")
        until(lambda: server.waiting("odd") == 0 and is_busy(before))
        os.kill(before, signal.SIGKILL)
        with pytest.raises(BackendFailed, match="killed by signal 9; it is being restarted"):
            hanging.result()
    until(lambda: ask_again(server) == 5)
    assert ask(server, "pid") not in (before, os.getpid())


def is_busy(pid: int) -> bool:
    """Whether it is in the loop of `hang`: it sleeps there, and not in wait for a message."""
    return "nanosleep" in Path(f"/proc/{pid}/wchan").read_text() or "hrtimer" in Path(f"/proc/{pid}/wchan").read_text()


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ("import there_is_no_such_package\n", "there_is_no_such_package"),
        (NODES.replace("class Odd", "class Even"), "Odd"),
        (NODES.replace('"INT64[1]"}', '"WHOLE[1]"}'), "'WHOLE[1]'; write a datatype"),
        (NODES.replace('"INT64[1]"}', '"INT64[2]"}'), "output 'OUT' of the graph is declared as INT64[1], and tensor 'OUT'"),
        (NODES.replace("def run", "def load(self, context):\n        raise OSError('no weights')\n\n    def run"), "no weights"),
    ],
)
def test_a_node_that_cannot_be_loaded(home: Home, serve: Serve, nodes: str, message: str) -> None:
    home.graph("odd", GRAPH.format(more=""), nodes)
    (status,) = serve().engine.statuses()
    assert status.state is State.UNAVAILABLE
    assert message in status.reason


TOKENS = """
max_batch_size: 8
inputs: {TEXT: "BYTES[1]"}
outputs: {IDS: "INT64[-1]"}
nodes:
  tokens: {run: tokenizer, with: {file: tokenizer.json}, inputs: {text: TEXT}, outputs: {ids: IDS}}
"""
PICTURE = """
max_batch_size: 8
inputs: {IMAGE: "BYTES[1]"}
outputs: {PIXELS: "FP32[3,4,4]"}
nodes:
  image: {run: image, with: {size: [4, 4], most_pixels: 10000}, inputs: {image: IMAGE}, outputs: {pixels: PIXELS}}
"""


def test_text_that_is_none_fails_its_request_only(home: Home, serve: Serve) -> None:
    home.graph("tokens", TOKENS)
    (home.root / "tokens/tokenizer.json").write_bytes(tokenizer_file().read_bytes())
    server = serve()

    def tokens(text: bytes) -> Any:
        return server.engine.infer("tokens", {"TEXT": [[text]]})["IDS"]

    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(tokens, text) for text in (b"a mill", b"\xff\xfe", b"a mill wheel", b"\xc3", b"")]
        shapes = [each.result().shape for each in (asked[0], asked[2], asked[4])]
        assert shapes == [(1, 4), (1, 5), (1, 2)]
        for each in (asked[1], asked[3]):
            with pytest.raises(InvalidRequest, match="UTF-8"):
                each.result()


def test_an_image_that_is_none_fails_its_request_only(home: Home, serve: Serve) -> None:
    home.graph("picture", PICTURE)
    server = serve()
    file = BytesIO()
    Image.new("RGB", (8, 8), (255, 0, 0)).save(file, "PNG")
    large = BytesIO()
    Image.new("L", (200, 200)).save(large, "PNG")

    def pixels(content: bytes) -> Any:
        return server.engine.infer("picture", {"IMAGE": [[content]]})["PIXELS"]

    with ThreadPoolExecutor(8) as pool:
        good, bad = file.getvalue(), (b"no image", file.getvalue()[:40], large.getvalue(), b"")
        asked = [pool.submit(pixels, content) for content in (good, *bad, good)]
        for each in (asked[0], asked[-1]):
            assert each.result().mean(axis=(2, 3)).round(3).tolist() == [[1.0, 0.0, 0.0]]
        for each in asked[1:-1]:
            with pytest.raises(InvalidRequest, match="row 0 of 'image'"):
                each.result()


def test_the_process_of_a_node_ends_with_its_graph(home: Home, serve: Serve) -> None:
    home.graph("odd", GRAPH.format(more=", isolation: process"), NODES)
    server = serve()
    pid = ask(server, "pid")
    assert np.asarray(pid) > 0
    server.engine.close()
    until(lambda: not Path(f"/proc/{pid}").exists())
