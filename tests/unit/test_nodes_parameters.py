"""What the built-in nodes say to parameters that do not fit, and to packages that are missing."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from headrace.errors import InvalidRepository
from headrace.graph.nodes import BUILT_IN
from headrace.node import Node, tensor_of
from tests.unit.nodes import loaded

ENOUGH: dict[str, dict[str, Any]] = {
    "image": {"size": [2, 3]},
    "top_k": {"k": 2},
    "labels": {"labels": ["a"]},
}


@pytest.mark.parametrize("name", sorted(set(BUILT_IN) - {"tokenizer"}))
def test_every_node_is_one(name: str) -> None:
    node = loaded(name, **ENOUGH.get(name, {}))
    assert isinstance(node, Node)
    for tensors in (node.inputs, node.outputs):
        assert tensors
        assert all(tensor_of(tensor, text) for tensor, text in tensors.items())


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("softmax", {"axis": 1}, "node 'mine': parameter 'axis' is unknown; it has none"),
        ("l2_normalise", {"axis": 1}, "node 'mine': parameter 'axis' is unknown; it has none"),
        ("mean_pooling", {"normalize": True}, "node 'mine': parameter 'normalize' is unknown; did you mean 'normalise'?"),
        ("mean_pooling", {"normalise": 1}, "node 'mine': parameter 'normalise' is 1: input should be a valid boolean"),
        ("top_k", {}, "node 'mine': parameter 'k' is missing: how many of the highest scores to return"),
        ("top_k", {"k": 0}, "node 'mine': parameter 'k' is 0: input should be greater than 0"),
        ("top_k", {"k": True}, "node 'mine': parameter 'k' is True: input should be a valid integer"),
        ("top_k", {"k": "3"}, "node 'mine': parameter 'k' is '3': input should be a valid integer"),
        ("image", {}, "node 'mine': parameter 'size' is missing: [height, width] of the pixels that come out"),
        ("image", {"size": [224]}, "node 'mine': parameter 'size' is [224]: list should have at least 2 items"),
        ("image", {"size": [224, 0]}, "node 'mine': parameter 'size.1' is 0: input should be greater than 0"),
        ("image", {"size": [2, 2], "fit": "x"}, "parameter 'fit' is 'x': input should be 'stretch', 'crop' or 'pad'"),
        ("image", {"size": [2, 2], "mean": [0.5]}, "parameter 'mean' is [0.5]: expected 3 numbers, for mode RGB"),
        (
            "image",
            {"size": [2, 2], "mode": "L", "std": [1, 1, 1]},
            "parameter 'std' is [1, 1, 1]: expected 1 number, for mode L",
        ),
        ("image", {"size": [2, 2], "std": [1, 0, 1]}, "parameter 'std.1' is 0: input should be greater than 0"),
        ("image", {"size": [2, 2], "scale": float("nan")}, "parameter 'scale' is nan: input should be"),
        ("decode", {"size": [2, 2]}, "node 'mine': parameter 'size' is unknown; it has most_pixels"),
        ("labels", {}, "node 'mine': expected one of the parameters 'file' and 'labels'"),
        ("labels", {"labels": ["a"], "file": "b"}, "node 'mine': expected one of the parameters 'file' and 'labels'"),
        ("labels", {"labels": []}, "parameter 'labels' is []: list should have at least 1 item"),
        ("labels", {"labels": ["a", 1]}, "parameter 'labels.1' is 1: input should be a valid string"),
        ("labels", {"file": "../labels.txt"}, "node 'mine': file is '../labels.txt'; name a file inside "),
        ("labels", {"file": "/etc/passwd"}, "node 'mine': file is '/etc/passwd'; name a file inside "),
        ("labels", {"file": "none.txt"}, "node 'mine': file is 'none.txt', and there is no file "),
        ("tokenizer", {}, "node 'mine': parameter 'file' is missing: a tokenizer.json beside the graph"),
        ("tokenizer", {"file": "../x.json"}, "node 'mine': file is '../x.json'; name a file inside "),
        ("tokenizer", {"file": "x", "k": 1, "most_tokens": 0}, "parameter 'k' is unknown; it has file, most_tokens, type_ids"),
        ("tokenizer", {"file": "x", "k": 1, "most_tokens": 0}, "parameter 'most_tokens' is 0: input should be greater than 0"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, name: str, given: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRepository) as caught:
        loaded(name, tmp_path, **given)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "module", "package", "given"),
    [
        ("image", "PIL", "pillow", {"size": [2, 2]}),
        ("decode", "PIL", "pillow", {}),
        ("tokenizer", "tokenizers", "tokenizers", {"file": "tokenizer.json"}),
    ],
)
def test_a_missing_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, module: str, package: str, given: dict[str, Any]
) -> None:
    (tmp_path / "tokenizer.json").touch()
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "headrace.graph.nodes.pillow", raising=False)
    with pytest.raises(InvalidRepository) as caught:
        loaded(name, tmp_path, **given)
    assert str(caught.value) == f"node 'mine' needs the package {package}: pip install 'headrace[nodes]'"
