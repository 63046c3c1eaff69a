"""What several replicas say of the same thing, as if it were one server's answer. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from google.protobuf.message import Message

from headrace.model import State
from headrace.protocol import headrace_pb2 as pb

_TOWARDS_READY = ("", State.UNAVAILABLE.value, State.UNLOADING.value, State.LOADING.value, State.READY.value)
_Entry = pb.RepositoryIndexResponse.ModelIndex


def merged_statistics(answers: Iterable[pb.ModelStatisticsResponse]) -> pb.ModelStatisticsResponse:
    """Statistics of all replicas, by model and version: counts and times are added, of the last inference the latest holds."""
    merged = pb.ModelStatisticsResponse()
    for statistics in (each for answer in answers for each in answer.model_stats):
        total = _row(merged.model_stats, name=statistics.name, version=statistics.version)
        total.last_inference = max(total.last_inference, statistics.last_inference)
        total.inference_count += statistics.inference_count
        total.execution_count += statistics.execution_count
        _add_durations(total.inference_stats, statistics.inference_stats)
        for batch in statistics.batch_stats:
            _add_durations(_row(total.batch_stats, batch_size=batch.batch_size), batch)
        for memory in statistics.memory_usage:
            _row(total.memory_usage, type=memory.type, id=memory.id).byte_size += memory.byte_size
        for place, responses in statistics.response_stats.items():
            _add_durations(total.response_stats[place], responses)
    for total in merged.model_stats:
        total.batch_stats.sort(key=lambda batch: batch.batch_size)
    return merged


def _row(rows: Any, **key: Any) -> Any:
    """The message of a repeated field with these values, which is added if there is none."""
    found = (row for row in rows if all(getattr(row, name) == value for name, value in key.items()))
    row = next(found, None)
    return rows.add(**key) if row is None else row


def _add_durations(total: Message, part: Message) -> None:
    for field, duration in part.ListFields():
        if isinstance(duration, pb.StatisticDuration):
            sums = getattr(total, field.name)
            sums.count += duration.count
            sums.ns += duration.ns


def merged_index(answers: Mapping[str, pb.RepositoryIndexResponse], *, only_ready: bool) -> pb.RepositoryIndexResponse:
    """The index of a repository that all of them serve. A version is as ready as it is where it is least so.

    Where they differ, the reason says who says what.

    Args:
        answers: the whole index, by the id of the replica.
        only_ready: whether to leave out what is not ready.
    """
    versions: dict[str, set[str]] = {}
    told: dict[tuple[str, str], dict[str, _Entry]] = {}
    for replica, answer in answers.items():
        for entry in answer.models:
            versions.setdefault(entry.name, set()).add(entry.version)
            told.setdefault((entry.name, entry.version), {})[replica] = entry
    merged = pb.RepositoryIndexResponse()
    for name in sorted(versions):
        # A name alone says that nothing of it is loaded: where something is elsewhere, that is said of its versions.
        for version in sorted(versions[name] - {""}, key=lambda text: (len(text), text)) or [""]:
            entry = _agreed(name, version, told[name, version], answers)
            if not only_ready or entry.state == State.READY.value:
                merged.models.append(entry)
    return merged


def _agreed(name: str, version: str, entries: Mapping[str, _Entry], replicas: Iterable[str]) -> _Entry:
    by_state: dict[tuple[str, str], list[str]] = {}
    for replica in replicas:
        entry = entries.get(replica, _Entry())
        by_state.setdefault((entry.state, entry.reason), []).append(replica)
    (state, reason), _ = min(by_state.items(), key=lambda each: _TOWARDS_READY.index(each[0][0]))
    if len(by_state) > 1:
        state = state or State.UNAVAILABLE.value
        reason = "; ".join(
            f"{said or 'not loaded'} on {', '.join(who)}" + (f": {why}" if why else "") for (said, why), who in by_state.items()
        )
    return _Entry(name=name, version=version, state=state, reason=reason)
