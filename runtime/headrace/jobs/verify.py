"""Whether the output of a job is what was recorded, and what its graph says of its input."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.fs as pfs

from headrace.errors import HeadraceError, InvalidJob
from headrace.jobs.beginning import Asked, Begun, gone_on
from headrace.jobs.filesystems import filesystem_of
from headrace.jobs.location import location_of
from headrace.jobs.manifest import Done, Manifest
from headrace.jobs.records import rejects_path
from headrace.jobs.split import output_of, windows


@dataclass(slots=True)
class Verified:
    """What was looked at, and a sentence for each thing that is not as it should be."""

    parts: int = 0
    rows: int = 0
    sampled_rows: int = 0
    problems: list[str] = field(default_factory=list[str])


def verify_output(output: Path | str, *, sample: int = 4, seed: int = 0, repository: Path | None = None) -> Verified:
    """Compute digests again, and a sample of rows.

    Args:
        output: of a job; what it has not finished is a problem.
        sample: how many windows are computed again.
        seed: which.
        repository: where the graph is, if that is not where it was.

    Raises:
        InvalidJob: there is no job.
    """
    location = location_of(output)
    manifest = location.manifest()
    if manifest is None:
        raise InvalidJob(f"{output} is no output of a job: there is no manifest")
    done, found, files = location.done(), Verified(), filesystem_of([location.name])
    if len(done) < len(manifest.splits):
        found.problems.append(f"the job is not finished: {len(done)} of {len(manifest.splits)} splits are; go on with --resume")
    for _, record in sorted(done.items()):
        told = list(_wrong_files(location.name, files, record))
        found.problems += told
        if not told:
            found.parts, found.rows = found.parts + 1, found.rows + record.rows
    # What a server has run depends on what else it ran, and comes out otherwise in the last bits.
    alike = {} if manifest.shared else done
    places = [(number, window) for number, record in sorted(alike.items()) for window in range(len(record.windows))]
    chosen = sorted(random.Random(seed).sample(places, min(sample, len(places))))
    if chosen:
        asked = Asked(manifest.graph.name, repository or Path(manifest.repository), manifest.input, manifest.options)
        try:
            with gone_on(manifest, asked) as begun:
                _compute(location.name, files, begun, done, chosen, found)
        except HeadraceError as error:
            found.problems.append(f"no rows can be computed again: {error.message}")
    return found


def _wrong_files(output: str, files: pfs.FileSystem, record: Done) -> Iterator[str]:
    rejects = f"{output}/{rejects_path(record.split)}"
    expected = [(f"{output}/{record.part}", record.sha256)]
    if record.rejects_sha256 is not None:
        expected.append((rejects, record.rejects_sha256))
    elif files.get_file_info(rejects).type != pfs.FileType.NotFound:
        yield f"{rejects} is there, and no row of its split was rejected"
    for path, digest in expected:
        try:
            with files.open_input_file(path) as file:
                own = hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:
            yield f"{path} is not there"
            continue
        except OSError as error:
            yield f"{path} cannot be read: {error}"
            continue
        if own != digest:
            yield f"{path} has SHA-256 {own[:12]}…, and {digest[:12]}… is recorded"


def _compute(
    output: str,
    files: pfs.FileSystem,
    begun: Begun,
    done: Mapping[int, Done],
    chosen: list[tuple[int, int]],
    found: Verified,
) -> None:
    """Compute windows again, each given by its split and its place in that."""
    runner, splits = begun.graph.runner(0), begun.splits
    for number, place in chosen:
        record = done[number]
        for at, work in enumerate(windows(begun.recipe, begun.inputs, number, splits[number])):
            if at == place and work.window is not None:
                for unit in work.window.units:
                    runner.run(work.window, unit)
                rows = output_of(begun.recipe, work)
                first = sum(record.windows[:place])
                part = _part(f"{output}/{record.part}", files, begun.manifest)
                if not _same(rows, part.slice(first, rows.num_rows)):
                    found.problems.append(f"rows {first} to {first + rows.num_rows} of {record.part} come out otherwise")
                found.sampled_rows += rows.num_rows
                break


def _part(path: str, files: pfs.FileSystem, manifest: Manifest) -> pa.Table:
    form = "parquet" if manifest.options.format == "parquet" else "ipc"
    return ds.dataset(path, format=form, filesystem=files).to_table()


def _same(rows: pa.RecordBatch, recorded: pa.Table) -> bool:
    """To the last bit: NaN is what it is."""
    if recorded.schema != rows.schema or recorded.num_rows != rows.num_rows:
        return False
    batches = recorded.combine_chunks().to_batches()
    return not rows.num_rows or rows.equals(batches[0]) or rows.serialize() == batches[0].serialize()
