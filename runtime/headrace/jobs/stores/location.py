"""The output of a job in an object store: named as in a directory, see `jobs.directory`.

There is no renaming in a store. A part is written on disk, to a file without a name, of which nothing is left whoever dies, and
becomes an object by one upload, which takes effect as a whole or not at all, and only where there is nothing. What is there is of
a run or an actor that died before it recorded the split: the same bytes, which stay, or others, if the graph does not give the
same twice, in whose place it then is put.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import tempfile
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from headrace.errors import InvalidJob, JobFailed
from headrace.files import replace_file
from headrace.jobs.lock import locked
from headrace.jobs.manifest import Done, Manifest
from headrace.jobs.records import OWN, REJECTS, done_of, manifest_of, rejects_path
from headrace.jobs.stores.lease import Lease, Lent, leased
from headrace.jobs.stores.objects import Objects

if TYPE_CHECKING:
    from typing_extensions import Buffer

_AT_ONCE = 16


class JobStore:
    """All objects whose names begin with a URL. Raises JobFailed when the store cannot be reached, or says no.

    Of several that put parts there, each has the lock `lent` by the one that holds it.
    """

    def __init__(self, url: str, lent: Lent | None = None) -> None:
        self.name = url.rstrip("/")
        self._objects = Objects()
        self._own = f"{self.name}/{OWN}"
        self._manifest, self._splits = f"{self._own}/manifest.json", f"{self._own}/splits"
        self._here = _directory() / hashlib.sha256(self.name.encode()).hexdigest()[:16]
        self._lease: Lease | Lent | None = lent
        self._file: IO[bytes] | None = None

    def writer(self) -> JobStore:
        """The same place for another process, whose environment says how to reach it."""
        assert isinstance(self._lease, Lease)
        return JobStore(self.name, self._lease.lent())

    def prepare(self) -> None:
        """See that it can be used, and make a place on disk for the lock.

        Raises:
            InvalidJob: there is something else.
        """
        if self._objects.has_below(self.name) and not self._objects.has_below(self._own):
            raise InvalidJob(f"there are objects below {self.name}, and no output of a job: give a URL with nothing below it")
        try:
            self._here.parent.mkdir(mode=0o700, exist_ok=True)
            if self._here.parent.lstat().st_uid != os.getuid():
                raise InvalidJob(f"{self._here.parent} is somebody else's; say another place by TMPDIR")
            self._here.mkdir(exist_ok=True)
        except OSError as error:
            raise InvalidJob(f"{self._here} cannot be written to: {error.strerror}; say another place by TMPDIR") from None

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold it: against other runs here by the system's lock, which ends with its process, and against all others by a lease.

        Raises:
            JobLocked: another run has it.
        """
        with (
            locked(self._here / "lock", self.name),
            leased(f"{self._own}/lock", self.name, self._identity()) as self._lease,
        ):
            yield

    def _identity(self) -> str:
        """Of whoever holds the system's lock."""
        file = self._here / "identity"
        if not file.exists():
            replace_file(file, str(uuid.uuid4()).encode())
        return file.read_text()

    def tidy(self) -> None:
        """Remove what a run left that did not come to its end. Only for whoever holds the lock."""
        recorded = {_number(one.url) for one in self._objects.below(self._splits)}
        for one in self._objects.below(f"{self.name}/{REJECTS}"):
            if _number(one.url) not in recorded:
                self._objects.remove(one.url)

    def manifest(self) -> Manifest | None:
        """The job that was begun here, if one was.

        Raises:
            InvalidJob: it cannot be read.
        """
        try:
            content, _ = self._objects.read(self._manifest)
        except FileNotFoundError:
            return None
        return manifest_of(content, self._manifest)

    def begin(self, manifest: Manifest) -> None:
        """Write down what is going to be done, before anything is."""
        if self._objects.create(self._manifest, manifest.model_dump_json(indent=1).encode()) is None:
            raise InvalidJob(f"{self.name} has a job already, which has just begun; choose another output")

    def done(self) -> dict[int, Done]:
        """The finished splits, by their numbers.

        Raises:
            InvalidJob: a record cannot be read.
        """

        def read(url: str) -> Done:
            content, _ = self._objects.read(url)
            return done_of(content, url)

        with ThreadPoolExecutor(_AT_ONCE) as pool:
            return {done.split: done for done in pool.map(read, [one.url for one in self._objects.below(self._splits)])}

    def temporary(self, split: int) -> Path:
        """Where a part is written, on disk."""
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 – it is closed when it is uploaded
        return Path(f"/proc/self/fd/{self._file.fileno()}")

    def put_rejects(self, split: int, content: bytes) -> None:
        """Write down the rejected rows of a split, if there are any."""
        if content:
            self._put(split, rejects_path(split), content)

    def put_part(self, done: Done) -> None:
        """Upload a part, and record the split; one that is recorded already must be the same."""
        assert self._file is not None
        with self._file as file:
            self._put(done.split, done.part, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        self._held()
        record = self._record(done.split)
        if self._objects.create(record, done.model_dump_json().encode()) is None:
            content, _ = self._objects.read(record)
            there = done_of(content, record)
            if (there.sha256, there.rejects_sha256) != (done.sha256, done.rejects_sha256):
                raise JobFailed(f"{record} tells of another part: another run works on {self.name}")

    def _put(self, split: int, name: str, content: Buffer) -> None:
        """Put an object where there is nothing, or in the place of what a run left that did not record it."""
        self._held()
        url = f"{self.name}/{name}"
        if self._objects.create(url, content) is not None:
            return
        found, is_recorded = self._objects.find(url), self._objects.find(self._record(split)) is not None
        if found is None or is_recorded or self._objects.replace(url, content, found.version) is None:
            raise JobFailed(f"{url} was written anew meanwhile: another run works on {self.name}")

    def _record(self, split: int) -> str:
        return f"{self._splits}/{split:05}.json"

    def _held(self) -> None:
        if self._lease is not None:
            self._lease.check()


def _directory() -> Path:
    """Where parts are written before they are uploaded: of this user, and known to each of his runs."""
    return Path(tempfile.gettempdir()) / f"headrace-{os.getuid()}"


def _number(url: str) -> int:
    """Of a split, by the name of what is told of it."""
    digits = url.rpartition("/")[2].partition(".")[0].removeprefix("part-")
    return int(digits) if digits.isdecimal() else -1
