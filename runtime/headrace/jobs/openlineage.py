"""What OpenLineage is told of a job: that it began, and what became of it, with its data and what it ran.

Where events go is said as everywhere: by environment variables that begin with `OPENLINEAGE` (a URL, a file, the name of a
configuration). They are sent by a thread of its own, so that whoever takes them can be slow, or away: that costs a job a few
seconds at its end, and a line in the log.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import queue
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from headrace.errors import sentence
from headrace.jobs.stores.urls import is_url, split_url
from headrace.version import __version__

if TYPE_CHECKING:
    from openlineage.client.event_v2 import RunEvent

log = logging.getLogger(__name__)

_PREFIX = "OPENLINEAGE"
_PRODUCER = f"urn:headrace:{__version__}"
_PATIENCE = 10.0
"""Seconds that the end of a job waits for its events to be taken."""


@dataclass(frozen=True, slots=True)
class Data:
    """A data set: its path, the name and type of its columns, and how much of it there is, where that is known."""

    path: str
    columns: Sequence[tuple[str, str]]
    rows: int | None = None
    nbytes: int | None = None
    files: int | None = None


@dataclass(slots=True)
class Account:
    """A run of a job. Whoever runs it puts in `output` what it has written, before it ends.

    Attributes:
        name: of the job; the same whenever it runs.
        inputs: what it reads.
        output: what it writes.
        manifest: what it ran, as JSON has it: digests, versions, options.
    """

    name: str
    inputs: Sequence[Data]
    output: Data
    manifest: Mapping[str, Any]


@contextmanager
def told(account: Account, environment: Mapping[str, str] = os.environ) -> Iterator[None]:
    """Tell OpenLineage, if it is configured, that a job begins, and when this is left, that it is complete or has failed."""
    if not _is_wanted(environment):
        yield
        return
    events = _Events()
    events.put("START", account)
    try:
        yield
    except BaseException as error:
        events.put("FAIL", account, sentence(error))
        raise
    else:
        events.put("COMPLETE", account)
    finally:
        events.close()


def _is_wanted(environment: Mapping[str, str]) -> bool:
    if not any(name.startswith(_PREFIX) for name in environment):
        return False
    if importlib.util.find_spec("openlineage") is None:
        log.warning("OpenLineage is configured, and its client is not installed: install headrace[lineage]")
        return False
    return True


class _Events:
    """The events of a run: a thread sends what is put here, in order."""

    def __init__(self) -> None:
        self._run = str(uuid.uuid4())
        self._waiting: queue.SimpleQueue[tuple[str, Account, str | None] | None] = queue.SimpleQueue()  # two, and the end
        self._thread = threading.Thread(target=self._send, name="headrace-lineage", daemon=True)
        self._thread.start()

    def put(self, state: str, account: Account, failure: str | None = None) -> None:
        self._waiting.put((state, replace(account), failure))

    def close(self) -> None:
        self._waiting.put(None)
        self._thread.join(_PATIENCE)
        if self._thread.is_alive():
            log.warning("OpenLineage has not taken the events of this job within %g s; they are lost", _PATIENCE)

    def _send(self) -> None:
        try:
            from openlineage.client import OpenLineageClient

            client = OpenLineageClient()
            while (put := self._waiting.get()) is not None:
                client.emit(_event(self._run, *put))
        except Exception as error:
            log.warning("OpenLineage is not told of this job: %s", sentence(error))


def _event(run: str, state: str, account: Account, failure: str | None) -> RunEvent:
    from openlineage.client import event_v2 as events
    from openlineage.client.facet_v2 import RunFacet, error_message_run, job_type_job, processing_engine_run, set_producer

    set_producer(_PRODUCER)
    facets: dict[str, Any] = {
        "processing_engine": processing_engine_run.ProcessingEngineRunFacet(version=__version__, name="headrace"),
        "headrace_manifest": RunFacet().with_additional_properties(**account.manifest),
    }
    if failure is not None:
        facets["errorMessage"] = error_message_run.ErrorMessageRunFacet(message=failure, programmingLanguage="PYTHON")
    is_job = job_type_job.JobTypeJobFacet(processingType="BATCH", integration="HEADRACE", jobType="JOB")
    return events.RunEvent(
        eventType=events.RunState(state),
        eventTime=datetime.now(UTC).isoformat(),
        producer=_PRODUCER,
        run=events.Run(runId=run, facets=facets),
        job=events.Job(
            namespace=os.environ.get("OPENLINEAGE_NAMESPACE", "default"), name=account.name, facets={"jobType": is_job}
        ),
        inputs=[_input(data) for data in account.inputs],
        outputs=[_output(account.output)],
    )


def _input(data: Data) -> Any:
    from openlineage.client.event_v2 import InputDataset
    from openlineage.client.facet_v2 import input_statistics_input_dataset as statistics

    amount = statistics.InputStatisticsInputDatasetFacet(rowCount=data.rows, size=data.nbytes, fileCount=data.files)
    return InputDataset(**_named(data.path), facets=_schema(data), inputFacets={"inputStatistics": amount})


def _output(data: Data) -> Any:
    from openlineage.client.event_v2 import OutputDataset
    from openlineage.client.facet_v2 import output_statistics_output_dataset as statistics

    amount = statistics.OutputStatisticsOutputDatasetFacet(rowCount=data.rows, size=data.nbytes, fileCount=data.files)
    return OutputDataset(**_named(data.path), facets=_schema(data), outputFacets={"outputStatistics": amount})


def _named(path: str) -> dict[str, str]:
    """As OpenLineage names files, and objects of stores."""
    if not is_url(path):
        return {"namespace": "file", "name": path}
    bucket, name = split_url(path)
    return {"namespace": bucket, "name": name}


def _schema(data: Data) -> dict[str, Any]:
    from openlineage.client.facet_v2 import schema_dataset as schema

    fields = [schema.SchemaDatasetFacetFields(name=name, type=kind) for name, kind in data.columns]
    return {"schema": schema.SchemaDatasetFacet(fields=fields)}
