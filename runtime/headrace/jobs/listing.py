"""Which files an input is: paths, directories and patterns to files, in an order that is always the same."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple
from urllib.parse import unquote

import pyarrow.fs as pfs

from headrace.errors import InvalidJob

_WILD = re.compile(r"[*?\[]")
HIDDEN = (".", "_")
"""How names begin of what is no table: of what is being written, and of what says that something is."""
_NO_VALUE = "__HIVE_DEFAULT_PARTITION__"


class Found(NamedTuple):
    """A file as its file system lists it; nothing has opened it.

    Attributes:
        path: in the words of the file system.
        size: in bytes.
        modified_ns: since 1970, 0 where the file system does not say.
        partition: the directories `key=value` in which it lies below the place it was looked for, as in `day=3/hour=7`.
    """

    path: str
    size: int
    modified_ns: int
    partition: str


def find(where: Sequence[str], filesystem: pfs.FileSystem, hidden: tuple[str, ...]) -> list[Found]:
    """The files that paths, directories and patterns name: in the order of `where`, and by path below each.

    A directory is all files below it; in a pattern `*` and `?` stay within a directory, and `**` goes through any. Where
    directories are gone through, names that begin with what is `hidden` are left out.

    Raises:
        InvalidJob: there is nothing, or something twice.
        OSError: the file system does not tell.
    """
    found: list[Found] = []
    for one in where:
        these = sorted(_below(one, filesystem, hidden))
        if not these:
            raise InvalidJob(f"there is no file at {one}; give a file, a directory or a pattern such as 'data/*.parquet'")
        found += these
    seen: set[str] = set()
    for path, *_ in found:
        if path in seen:
            raise InvalidJob(f"{path} is in the input twice; its rows would be, too")
        seen.add(path)
    return found


def partition_values(partition: str) -> dict[str, str | None]:
    """Keys and values of directories as Hive writes them; None is no value."""
    pairs = [directory.split("=", 1) for directory in partition.split("/")] if partition else []
    return {unquote(key): None if value == _NO_VALUE else unquote(value) for key, value in pairs}


def _below(where: str, filesystem: pfs.FileSystem, hidden: tuple[str, ...]) -> Iterator[Found]:
    pattern: list[str] | None = None
    base = where.rstrip("/") or "/"
    info = filesystem.get_file_info(base)
    if (file := file_of(info, "")) is not None:
        yield file
        return
    if info.type == pfs.FileType.NotFound and _WILD.search(where):
        parts = where.split("/")
        wild = next(place for place, part in enumerate(parts) if _WILD.search(part))
        base, pattern = "/".join(parts[:wild]) or ("/" if where.startswith("/") else ""), parts[wild:]
    try:
        listed = filesystem.get_file_info(pfs.FileSelector(base, allow_not_found=True, recursive=True))
    except UnicodeDecodeError as error:
        raise InvalidJob(f"a name below {base} is not UTF-8 ({error.object!r}), and a table cannot hold it; rename it") from None
    for info in listed:
        parts = info.path[len(base) :].strip("/").split("/")
        is_hidden = (pattern is None or "**" in pattern) and any(part.startswith(hidden) for part in parts)
        file = file_of(info, "/".join(part for part in parts[:-1] if "=" in part))
        if file is not None and not is_hidden and (pattern is None or _matches(parts, pattern)):
            yield file


def file_of(info: pfs.FileInfo, partition: str) -> Found | None:
    """A file, if it is one."""
    return None if info.type != pfs.FileType.File else Found(info.path, info.size, info.mtime_ns or 0, partition)


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return _matches(parts, pattern[1:]) or (bool(parts) and _matches(parts[1:], pattern))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])
