"""A trace of a run of a job, if OpenTelemetry's variables ask for one; nothing of it is imported where none is asked for."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from headrace.jobs.manifest import Done, Manifest
from headrace.telemetry import environment
from headrace.telemetry import span_names as names

if TYPE_CHECKING:
    from headrace.telemetry.job_spans import JobTrace

log = logging.getLogger(__name__)


@contextmanager
def traced(manifest: Manifest, variables: Mapping[str, str] = os.environ) -> Iterator[JobTrace | None]:
    """A trace that ends, well or not, when this is left; None for none."""
    trace = _trace(manifest, variables)
    error: BaseException | None = None
    try:
        yield trace
    except BaseException as raised:
        error = raised
        raise
    finally:
        if trace is not None:
            trace.close(error)


def split_attributes(done: Done) -> dict[str, str | int]:
    """What the span of a split says."""
    rows = sum(done.windows)
    return {
        names.JOB_SPLIT: done.split,
        names.JOB_PART: done.part,
        names.REQUEST_ROWS: rows + done.rejected,
        names.JOB_REJECTED: done.rejected,
        names.BYTES_OUT: done.nbytes,
    }


def _trace(manifest: Manifest, variables: Mapping[str, str]) -> JobTrace | None:
    wish = environment.wish_of(variables)
    if wish is None:
        return None
    try:
        from headrace.telemetry.job_spans import JobTrace
    except ImportError:
        log.warning("OpenTelemetry's variables ask for a trace, and there will be none: %s", environment.EXTRA)
        return None
    graph = manifest.graph
    return JobTrace(wish, manifest.id, {names.MODEL: graph.name, names.VERSION: graph.version, names.DIGEST: graph.digest})
