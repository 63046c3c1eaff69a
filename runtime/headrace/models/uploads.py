"""Model files that came with a load request, in a private directory of their own."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from headrace.errors import InvalidRepository
from headrace.models.check import is_outside
from headrace.models.repository import Repository, check_name


class Upload:
    """The files of one model, written to a temporary directory that is removed when nobody holds this any longer.

    Args:
        model: its name.
        files: contents by path in the model's directory, such as `1/model.onnx`. How much they may hold is for the transport.

    Raises:
        InvalidRepository: the name is none, a path leads out of the directory, or the disk does not take them.
    """

    def __init__(self, model: str, files: Mapping[str, bytes]) -> None:
        check_name(model)
        for path in files:
            _check_path(path)
        self.path = Path(tempfile.mkdtemp(prefix="headrace-load-"))
        self._remove = weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)
        self.repository = Repository(self.path)
        for path, content in files.items():
            target = self.path / model / path
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)
            except OSError as error:
                self._remove()
                raise InvalidRepository(f"load parameter 'file:{path}' cannot be written: {error.strerror}") from None

    def __repr__(self) -> str:
        return f"<Upload in {self.path}>"


def _check_path(path: str) -> None:
    plain = path and "\0" not in path and path == str(PurePosixPath(path)) and path != "."
    if not plain or is_outside(path):
        raise InvalidRepository(
            f"load parameter 'file:{path}' must name a file inside the model directory, such as 'file:1/model.onnx'"
        )
