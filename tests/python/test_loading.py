"""Finding a class, and what is said where there is none."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from headrace.backends.loading import forget, load_class
from headrace.errors import InvalidRepository

CLASS = """
class Model:
    word = {word!r}
    def load(self, context): pass
    def run(self, tensors): return {{}}
"""


def test_two_files_of_one_name_do_not_meet(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.py").write_text(CLASS.format(word=name))
    a, b = (load_class("model.py:Model", tmp_path / name) for name in ("a", "b"))
    assert (a.word, b.word) == ("a", "b")
    assert sys.modules[a.__module__] is not sys.modules[b.__module__]
    forget(a)
    assert a.__module__ not in sys.modules


def test_a_reload_sees_the_new_text_and_leaves_no_files(tmp_path: Path) -> None:
    for word in ("old", "new"):  # of one length, within one second: bytecode would be taken for that of the other
        (tmp_path / "model.py").write_text(CLASS.format(word=word))
        assert load_class("model.py:Model", tmp_path).word == word
    assert [path.name for path in tmp_path.iterdir()] == ["model.py"]


def test_a_file_in_a_folder(tmp_path: Path) -> None:
    (tmp_path / "steps").mkdir()
    (tmp_path / "steps" / "words.py").write_text(CLASS.format(word="w"))
    assert load_class("steps/words.py:Model", tmp_path).word == "w"


def test_a_class_of_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some_package_of_ours.py").write_text(CLASS.format(word="package"))
    monkeypatch.syspath_prepend(tmp_path)
    cls = load_class("some_package_of_ours:Model", tmp_path)
    assert cls.word == "package"
    forget(cls)
    assert "some_package_of_ours" in sys.modules, "others may use it, too"
    del sys.modules["some_package_of_ours"]


@pytest.mark.parametrize(
    ("where", "text", "told"),
    [
        ("Model", "", "'Model' names no class; write file.py:Class for a file in "),
        ("model.py:", "", "names no class"),
        ("../model.py:Model", "", "'../model.py' must stay inside "),
        ("/model.py:Model", "", "'/model.py' must stay inside "),
        ("other.py:Model", "", "other.py: put the class there, or say where it is"),
        ("folder.py:Model", "", "folder.py cannot be read: "),
        ("model.py:Model", "import not_to_be_had", "model.py imports 'not_to_be_had', which is not installed; install the"),
        ("model.py:Model", "import numpy.not_to_be_had", "imports 'numpy.not_to_be_had', which is not installed"),
        ("model.py:Model", "def f(:", "model.py is no Python: invalid syntax (line 1)"),
        ("model.py:Model", "a = 1\nb = a / 0", "cannot be imported: ZeroDivisionError: division by zero ("),
        ("model.py:Model", "import sys\nsys.exit(3)", "cannot be imported: SystemExit: 3 ("),
        ("model.py:Model", "class A: pass\nclass B: pass", "'model.py:Model' is no class; the classes there are: A, B"),
        ("model.py:Model", "Model = 3", "is no class; the classes there are: none"),
        ("model.py:Model", "class Model: pass", "class 'model.py:Model' has no method load and none run; "),
        ("model.py:Model", "class Model:\n def load(self, context): pass", "has no method run; "),
        ("model.py:Model", "class TritonPythonModel: pass", "is written for Triton's Python backend (TritonPythonModel), and"),
        (
            "model.py:TritonPythonModel",
            "class TritonPythonModel: pass",
            "and is no node: make it a model of its own, with backend",
        ),
        ("model.py:Model", "import triton_python_backend_utils", "is written for Triton's Python backend"),
        ("not_to_be_had.at_all:Model", "", "there is no module 'not_to_be_had': install the package it is in for "),
        ("headrace.not_here:Model", "", "there is no module 'headrace.not_here': install"),
        ("headrace.clock:Model", "", "'headrace.clock:Model' is no class; the classes there are: Clock, MonotonicClock, "),
    ],
)
def test_what_cannot_be_used(tmp_path: Path, where: str, text: str, told: str) -> None:
    (tmp_path / "model.py").write_text(text)
    (tmp_path / "folder.py").mkdir()
    before = set(sys.modules)
    with pytest.raises(InvalidRepository) as caught:
        load_class(where, tmp_path)
    assert told in caught.value.message
    assert not [name for name in set(sys.modules) - before if name.startswith("headrace_node_")]


def test_the_place_of_an_error_is_told(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("a = 1\nb = a / 0")
    with pytest.raises(InvalidRepository, match=r"model\.py:2\)$"):
        load_class("model.py:Model", tmp_path)
