"""The class that a repository names: in a file beside it, or in a package that is installed."""

from __future__ import annotations

import itertools
import sys
import traceback
from importlib import import_module
from pathlib import Path, PurePath
from types import ModuleType
from typing import Any

from headrace.errors import InvalidRepository, sentence

_NUMBERS = itertools.count(1)
_PREFIX = "headrace_node_"

_TRITON_CLASS, _TRITON_MODULE = "TritonPythonModel", "triton_python_backend_utils"


def load_class(where: str, directory: Path) -> type[Any]:
    """The class called `where`: `file.py:Class`, a file below `directory`, or `package.module:Class`.

    A file is executed anew each time, as a module of its own, so that two files of one name do not meet and a reload sees the
    new text; `forget` frees it.

    Raises:
        InvalidRepository: there is no such class, or it is none that can be run; the message says what to do.
    """
    place, colon, name = where.rpartition(":")
    if not (colon and place and name.isidentifier()):
        raise InvalidRepository(
            f"'{where}' names no class; write file.py:Class for a file in {directory}, or package.module:Class for a package "
            "that is installed"
        )
    module = _from_file(place, directory) if place.endswith(".py") else _from_package(place)
    try:
        return _class_of(module, name, where)
    except InvalidRepository:
        _drop(module.__name__)
        raise


def forget(cls: type[Any]) -> None:
    """Let go of the module of a class that came from a file."""
    _drop(cls.__module__)


def words(error: BaseException) -> str:
    """An exception by its class and what it says."""
    kind, said = type(error).__name__, sentence(error)
    return kind if said == kind else f"{kind}: {said}"


def place_of(error: BaseException) -> str:
    """Where it was raised, in parentheses behind a blank."""
    frames = traceback.extract_tb(error.__traceback__)
    return f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""


def _drop(module: str) -> None:
    if module.startswith(_PREFIX):
        sys.modules.pop(module, None)


def _from_file(filename: str, directory: Path) -> ModuleType:
    if PurePath(filename).is_absolute() or ".." in PurePath(filename).parts:
        raise InvalidRepository(f"'{filename}' must stay inside {directory}")
    file = directory / filename
    try:
        source = file.read_bytes()
    except FileNotFoundError:
        raise InvalidRepository(f"no file {file}: put the class there, or say where it is") from None
    except OSError as error:
        raise InvalidRepository(f"{file} cannot be read: {error}") from error
    module = ModuleType(f"{_PREFIX}{next(_NUMBERS)}_{file.stem}")
    module.__file__ = str(file)
    sys.modules[module.__name__] = module  # dataclasses and pickle look their classes' modules up there
    try:
        # Not by the import system: that would leave a __pycache__ in the repository, and might take an old one for this text.
        exec(compile(source, str(file), "exec", dont_inherit=True), vars(module))
    except (Exception, SystemExit) as error:
        _drop(module.__name__)
        raise _failed(str(file), error) from error
    return module


def _from_package(name: str) -> ModuleType:
    try:
        return import_module(name)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
            raise InvalidRepository(
                f"there is no module '{error.name}': install the package it is in for {sys.executable}, or correct '{name}'"
            ) from None
        raise _failed(f"module '{name}'", error) from error


def _failed(what: str, error: BaseException) -> InvalidRepository:
    if isinstance(error, ModuleNotFoundError) and error.name == _TRITON_MODULE:
        return _triton(what)
    if isinstance(error, ModuleNotFoundError) and error.name:
        return InvalidRepository(
            f"{what} imports '{error.name}', which is not installed; install the package it is in for {sys.executable}"
        )
    if isinstance(error, SyntaxError):
        return InvalidRepository(f"{what} is no Python: {error.msg} (line {error.lineno})")
    return InvalidRepository(f"{what} cannot be imported: {words(error)}{place_of(error)}")


def _class_of(module: ModuleType, name: str, where: str) -> type[Any]:
    found = getattr(module, name, None)
    if name == _TRITON_CLASS or (found is None and hasattr(module, _TRITON_CLASS)):
        raise _triton(where)
    if not isinstance(found, type):
        here = sorted(
            key for key, value in vars(module).items() if isinstance(value, type) and value.__module__ == module.__name__
        )
        raise InvalidRepository(f"'{where}' is no class; the classes there are: {', '.join(here) or 'none'}")
    missing = [method for method in ("load", "run") if not callable(getattr(found, method, None))]
    if missing:
        raise InvalidRepository(
            f"class '{where}' has no method {' and none '.join(missing)}; headrace/node.py says what it needs"
        )
    return found


def _triton(where: str) -> InvalidRepository:
    return InvalidRepository(
        f"{where} is written for Triton's Python backend ({_TRITON_CLASS}), and is no node: make it a model of its own, with "
        "backend 'python' and without the parameter 'class', and run that"
    )
