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

import uuid
from contextlib import AbstractContextManager
from pathlib import Path

from headrace.errors import InvalidJob
from headrace.files import replace_file, sync_directory
from headrace.jobs.lock import locked
from headrace.jobs.manifest import Done, Manifest
from headrace.jobs.records import OWN, done_of, manifest_of, rejects_path, unreadable


class JobDirectory:
    """The directory `root`, which need not exist yet.

    Of several that write parts of one job, each has a `writer` of its own: one that is taken for dead may still write.
    """

    def __init__(self, root: Path, writer: str = "") -> None:
        self.root, self.name, self._writer = root, str(root), writer
        self._own = root / OWN
        self._manifest, self._splits, self._tmp = self._own / "manifest.json", self._own / "splits", self._own / "tmp"

    def writer(self) -> JobDirectory:
        """The same directory for another process, which has it under the same path."""
        return JobDirectory(self.root, f"-{uuid.uuid4().hex}")

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
        return manifest_of(text, self._manifest)

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
                record = done_of(path.read_bytes(), path)
            except OSError as error:
                raise unreadable(path, error) from None
            found[record.split] = record
        return found

    def temporary(self, split: int) -> Path:
        """Where a part is written."""
        return self._tmp / f"{split:05}{self._writer}"

    def put_rejects(self, split: int, content: bytes) -> None:
        """Write down the rejected rows of a split, if there are any."""
        file = self.root / rejects_path(split)
        if not content:
            file.unlink(missing_ok=True)  # of a run that was told to read nulls in another way, say, and got no further
            return
        file.parent.mkdir(exist_ok=True)
        replace_file(file, content)

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
