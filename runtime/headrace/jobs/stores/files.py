"""Objects of stores as pyarrow reads files. A path is a URL."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.fs as pfs

from headrace.jobs.stores.objects import Object, Objects

_BLOCK = 2 << 20
_BLOCKS = 16
"""What is kept of an open object: columns are read by turns, each in pieces smaller than a request is worth."""
_AT_ONCE = 16


class StoreFiles(pfs.FileSystemHandler):
    """A filesystem of objects, to read from."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    def get_type_name(self) -> str:
        """Of the filesystem."""
        return "headrace-stores"

    def normalize_path(self, path: str) -> str:
        """As it is."""
        return path

    def get_file_info(self, paths: list[str]) -> list[pfs.FileInfo]:
        """What is at each of these paths; a directory is what has something below it."""
        if len(paths) == 1:
            return [self._info(paths[0])]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            return list(pool.map(self._info, paths))

    def _info(self, path: str) -> pfs.FileInfo:
        found = self._objects.find(path)
        if found is not None:
            return _file(found)
        return pfs.FileInfo(path, pfs.FileType.Directory if self._objects.has_below(path) else pfs.FileType.NotFound)

    def get_file_info_selector(self, selector: pfs.FileSelector) -> list[pfs.FileInfo]:
        """All objects below a path, however deep; directories are not told of."""
        return [_file(found) for found in self._objects.below(selector.base_dir)]

    def open_input_file(self, path: str) -> pa.PythonFile:
        """Open an object, to be read in any order.

        Raises:
            FileNotFoundError: it is not there.
        """
        found = self._objects.find(path)
        if found is None:
            raise FileNotFoundError(f"{path} is not there")
        return pa.PythonFile(_Opened(self._objects, found), mode="r")

    def open_input_stream(self, path: str) -> pa.PythonFile:
        """Open an object."""
        return self.open_input_file(path)

    def _never(self, *_: Any, **__: Any) -> None:
        raise NotImplementedError("objects are only read in this way")

    create_dir = delete_dir = delete_dir_contents = delete_root_dir_contents = delete_file = move = copy_file = _never
    open_output_stream = open_append_stream = _never


class _Opened(io.RawIOBase):
    """An object that is read; if somebody writes it anew meanwhile, that is an error, and no mixture of both."""

    def __init__(self, objects: Objects, found: Object) -> None:
        self._objects, self._found, self._at = objects, found, 0
        self._block = lru_cache(_BLOCKS)(lambda number: self._range(number * _BLOCK, (number + 1) * _BLOCK))

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._found.size}[whence]
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        first = self._at
        last = self._found.size if size is None or size < 0 else min(first + size, self._found.size)
        if first >= last:
            return b""
        self._at = last
        if last - first > _BLOCK:
            return self._range(first, last)
        start = first // _BLOCK * _BLOCK
        blocks = b"".join(self._block(number) for number in range(first // _BLOCK, (last - 1) // _BLOCK + 1))
        return blocks[first - start : last - start]

    def _range(self, first: int, last: int) -> bytes:
        return self._objects.read_range(self._found, first, min(last, self._found.size))


def _file(found: Object) -> pfs.FileInfo:
    return pfs.FileInfo(found.url, pfs.FileType.File, size=found.size, mtime_ns=found.modified_ns)
