"""A batch job: a graph run over a data set, in this process.

A job begins with a manifest, makes one part after the other, and can be killed at any moment: whoever goes on with it makes what
is not recorded yet, of the same rows in the same batches.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.errors import HeadraceError, InvalidJob, JobFailed, JobStopped, sentence
from headrace.jobs.beginning import Asked, Known, Server, begun_anew, gone_on
from headrace.jobs.compiled import Runner
from headrace.jobs.flow import Flow, Work
from headrace.jobs.location import location_of
from headrace.jobs.manifest import Done, Manifest, Options
from headrace.jobs.openlineage import Account, Data, told
from headrace.jobs.parts import Parts
from headrace.jobs.split import Piece, windows
from headrace.jobs.stores.urls import is_url
from headrace.jobs.tracing import split_attributes, traced
from headrace.models.repository import ModelSource

if TYPE_CHECKING:
    from headrace.telemetry.job_spans import JobTrace

_PLAIN = Options()
MEMORY = 512 << 20
MOST_REJECTED = 1000


@dataclass(frozen=True, slots=True)
class ActorProgress:
    """What one of several processes has done of a job: `name` is its machine and its number there."""

    name: str
    rows: int
    splits: int
    rows_per_second: float


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job is.

    `rows` of its input have run, or were rejected; `before` of them in runs before this one, which works for `seconds`. `nbytes`
    are those of the parts that this run has made. `batch_rows` are the smallest and the largest batch that it is cut into. On
    Ray there are `actors`, and have been.
    """

    rows: int = 0
    total_rows: int = 0
    before: int = 0
    rejected: int = 0
    splits: int = 0
    total_splits: int = 0
    nbytes: int = 0
    batch_rows: tuple[int, int] = (0, 0)
    seconds: float = 0.0
    actors: tuple[ActorProgress, ...] = ()

    @property
    def rate(self) -> float:
        """Rows per second, in this run."""
        return (self.rows - self.before) / self.seconds if self.seconds > 0 else 0.0

    @property
    def left_seconds(self) -> float | None:
        """How long it will take if it goes on as it did; None while nobody knows."""
        return (self.total_rows - self.rows) / self.rate if self.rate else None


class BatchJob:
    """A job. It runs once.

    Args:
        graph: the name of the graph, or model, in `repository`.
        repository: a directory of models, or what `Engine` takes; or a server that runs the graph beside its other requests.
        input: files, directories or patterns, which may be URLs of objects, `s3://…` or `gs://…`. See `DataSet.open`.
        output: a directory, which may not be there yet, or such a URL.
        options: what the output depends on.
        resume: whether to go on with what was begun there, if something was.
        memory: bytes that windows may hold on their way from input to output.
        most_rejected: rows that may be rejected before the job stops.
        filesystem: where the input is: one of pyarrow or of fsspec, if neither on disk nor at a URL.
    """

    def __init__(  # noqa: PLR0913
        self,
        graph: str,
        repository: ModelSource | Path | str | Server,
        input: str | Path | Sequence[str],
        output: Path | str,
        options: Options = _PLAIN,
        *,
        resume: bool = False,
        memory: int = MEMORY,
        most_rejected: int = MOST_REJECTED,
        filesystem: Any = None,
    ) -> None:
        where = [str(input)] if isinstance(input, (str, Path)) else list(map(str, input))
        if filesystem is None:  # it may go on from another directory
            where = [path if is_url(path) else str(Path(path).absolute()) for path in where]
        self._asked = Asked(graph, repository, tuple(where), options, filesystem)
        self._location = location_of(output)
        self._resume, self._memory, self._most_rejected = resume, memory, most_rejected
        self._flow: Flow[Piece] = Flow(memory)
        self._runners: list[Runner] = []
        self._begun: Known | None = None
        self._parts: Parts | None = None
        self._done: Mapping[int, Done] = {}
        self._reading: dict[int, int] = {}
        """When splits that are under way were begun to be read, in ns since 1970."""
        self._trace: JobTrace | None = None
        self._since: float | None = None
        self._until: float | None = None

    def stop(self) -> None:
        """Let `run` end soon, from any thread. What is finished stays, and the job can go on from there."""
        self._flow.stop(JobStopped("the job was stopped"))

    @property
    def progress(self) -> Progress:
        """How far it is, from any thread."""
        begun, parts = self._begun, self._parts
        if begun is None or parts is None or self._since is None:
            return Progress()
        splits = begun.splits
        before = sum(splits[number].rows for number in self._done)
        sizes = [rows for _, rows in begun.manifest.shapes.batch_rows]
        return Progress(
            rows=before + self._flow.rows,
            total_rows=sum(split.rows for split in splits),
            before=before,
            rejected=parts.rejected,
            splits=len(self._done) + parts.splits,
            total_splits=len(splits),
            nbytes=parts.nbytes,
            batch_rows=(min(sizes), max(sizes)),
            seconds=(self._until or time.monotonic()) - self._since,
        )

    def run(self) -> Progress:
        """Run to the end, or from where it was stopped.

        Returns:
            How far it came, which is to the end.

        Raises:
            InvalidJob, InvalidRepository: it cannot begin; JobChanged: nor go on.
            JobLocked: another run works on this output.
            JobFailed: it had to stop. JobStopped: it was told to.
        """
        if self._since is not None:
            raise InvalidJob("a job runs once: make another BatchJob, with resume=True")
        self._location.prepare()
        with self._location.lock():
            self._location.tidy()
            with self._opened() as begun:
                self._done = self._location.done()
                account = _account(begun, self._location.name)
                with told(account), traced(begun.manifest) as self._trace:
                    try:
                        self._work(begun)
                    finally:
                        account.output = self._written(account.output)
                        if self._trace is not None:
                            self._trace.rows(self.progress.rows, self.progress.rejected)
        return self.progress

    def _found(self) -> Manifest | None:
        """What was begun there, if something was, and may go on."""
        manifest = self._location.manifest()
        if manifest is not None and not self._resume:
            raise InvalidJob(f"{self._location.name} has a job already: go on with it (--resume), or choose another output")
        if manifest is None:
            self._check_apart()
        return manifest

    @contextmanager
    def _opened(self) -> Iterator[Known]:
        manifest = self._found()
        with begun_anew(self._asked) if manifest is None else gone_on(manifest, self._asked) as begun:
            if manifest is None:
                self._location.begin(begun.manifest)
            self._runners = [begun.graph.runner(number) for number in range(begun.runners)]
            yield begun

    def _check_apart(self) -> None:
        """What is written must not be found among what is read, when the job goes on."""
        root = self._location.name
        for path in self._asked.input:
            above, is_deep = Path(path.partition("**")[0]), "**" in path or not any(sign in path for sign in "*?[")
            if self._asked.filesystem is None and is_deep and Path(root).is_relative_to(above):
                raise InvalidJob(f"the output, {root}, lies in the input, {path}: choose another output")

    def _work(self, begun: Known) -> None:
        self._begun, self._since = begun, time.monotonic()
        try:
            self._make(begun)
        except JobStopped:
            raise
        except (OSError, MemoryError, HeadraceError) as error:
            raise JobFailed(f"{sentence(error)}. {self._told()}") from error
        finally:
            self._until = time.monotonic()

    def _make(self, begun: Known) -> None:
        """Make all parts that are not there yet."""
        rejected = sum(each.rejected for each in self._done.values())
        with (
            Parts(self._location, begun, self._most_rejected, rejected, self._recorded) as self._parts,
            self._flow.working(self._windows(begun), self._runners) as written,
        ):
            for work in written:
                self._parts.add(work)

    def _windows(self, begun: Known) -> Iterator[Work[Piece]]:
        for number, split in enumerate(begun.splits):
            if number not in self._done:
                self._reading[number] = time.time_ns()
                yield from windows(begun.recipe, begun.inputs, number, split)

    def _recorded(self, done: Done) -> None:
        began = self._reading.pop(done.split)
        if self._trace is not None:
            self._trace.split(began, split_attributes(done))

    def _written(self, output: Data) -> Data:
        """The output with what there is of it."""
        progress = self.progress
        nbytes = progress.nbytes + sum(each.nbytes for each in self._done.values())
        return replace(output, rows=progress.rows - progress.rejected, nbytes=nbytes, files=progress.splits)

    def _told(self) -> str:
        progress = self.progress
        finished = f"{progress.splits} of {progress.total_splits} splits are finished and stay so"
        return f"{finished}; when this is mended, go on with --resume"


def _account(begun: Known, output: str) -> Account:
    """What others are told of a job: all of its manifest but lists of files and splits."""
    manifest, files = begun.manifest, begun.inputs.files
    columns = [(one.name, str(one.type)) for one in begun.inputs.schema]
    made = [(one.name, str(one.type)) for one in begun.recipe.schema]
    inputs = [Data(path, columns) for path in manifest.input]
    if len(inputs) == 1:
        rows, nbytes = sum(split.rows for split in begun.splits), sum(file.found.size for file in files)
        inputs = [replace(inputs[0], rows=rows, nbytes=nbytes, files=len(files))]
    facet = manifest.model_dump(mode="json", exclude={"found", "splits"})
    return Account(f"batch.{manifest.graph.name}", inputs, Data(output, made), facet)
