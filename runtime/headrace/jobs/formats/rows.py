"""Where the rows of a text file end: at line feeds, in CSV those outside quotes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

_BLOCK = 1 << 20
_LINE_FEED, _RETURN, _QUOTE = b'\n\r"'


class Block(NamedTuple):
    """Whole rows: row i is `data[starts[i]:starts[i + 1]]`, or up to the end of `data`. Empty lines are none.

    `at` is the byte of the file where `data` begins, `nbytes` how much there is of it. Of a row that is too long `data` is empty.
    """

    data: bytes
    starts: NDArray[np.int64]
    at: int
    nbytes: int

    def rows(self, first: int, last: int) -> Block:
        """Some of the rows."""
        begin = int(self.starts[first])
        end = int(self.starts[last]) if last < len(self.starts) else len(self.data)
        return Block(self.data[begin:end], self.starts[first:last] - begin, self.at + begin, end - begin)


def blocks(file: pa.NativeFile, begin: int, most: int, delimiter: str | None) -> Iterator[Block]:
    """The rows of a file that is open at byte `begin`, where one begins; `delimiter` None where there are no quotes.

    A row of more than `most` bytes is a block of its own, of which nothing is kept.
    """
    quoted = None if delimiter is None else re.compile(_QUOTED % {b"between": re.escape(delimiter.encode())})
    rest, at = b"", begin
    while chunk := file.read(max(_BLOCK, min(len(rest), most - len(rest)))):
        data, rest = rest + chunk, b""  # which may be large: not held twice
        ends = _ends(data, quoted)
        if not len(ends):
            if len(data) <= most:
                rest = data
                continue
            size, rest = _skip(file, data, is_quoted=quoted is not None)
            yield Block(b"", np.zeros(1, np.int64), at, size)
            at += size
            continue
        cut = int(ends[-1])
        yield _block(data[:cut], ends, at)
        rest = data[cut:]
        at += cut
    if rest:
        yield _block(rest, np.union1d(_ends(rest, quoted), len(rest)), at)


_QUOTED = rb'(?:\A|(?<=[%(between)s\n]))"[^"]*(?:""[^"]*)*(?:"|\Z)'
"""A value in quotes: it begins where a value does, and a quote in it is doubled."""


def _ends(data: bytes, quoted: re.Pattern[bytes] | None) -> NDArray[np.int64]:
    """Behind which bytes rows end."""
    ends = np.flatnonzero(np.frombuffer(data, np.uint8) == _LINE_FEED) + 1
    if quoted is None or b'"' not in data:
        return ends
    spans = np.array([match.span() for match in quoted.finditer(data)], np.int64).reshape(-1, 2)
    if not len(spans):
        return ends
    before = np.searchsorted(spans[:, 0], ends - 1) - 1
    return ends[(before < 0) | (ends - 1 >= spans[before, 1])]


def _block(data: bytes, ends: NDArray[np.int64], at: int) -> Block:
    starts = np.concatenate(([0], ends[:-1]))
    content = np.frombuffer(data, np.uint8)
    lengths = ends - starts
    is_empty = (content[starts] == _LINE_FEED) | ((lengths == 2) & (content[starts] == _RETURN))
    return Block(data, starts[~is_empty], at, len(data))


def _skip(file: pa.NativeFile, data: bytes, *, is_quoted: bool) -> tuple[int, bytes]:
    """Read to the end of a row that is too long; how long it is, and what has been read of the next."""
    size, quotes = len(data), data.count(b'"')
    while chunk := file.read(_BLOCK):
        content = np.frombuffer(chunk, np.uint8)
        ends = np.flatnonzero(content == _LINE_FEED)
        at = np.flatnonzero(content == _QUOTE)
        if is_quoted:
            ends = ends[(quotes + np.searchsorted(at, ends)) % 2 == 0]
        if len(ends):
            end = int(ends[0]) + 1
            return size + end, chunk[end:]
        size, quotes = size + len(chunk), quotes + len(at)
    return size, b""
