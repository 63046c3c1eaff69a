"""Where files are: on disk, in an object store, or in a filesystem that somebody gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow.fs as pfs

from headrace.errors import InvalidJob
from headrace.jobs.stores.urls import is_url


def filesystem_of(where: Sequence[str], given: Any = None) -> pfs.FileSystem:
    """The filesystem of these paths, as pyarrow sees it.

    Args:
        where: paths, or URLs of objects; in a filesystem that is given, what they are is its own affair.
        given: a filesystem of pyarrow or of fsspec.

    Raises:
        InvalidJob: some are here and some are there, or what is given is no filesystem.
    """
    if isinstance(given, pfs.FileSystem):
        return given
    if given is not None:
        if not (hasattr(given, "protocol") and hasattr(given, "find")):
            raise InvalidJob(f"a {type(given).__name__} is no filesystem; give one of pyarrow or of fsspec")
        return pfs.PyFileSystem(pfs.FSSpecHandler(given))
    stored = [is_url(one) for one in where]
    if not any(stored):
        return pfs.LocalFileSystem()
    if not all(stored):
        raise InvalidJob(f"the input is in object stores and on disk ({' '.join(where)}); name one or the other")
    from headrace.jobs.stores.files import StoreFiles
    from headrace.jobs.stores.objects import Objects

    return pfs.PyFileSystem(StoreFiles(Objects()))
