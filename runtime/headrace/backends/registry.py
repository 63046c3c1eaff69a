"""Backends by the name a configuration calls them. A backend is imported when the first model asks for it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from importlib import import_module

from headrace.backends.base import Backend, Calling, Inner
from headrace.backends.fallback import SEVERAL, SeveralBackends
from headrace.backends.installed import check_onnxruntime, check_tritonclient
from headrace.errors import InvalidRepository

_LOCK = threading.Lock()


def _onnxruntime() -> Backend:
    check_onnxruntime()
    return import_module("headrace.backends.onnx").OnnxBackend()


def _fake() -> Backend:
    return import_module("headrace.backends.fake").FakeBackend()


def _python() -> Backend:
    return import_module("headrace.backends.python").PythonBackend()


def _triton() -> Backend:
    check_tritonclient()
    return import_module("headrace.backends.triton.backend").TritonBackend()


BUILT_IN: Mapping[str, Callable[[], Backend]] = {
    "onnxruntime": _onnxruntime,
    "python": _python,
    "triton": _triton,
    "fake": _fake,
}


class Backends:
    """The backends of one engine, each made once.

    Args:
        given: backends to use instead of the built-in ones, by name.
        inner: the way into that engine, for models that ask others.
    """

    def __init__(self, given: Mapping[str, Backend] | None = None, inner: Inner | None = None) -> None:
        self._made: dict[str, Backend] = dict(given or {})
        self._inner = inner

    def get(self, name: str, model: str) -> Backend:
        """The backend called `name`, for `model`.

        Raises:
            InvalidRepository: there is none of that name, or what it needs is not installed.
        """
        with _LOCK:
            if name == SEVERAL:
                return SeveralBackends(self.get)
            if name not in self._made:
                if name not in BUILT_IN:
                    known = ", ".join(sorted({*BUILT_IN, *self._made, SEVERAL} - {"fake"}))
                    raise InvalidRepository(
                        f"model '{model}' needs backend '{name}', which this server does not have; it has: {known}"
                    )
                made = BUILT_IN[name]()
                if isinstance(made, Calling) and self._inner is not None:
                    made.connect(self._inner)
                self._made[name] = made
            return self._made[name]
