"""A filesystem that notes what is opened."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.fs as fs


class Counting(fs.FileSystemHandler):
    """The local one; `opened` has the path of every file that was opened, as often as it was."""

    def __init__(self) -> None:
        self._local = fs.LocalFileSystem()
        self.opened: list[str] = []

    @property
    def filesystem(self) -> fs.PyFileSystem:
        return fs.PyFileSystem(self)

    def get_type_name(self) -> str:
        return "counting"

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: list[str]) -> list[fs.FileInfo]:
        return self._local.get_file_info(paths)

    def get_file_info_selector(self, selector: fs.FileSelector) -> list[fs.FileInfo]:
        return self._local.get_file_info(selector)

    def open_input_stream(self, path: str) -> pa.NativeFile:
        self.opened.append(path)
        return self._local.open_input_stream(path)

    def open_input_file(self, path: str) -> pa.NativeFile:
        self.opened.append(path)
        return self._local.open_input_file(path)

    def _never(self, *_: Any, **__: Any) -> None:
        raise AssertionError("an input is only read")

    create_dir = delete_dir = delete_dir_contents = delete_root_dir_contents = delete_file = move = copy_file = _never
    open_output_stream = open_append_stream = _never
