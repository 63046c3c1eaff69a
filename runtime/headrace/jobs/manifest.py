"""The manifest of a job: what it is made of, written before it works, and what each of its splits became.

What the bytes of the output depend on is frozen in it. So a job that goes on makes what an undisturbed one makes, and one that
cannot says why.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from headrace.jobs.columns import Nulls

FORMAT = 1
"""Of the file. What has another number was begun by a release that cuts rows into batches in other ways."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Options(_Frozen):
    """What a job is told that its output depends on.

    `columns` has, by input of the graph, the column that it is read from, where that has another name. `keep` are the input
    columns that go into the output, None for all that the graph does not read. `batch_rows` None is what the profile of the graph
    says. `text` are outputs of datatype BYTES that become strings.
    """

    columns: Mapping[str, str] = {}
    keep: tuple[str, ...] | None = None
    text: tuple[str, ...] = ()
    nulls: Nulls = Nulls()
    input_format: str | None = None
    format: Literal["parquet", "arrow"] = "parquet"
    limit_rows: int | None = Field(default=None, gt=0)
    batch_rows: int | None = Field(default=None, gt=0)


class Shapes(_Frozen):
    """How rows become batches, and how many run at once.

    `batch_rows` has the rows of a batch by the length up to which that holds, ascending; without padding that is one, of length
    0. `unit_rows` are the rows that go over the borders of a graph together, 0 where it has none. `window_rows` are those among
    which rows of about one length are sought, `split_rows` those of a part. `runners` batches ran at once where it
    began, and rows are cut for so many; a batch runs on `threads` threads of ONNX Runtime, wherever.
    """

    batch_rows: tuple[tuple[int, int], ...]
    unit_rows: int
    window_rows: int
    split_rows: int
    runners: int
    threads: int


class Identity(_Frozen):
    """The graph: its version, its digest, and by model that it runs, digest and configuration."""

    name: str
    version: int
    digest: str
    models: Mapping[str, str]


class Manifest(_Frozen):
    """See above. `input` is where it was told to look, `found` what `Inputs.record` says was there.

    A job that is `shared` has its rows run by a server, in batches of that one's own making: every row is in its output exactly
    once all the same, but the numbers of another run differ in their last bits.
    """

    format: int = FORMAT
    id: str
    created: str
    repository: str
    graph: Identity
    versions: Mapping[str, str]
    input: tuple[str, ...]
    found: Mapping[str, Any]
    options: Options
    shapes: Shapes
    shared: bool = False
    splits: tuple[Mapping[str, Any], ...]


class Done(_Frozen):
    """A finished split: its part, relative to the output, the rows in it that each window became, and how many were rejected."""

    split: int
    part: str
    windows: tuple[int, ...]
    rejected: int
    nbytes: int
    sha256: str
    rejects_sha256: str | None
    seconds: float

    @property
    def rows(self) -> int:
        """Of the part."""
        return sum(self.windows)


def changes(
    old: Manifest, graph: Identity, versions: Mapping[str, str], where: tuple[str, ...], options: Options
) -> Iterator[str]:
    """What a job would go on with that is not what it began with, one sentence each; input files not included."""
    if old.graph != graph:
        yield from _changed_graph(old.graph, graph)
    for name in sorted({*old.versions, *versions}):
        if old.versions.get(name) != versions.get(name):
            yield f"{name} was {old.versions.get(name, 'not there')}, and is {versions.get(name, 'not there')}"
    if old.input != where:
        yield f"the input was {' '.join(old.input)}, and is {' '.join(where)}"
    before, now = old.options.model_dump(mode="json"), options.model_dump(mode="json")
    for name, value in now.items():
        if before[name] != value:
            yield f"option {name} was {_told(before[name])}, and is {_told(value)}"


def _changed_graph(old: Identity, new: Identity) -> Iterator[str]:
    if (old.name, old.version) != (new.name, new.version):
        yield f"the graph was {old.name}/{old.version}, and is {new.name}/{new.version}"
        return
    models = [name for name in sorted({*old.models, *new.models}) if old.models.get(name) != new.models.get(name)]
    for name in models:
        yield f"model '{name}' has other files, or another configuration"
    if old.digest != new.digest and not models:
        yield f"graph '{new.name}' has digest {new.digest[:12]}, and had {old.digest[:12]}"


def _told(value: object) -> str:
    return "not given" if value is None or value == [] or value == {} else str(value)
