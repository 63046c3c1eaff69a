"""Where the output of a job is: a directory, or a place in an object store."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from headrace.jobs.directory import JobDirectory
from headrace.jobs.manifest import Done, Manifest
from headrace.jobs.stores.urls import is_url


class Location(Protocol):
    """See `JobDirectory`, and `stores.location.JobStore`, which say what each of these does."""

    @property
    def name(self) -> str:
        """As people say it: a path or a URL."""
        ...

    def writer(self) -> Location:
        """The same place for another process, to which it can be sent: one of several that put parts there.

        Only for whoever holds the lock, which others do not take.
        """
        ...

    def prepare(self) -> None:
        """Make it, where there is nothing yet."""
        ...

    def lock(self) -> AbstractContextManager[None]:
        """Hold it, so that no other run works on it."""
        ...

    def tidy(self) -> None:
        """Remove what a run left that did not come to its end. Only for whoever holds the lock."""
        ...

    def manifest(self) -> Manifest | None:
        """The job that was begun here, if one was."""
        ...

    def begin(self, manifest: Manifest) -> None:
        """Write down what is going to be done, before anything is."""
        ...

    def done(self) -> dict[int, Done]:
        """The finished splits, by their numbers."""
        ...

    def temporary(self, split: int) -> Path:
        """Where a part is written, on disk, before it is put in its place."""
        ...

    def put_rejects(self, split: int, content: bytes) -> None:
        """Write down the rejected rows of a split, if there are any."""
        ...

    def put_part(self, done: Done) -> None:
        """Put a part that was written in its place, and record the split."""
        ...


def location_of(output: Path | str) -> Location:
    """A directory, or what a URL names.

    Raises:
        InvalidJob: it is no URL of a store that is known.
    """
    if isinstance(output, str) and is_url(output):
        from headrace.jobs.stores.location import JobStore

        return JobStore(output)
    return JobDirectory(Path(output).absolute())
