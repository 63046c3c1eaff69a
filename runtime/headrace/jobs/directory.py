"""The output of a job on disk: parts where readers look for them, all else in places that they skip.

```
out/part-00000.parquet          or day=3/part-00000.parquet
out/_rejects/part-00000.jsonl   rows that are not in the part, and why; only where there are any
out/_headrace/manifest.json      the job
out/_headrace/splits/00000.json what became of a split, written when its part is in place
out/_headrace/tmp/               parts that are being written
out/_headrace/lock
```

A part is written to `tmp`, synced, renamed, and then recorded. Whatever happens in between, a split without a record is made
again, and takes the place of what is there.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from pydantic import ValidationError

from headrace.errors import InvalidJob
from headrace.files import replace_file, sync_directory
from headrace.jobs.lock import locked
from headrace.jobs.manifest import FORMAT, Done, Manifest

REJECTS = "_rejects"
_OWN = "_headrace"


class JobDirectory:
    """The directory `root`, which need not exist yet.

    Of several that write parts of one job, each has a `writer` of its own: one that is taken for dead may still write.
    """

    def __init__(self, root: Path, writer: str = "") -> None:
        self.root, self._writer = root, writer
        self._own = root / _OWN
        self._manifest, self._splits, self._tmp = self._own / "manifest.json", self._own / "splits", self._own / "tmp"

    def prepare(self) -> None:
        """Make it, where there is nothing yet.

        Raises:
            InvalidJob: it cannot be made, or there is something else.
        """
        try:
            if self.root.is_dir() and not self._own.is_dir() and any(self.root.iterdir()):
                raise InvalidJob(
                    f"{self.root} is not empty, and no output of a job: give a directory that is empty, or not there yet"
                )
            for path in (self._splits, self._tmp):
                path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidJob(f"{self.root} cannot be written to: {error.strerror}; give another output") from None

    def lock(self) -> AbstractContextManager[None]:
        """Hold it. See `lock.locked`."""
        return locked(self._own / "lock")

    def tidy(self) -> None:
        """Remove what a run left that did not come to its end. Only for whoever holds the lock."""
        for path in self._tmp.iterdir():
            path.unlink()

    # What was begun.

    def manifest(self) -> Manifest | None:
        """The job that was begun here, if one was.

        Raises:
            InvalidJob: it cannot be read.
        """
        try:
            text = self._manifest.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise InvalidJob(f"{self._manifest} cannot be read: {error.strerror}") from None
        try:
            found = json.loads(text)
            if found["format"] != FORMAT:
                raise InvalidJob(
                    f"{self._manifest} is of format {found['format']}, and this release writes {FORMAT}: go on with the release "
                    "that began the job, or begin it anew in another directory"
                )
            return Manifest.model_validate(found)
        except (ValueError, KeyError, TypeError) as error:
            told = _first_line(error)
            raise InvalidJob(f"{self._manifest} is no manifest: {told}; begin the job anew in another directory") from None

    def begin(self, manifest: Manifest) -> None:
        """Write down what is going to be done, before anything is."""
        replace_file(self._manifest, manifest.model_dump_json(indent=1).encode())

    # What was done.

    def done(self) -> dict[int, Done]:
        """The finished splits, by their numbers.

        Raises:
            InvalidJob: a record cannot be read.
        """
        found: dict[int, Done] = {}
        for path in sorted(self._splits.glob("*.json")):
            try:
                record = Done.model_validate_json(path.read_bytes())
            except (OSError, ValidationError) as error:
                told = _first_line(error)
                raise InvalidJob(f"{path} is no record of a split: {told}; remove it, and the split is made again") from None
            found[record.split] = record
        return found

    def temporary(self, split: int) -> Path:
        """Where a part is written."""
        return self._tmp / f"{split:05}{self._writer}"

    def rejects_of(self, split: int) -> Path:
        """Where the rejected rows of a split are told."""
        return self.root / REJECTS / f"part-{split:05}.jsonl"

    def put_rejects(self, split: int, lines: Sequence[str]) -> bytes | None:
        """Write down the rejected rows of a split; None when there are none."""
        file = self.rejects_of(split)
        if not lines:
            file.unlink(missing_ok=True)  # of a run that was told to read nulls in another way, say, and got no further
            return None
        file.parent.mkdir(exist_ok=True)
        content = "".join(f"{line}\n" for line in lines).encode()
        replace_file(file, content)
        return content

    def put_part(self, done: Done) -> None:
        """Put a part that was written and synced in its place, and record the split."""
        part = self.root / done.part
        part.parent.mkdir(parents=True, exist_ok=True)
        self.temporary(done.split).replace(part)
        for directory in (part.parent, *part.parent.parents):  # that of a partition may be new
            sync_directory(directory)
            if directory == self.root:
                break
        replace_file(self._splits / f"{done.split:05}.json", done.model_dump_json().encode())


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
