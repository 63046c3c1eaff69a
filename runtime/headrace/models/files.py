"""The files of a model on disk: which versions there are, whether they changed, and what their digest is.

Nothing here holds a lock, and whoever writes into a repository does not either. So directories are resolved once, and a walk
that meets a file which has just gone takes it for a change, not for an error.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from headrace.errors import InvalidRepository
from headrace.protocol.headrace_pb2 import ModelConfig

if TYPE_CHECKING:
    from headrace.models.graphs import Graph

_VERSION = re.compile(r"[1-9][0-9]{0,18}")
_MAX_VERSION = (1 << 63) - 1


class Found(NamedTuple):
    """A file below a directory; `status` is None when it went away, or points nowhere."""

    path: str
    status: os.stat_result | None


@dataclass(frozen=True)
class VersionFiles:
    """One version directory, symbolic links resolved when it was found: swapping a link later cannot mix two versions.

    `only` narrows the version to one file and the external data beside it.
    """

    number: int
    path: Path
    only: str | None = None
    found: Hashable = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "found", self._fingerprint())

    def digest(self) -> str:
        """SHA-256 of the contents, in hex; computed when first asked for.

        It is what this prints in the version directory, symbolic links followed:

            find -L . -type f -print0 | LC_ALL=C sort -z | xargs -0r sha256sum | sha256sum

        Raises:
            InvalidRepository: a file could not be read, or went away meanwhile.
        """
        return self._digest

    @property
    def nbytes(self) -> int:
        """How large its files are, in all."""
        return sum(found.status.st_size for found in self._files() if found.status is not None)

    def is_unchanged(self) -> bool:
        """Whether every file is still the one that was found, by inode, size and time of change."""
        return self._fingerprint() == self.found

    @cached_property
    def _digest(self) -> str:
        listing = hashlib.sha256()
        try:
            for name in sorted(os.fsencode(f"./{found.path}") for found in self._files() if _is_file(found)):
                with open(os.path.join(os.fsencode(self.path), name), "rb") as file:
                    content = hashlib.file_digest(file, "sha256").hexdigest()
                # sha256sum marks a line whose file name it had to escape.
                escaped = name.replace(b"\\", b"\\\\").replace(b"\n", b"\\n").replace(b"\r", b"\\r")
                listing.update(b"\\" * (escaped != name) + content.encode() + b"  " + escaped + b"\n")
        except OSError as error:
            raise InvalidRepository(
                f"version {self.number} cannot be read: {error}; if it is still being copied, load it again when it is complete"
            ) from error
        return listing.hexdigest()

    def _files(self) -> Iterator[Found]:
        for found in walk(self.path, deep=self.only is None):
            if self.only is None or belongs_to(found.path, self.only):
                yield found

    def _fingerprint(self) -> Hashable:
        return tuple(sorted(map(fingerprint_of, self._files())))


@dataclass(frozen=True)
class ModelFiles:
    """What a repository holds of one model, read at one moment.

    `config` is filled and checked as a whole, but not yet against the model file. `versions` are those the version policy
    asks for, ascending; `missing` says of those it asks for in vain why. `warnings` are lines for a person. `upload` owns the
    files, if they came with a request: whoever uses them holds it. `graph` is what a `graph.yaml` says; an ensemble says it in
    its configuration.
    """

    name: str
    path: Path
    config: ModelConfig
    config_text: str
    versions: tuple[VersionFiles, ...]
    missing: Mapping[int, str] = field(default_factory=dict[int, str])
    warnings: tuple[str, ...] = ()
    upload: object = None
    graph: Graph | None = None

    def __repr__(self) -> str:
        return f"<ModelFiles {self.name} {[version.number for version in self.versions]} in {self.path}>"


def version_directories(path: Path) -> tuple[dict[int, Path], list[str]]:
    """The version directories of a model by number, ascending, and a warning for each that looks like one but is not."""
    numbers: dict[int, Path] = {}
    odd: list[str] = []
    for name in sorted(_directories(path)):
        if _VERSION.fullmatch(name) and int(name) <= _MAX_VERSION:
            numbers[int(name)] = path / name
        elif re.fullmatch(r"[-+]?[0-9]+", name):
            odd.append(f"{path / name} is ignored: a version directory is a positive integer without leading zeros")
    return dict(sorted(numbers.items())), odd


def fingerprint(path: Path) -> Hashable | None:
    """What changes whenever a file of the model in `path` does: its own files and all below its version directories.

    None when there is no such directory.
    """
    if not os.path.isdir(path):
        return None
    real = path.resolve()
    top = sorted(map(fingerprint_of, walk(real, deep=False)))
    versions = [
        (number, tuple(sorted(map(fingerprint_of, walk(directory)))))
        for number, directory in version_directories(real)[0].items()
    ]
    return (real, tuple(top), tuple(versions))


def fingerprint_of(found: Found) -> tuple[str, tuple[int, ...]]:
    """Name and identity of one file."""
    status = found.status
    return found.path, () if status is None else (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def walk(directory: Path, *, deep: bool = True) -> Iterator[Found]:
    """Everything below a directory that is no directory itself, symbolic links followed, in no order."""
    try:
        status = directory.stat()
    except OSError:
        return
    yield from _walk(os.fspath(directory), "", frozenset({(status.st_dev, status.st_ino)}), deep)


def _walk(directory: str, prefix: str, above: frozenset[tuple[int, int]], deep: bool) -> Iterator[Found]:
    try:
        with os.scandir(directory) as entries:
            names = [entry.name for entry in entries]
    except OSError:
        yield Found(prefix, None)
        return
    for name in names:
        path = os.path.join(directory, name)
        try:
            status = os.stat(path)
        except OSError:
            yield Found(prefix + name, None)
            continue
        if not stat.S_ISDIR(status.st_mode):
            yield Found(prefix + name, status)
        # A link may lead back to a directory above.
        elif deep and (status.st_dev, status.st_ino) not in above:
            yield from _walk(path, f"{prefix}{name}/", above | {(status.st_dev, status.st_ino)}, deep)


def belongs_to(filename: str, model: str) -> bool:
    """Whether a file is the model file or the external data that exporters put beside it."""
    return filename == model or filename.startswith((f"{model}.data", f"{model}_data"))


def _is_file(found: Found) -> bool:
    return found.status is not None and stat.S_ISREG(found.status.st_mode)


def _directories(path: Path) -> list[str]:
    try:
        return [name for name in os.listdir(path) if os.path.isdir(path / name)]
    except OSError:
        return []
