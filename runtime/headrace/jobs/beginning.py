"""How a job begins, and how it goes on: all that it is made of, from what it was told or from its manifest."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.engine.profile import Profile
from headrace.errors import InvalidJob, JobChanged
from headrace.jobs.columns import check, leaf_types, sources
from headrace.jobs.compiled import Compiled, at_once, compiled, measured
from headrace.jobs.cutting import in_parallel, shapes_for
from headrace.jobs.dataset import DataSet
from headrace.jobs.inputs import Inputs, Split
from headrace.jobs.manifest import Manifest, Options, Shapes, changes
from headrace.jobs.outputs import Read, output_schema
from headrace.jobs.sharing import MOST
from headrace.jobs.split import Recipe
from headrace.machine import usable_cpus
from headrace.model import ModelSpec
from headrace.models.repository import ModelSource
from headrace.version import __version__

if TYPE_CHECKING:
    from headrace.jobs.served import Served


@dataclass(frozen=True, slots=True)
class Server:
    """A server that runs the graph, beside its other requests: where it listens for gRPC, HOST:PORT or unix:PATH."""

    address: str

    def __str__(self) -> str:
        return self.address


@dataclass(frozen=True, slots=True)
class Asked:
    """What a job is told: a graph of a repository, where its input is, and what its output depends on beside them.

    `filesystem` is where the input is, as pyarrow sees it; None is the local one. `cpus` are the cores of a process that works on
    it; None is what this one has.
    """

    graph: str
    repository: ModelSource | Path | str | Server
    input: tuple[str, ...]
    options: Options
    filesystem: Any = None
    cpus: int | None = None


@dataclass(frozen=True)
class Known:
    """A job, whoever works on it."""

    manifest: Manifest
    inputs: Inputs
    recipe: Recipe

    @cached_property
    def splits(self) -> list[Split]:
        """All of them; a split is known by its place."""
        return [Split(**split) for split in self.manifest.splits]

    def address(self, number: int) -> str:
        """What a split is of, for people."""
        split = self.splits[number]
        path, first = self.inputs.place(split, 0)
        return f"split {number} ({split.rows} rows from row {first} of {path} on)"


@dataclass(frozen=True)
class Begun(Known):
    """A job that can work here, by so many `runners` at once, which need not be as many as where it began."""

    graph: Compiled | Served
    runners: int


@contextmanager
def begun_anew(asked: Asked) -> Iterator[Begun]:
    """A job that begins; its graph is loaded until this is left.

    Raises:
        InvalidJob, InvalidRepository: it cannot.
    """
    options = asked.options
    profile, parallel = _measured(asked)
    with _opened(asked, parallel[1]) as graph:
        columns = sources(graph.spec.inputs, options.columns, options.nulls)
        types = leaf_types(graph.spec.inputs, columns)
        found = DataSet.open(asked.input, format=options.input_format, types=types, filesystem=asked.filesystem)
        check(found.schema, graph.spec.inputs, columns)
        keep = _kept(columns, found.schema.names, options)
        inputs = found.select(list(dict.fromkeys([*columns.values(), *keep])))
        shapes = shapes_for(
            graph.spec,
            profile,
            parallel,
            inputs.bytes_per_row,
            asked=options.batch_rows or graph.batch_rows,
            has_borders=graph.has_borders,
        )
        manifest = Manifest(
            id=str(uuid.uuid4()),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            repository=str(asked.repository),
            graph=graph.identity(),
            versions=versions_of(graph),
            input=asked.input,
            found=inputs.record(),
            options=options,
            shapes=shapes,
            shared=isinstance(asked.repository, Server),
            splits=tuple(split._asdict() for split in inputs.splits(shapes.split_rows, options.limit_rows)),
        )
        yield Begun(manifest, inputs, recipe_of(graph.spec, shapes, options, inputs, versions_of(graph)), graph, shapes.runners)


@contextmanager
def gone_on(manifest: Manifest, asked: Asked) -> Iterator[Begun]:
    """A job that goes on as it began; its graph is loaded until this is left. Opens no file of the input.

    Raises:
        JobChanged: something is not what it was.
        InvalidRepository: the graph does not load.
    """
    if manifest.shared != isinstance(asked.repository, Server):
        raise JobChanged(
            [f"its rows were run {'by a server' if manifest.shared else 'by the job itself'}, and are not to be now"]
        )
    with _opened(asked, manifest.shapes.threads) as graph:
        found = list(changes(manifest, graph.identity(), versions_of(graph), asked.input, asked.options))
        try:
            inputs = Inputs.restore(manifest.found, asked.filesystem)
        except JobChanged as error:
            raise JobChanged([*found, *error.changes]) from None
        if found:
            raise JobChanged(found)
        recipe = recipe_of(graph.spec, manifest.shapes, manifest.options, inputs, manifest.versions)
        yield Begun(manifest, inputs, recipe, graph, _runners(asked, manifest.shapes))


def _runners(asked: Asked, shapes: Shapes) -> int:
    """How many batches run at once here, each on the threads that its numbers depend on."""
    if isinstance(asked.repository, Server):
        return shapes.runners
    room = max(1, (asked.cpus or usable_cpus()) // shapes.threads)
    return min(room, at_once(asked.repository, asked.graph) or room)


def _measured(asked: Asked) -> tuple[Profile | None, tuple[int, int]]:
    """What is known of how long the graph runs, if that matters; how many batches run at once, and on how many threads each."""
    repository = asked.repository
    if isinstance(repository, Server):
        return None, (MOST, 1)
    profile = measured(repository, asked.graph) if asked.options.batch_rows is None else None
    parallel = in_parallel(profile, asked.cpus or usable_cpus(), at_once(repository, asked.graph))
    if profile is not None and parallel[1] != usable_cpus():
        # On fewer threads, other batches may be the best.
        profile = measured(repository, asked.graph, parallel[1]) or profile
    return profile, parallel


def _opened(asked: Asked, threads: int) -> AbstractContextManager[Compiled | Served]:
    if not isinstance(asked.repository, Server):
        return compiled(asked.repository, asked.graph, threads)
    if find_spec("tritonclient") is None:
        raise InvalidJob("jobs that share a server need tritonclient: pip install 'headrace[jobs,triton]'")
    from headrace.jobs.served import served

    return served(asked.repository.address, asked.graph)


def versions_of(graph: Compiled | Served) -> dict[str, str]:
    """What the bytes of a part depend on, beside the graph: who computes, and who writes."""
    return {"headrace": __version__, "pyarrow": metadata.version("pyarrow"), **graph.versions}


def _kept(columns: Mapping[str, str], names: Sequence[str], options: Options) -> list[str]:
    """The columns that go into the output.

    Raises:
        InvalidJob: one of them is not there.
    """
    if options.keep is None:
        return [name for name in names if name not in columns.values()]
    for name in options.keep:
        if name not in names:
            raise InvalidJob(f"column '{name}', which is to be kept, is not in the input; its columns are {', '.join(names)}")
    return list(options.keep)


def recipe_of(spec: ModelSpec, shapes: Shapes, options: Options, read: Read, versions: Mapping[str, str]) -> Recipe:
    """How rows of what is read become rows of the output.

    Raises:
        InvalidJob: they cannot, with these options.
    """
    columns = sources(spec.inputs, options.columns, options.nulls)
    keep = [name for name in _kept(columns, read.schema.names, options) if name not in read.partitions]
    texts = [output.name for output in spec.outputs if output.datatype == "BYTES"]
    for name in options.text:
        if name not in texts:
            raise InvalidJob(
                f"'{name}', which is to be text, is no BYTES output of the graph; those are {', '.join(texts) or 'none'}"
            )
    made_by = {"headrace.graph": f"{spec.name}/{spec.version}", "headrace.digest": spec.digest}
    made_by |= {f"headrace.version.{name}": version for name, version in versions.items()}
    return Recipe(spec, shapes, options, columns, keep, output_schema(read, keep, spec.outputs, options.text, made_by))
