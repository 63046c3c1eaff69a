"""What Prometheus scrapes, made from the ledger when it is asked for: nothing here runs for a request.

Series are those of versions that run, versions being replaced or emptied included, and whatever digests a version has had are one
series. So the number of series is bounded by what is loaded, an unloaded version disappears (Prometheus keeps its past), a reload
does not look like a restart, and a version that comes back goes on where it was.
"""

from __future__ import annotations

import math
import platform
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar
from prometheus_client.utils import floatToGoString

from headrace.budgets.attribution import CAUSES, CHARGES
from headrace.budgets.budgets import Account, Budgets
from headrace.budgets.burn import FAST, SLOW, Burn, duration_text, rates
from headrace.budgets.history import BAD, TOTAL
from headrace.budgets.outside import PARTS
from headrace.budgets.slo import Objective
from headrace.clock import MICROSECOND, MILLISECOND, SECOND
from headrace.ledger.histograms import FIRST_RESPONSE, WHOLE, Histogram, Histograms, VersionHistograms
from headrace.ledger.ledger import Ledger
from headrace.ledger.records import STAGES, Outcome, Refusal
from headrace.ledger.report import Example, key_of
from headrace.ledger.tally import Tally
from headrace.ledger.views import Statistics, VersionTotals
from headrace.model import State
from headrace.scheduling.admission import SHARE_OF, Depth
from headrace.scheduling.plan import TAKEN, Reason
from headrace.scheduling.steering import Steering
from headrace.series import COUNTER, HISTOGRAM, Series, merged
from headrace.telemetry import names
from headrace.telemetry.names import Name

_PLAIN = "text/plain; version=0.0.4; charset=utf-8"
_TRITONS_BUCKETS_MS = (100, 500, 2000, 5000)
_NOT_FOUND = ("", 0)
"""The (model, version) of requests that never got to one."""


Examples = Mapping[str, Mapping[str, Example]]


@dataclass(frozen=True, slots=True)
class RunningVersion:
    """A version with a queue and instances. The same one may be there twice, while it is replaced.

    `backends` are those that can run it, in order, and whether each would be given a batch now. `variant` is its cheaper variant,
    and under which name the ledger has what that ran of it. `steering` is how it is steered, and how often that went which way.
    """

    model: str
    version: int
    depth: Depth
    instances: int
    load_ns: int
    backends: Mapping[str, bool]
    variant: tuple[str, str] | None = None
    classes: int = 0
    steering: tuple[Steering, Mapping[str, int]] | None = None

    @property
    def accounts(self) -> list[tuple[str, str]]:
        """What runs batches of it, and the names under which the ledger has that."""
        backends = [(backend, f"{self.model}@{backend}") for backend in self.backends]
        return backends if self.variant is None else [*backends, self.variant]


@dataclass(frozen=True, slots=True)
class Present:
    """How things stand now, which the ledger does not say. `states` counts versions.

    `gil_wait` is what was waited for the interpreter, where that is measured; `side` what the side process has done, if there
    is to be one. `examples` are requests whose traces were kept, `outside` what spans of others tell of durations, both by
    `headrace.ledger.report.key_of`; `own` is what models count by themselves.
    """

    release: str
    is_ready: bool
    transport: str
    states: Mapping[State, int]
    versions: Sequence[RunningVersion]
    gil_wait: Histogram | None = None
    side: Tally | None = None
    examples: Examples = field(default_factory=dict[str, Mapping[str, Example]])
    outside: Mapping[str, Histogram] = field(default_factory=dict[str, Histogram])
    own: Sequence[Series] = ()


@dataclass(frozen=True, slots=True)
class _Past:
    """What the ledger knows of one (model, version), all digests together."""

    outcomes: Mapping[Outcome, int]
    refusals: Mapping[Refusal, int]
    failures: Mapping[str, int]
    reasons: Mapping[Reason, int]
    padding: int
    tritons: Mapping[Name, int]
    batches: int
    wasted_rows: int
    malformed_traces: int
    histograms: VersionHistograms


@dataclass(frozen=True, slots=True)
class _Spent:
    """What is known of one objective."""

    objective: Objective
    total: NDArray[np.float64]
    burn: Burn
    stages: NDArray[np.float64]

    @staticmethod
    def of(account: Account, now: int) -> _Spent:
        """Called under the ledger's lock."""
        history = account.history
        return _Spent(account.objective, history.total.copy(), rates(history, now), account.stages.allowance.stages)


class Metrics(Collector):
    """The metrics of a server.

    Args:
        ledger: the ledger, which feeds the two views.
        statistics: what it adds up to.
        histograms: how it is distributed.
        budgets: what it says of objectives.
        look: says how things stand now.
    """

    def __init__(
        self, ledger: Ledger, statistics: Statistics, histograms: Histograms, budgets: Budgets, look: Callable[[], Present]
    ) -> None:
        self._ledger, self._statistics, self._histograms, self._budgets = ledger, statistics, histograms, budgets
        self._look = look

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """The page in the best format that an HTTP `Accept` header allows, and its content type."""
        if "application/openmetrics-text" in accept:
            return openmetrics.generate_latest(self), openmetrics.CONTENT_TYPE_LATEST
        # OpenMetrics has no counter without `_total`; the text format has, and Triton's are such, and those of models may be.
        return re.sub(rb"(?m)^(# TYPE \S+) untyped$", rb"\1 counter", generate_latest(self)), _PLAIN

    def collect(self) -> Iterator[Metric]:
        """All metrics, as one moment saw them. For prometheus_client."""
        now = self._look()
        running: dict[tuple[str, int], list[RunningVersion]] = {}
        for version in now.versions:
            running.setdefault((version.model, version.version), []).append(version)
        numbers = self._ledger.numbers()
        wanted = {key: numbers.get(key, []) for key in (_NOT_FOUND, *sorted(running))}
        shares = {
            (*key, which): numbers.get((name, key[1]), [])
            for key, versions in running.items()
            for which, name in versions[0].accounts
        }
        instant = time.monotonic_ns()
        pasts, ran, spent = self._ledger.read(
            lambda: (
                {key: self._past(of) for key, of in wanted.items()},
                {(key[0], str(key[1]), key[2]): self._batches(of) for key, of in shares.items()},
                [_Spent.of(account, instant) for account in self._budgets.accounts.values()],
            )
        )
        page = _Page()
        self._add_server(page, now)
        for key, past in pasts.items():
            labels = (key[0], str(key[1]) if key != _NOT_FOUND else "")
            for outcome in Outcome:
                page.add(names.REQUESTS, (*labels, outcome.name.lower()), past.outcomes[outcome])
            for refusal in Refusal:
                if refusal is not Refusal.NONE:
                    page.add(names.REFUSALS, (*labels, refusal.name.lower()), past.refusals[refusal])
            page.add(names.MALFORMED_TRACES, labels, past.malformed_traces)
            if key in running:
                _add_distributions(page, labels, past.histograms, now.examples)
                _add_outside(page, labels, now.outside)
                for reason in TAKEN:
                    page.add(names.BATCHES, (*labels, reason.name.lower()), past.reasons[reason])
                page.add(names.BATCH_PADDING, labels, past.padding)
                page.add(names.WASTED_ROWS, labels, past.wasted_rows)
                _add_present(page, labels, running[key])
                _add_backends(page, labels, running[key][0].backends, past.batches, ran)
                _add_steering(page, labels, running[key][0], ran)
                _add_tritons(page, labels, past, running[key])
        for each in spent:
            _add_budget(page, each)
        yield from page.families.values()
        yield from _of_models(now.own)

    def _add_server(self, page: _Page, now: Present) -> None:
        page.add(names.BUILD, (now.release, platform.python_version()), 1)
        page.add(names.TRANSPORT, (now.transport,), 1)
        page.add(names.READY, (), now.is_ready)
        for state in State:
            page.add(names.MODEL_VERSIONS, (state.value.lower(),), now.states.get(state, 0))
        for kind, written in zip(("request", "batch"), self._ledger.written, strict=True):
            page.add(names.LEDGER_RECORDS, (kind,), written)
        if now.gil_wait is not None:
            page.add_histogram(names.GIL_WAIT, (), now.gil_wait, SECOND)
        if now.side is not None:
            page.add(names.SIDE_PROCESS, (), now.side.pid > 0)
            page.add(names.LEDGER_OVERRUN, (), now.side.overrun)
            page.add(names.LEDGER_SPILLED, (), now.side.spilled)
            page.add(names.LEDGER_UNWRITTEN, (), now.side.unwritten)
            page.add(names.TRACES_OVERRUN, (), now.side.untraced)
            page.add(names.SPANS_SENT, (), now.side.spans_sent)
            dropped = {"rate": now.side.spans_capped, "buffer": now.side.spans_unbuffered, "export": now.side.spans_failed}
            for reason, count in dropped.items():
                page.add(names.SPANS_DROPPED, (reason,), count)
            _add_taken(page, now.side)

    def _batches(self, numbers: Sequence[int]) -> int:
        return sum(found.execution_count for number in numbers if (found := self._statistics.versions.get(number)))

    def _past(self, numbers: Sequence[int]) -> _Past:
        """Called under the ledger's lock: sums and copies, no more."""
        # Not `[]`: the views make an entry for whatever number they are asked for.
        parts = [self._statistics.versions.get(number) or VersionTotals() for number in numbers]
        histograms = [found for number in numbers if (found := self._histograms.versions.get(number))]
        outcomes = {outcome: sum(part.outcomes[outcome] for part in parts) for outcome in Outcome}
        unrun = sum(part.failed_unrun for part in parts)
        return _Past(
            outcomes,
            {refusal: sum(part.refusals[refusal] for part in parts) for refusal in Refusal},
            {
                "REJECTED": outcomes[Outcome.REFUSED] + outcomes[Outcome.EXPIRED],
                "CANCELED": outcomes[Outcome.CANCELLED],
                "BACKEND": outcomes[Outcome.FAILED] - unrun,
                "OTHER": unrun,
            },
            {reason: sum(part.reasons[reason] for part in parts) for reason in TAKEN},
            sum(part.padding for part in parts),
            {name: sum(map(total, parts)) for name, total in _TRITONS.items()},
            sum(part.execution_count for part in parts),
            sum(part.wasted_rows for part in parts),
            sum(part.malformed_traces for part in parts),
            VersionHistograms.sum_of(histograms),
        )


_TRITONS: Mapping[Name, Callable[[VersionTotals], int]] = {
    names.NV_SUCCESS: lambda totals: totals.success.count,
    names.NV_COUNT: lambda totals: totals.inference_count,
    names.NV_EXECUTIONS: lambda totals: totals.execution_count,
    names.NV_REQUEST: lambda totals: totals.success.ns // MICROSECOND,
    names.NV_QUEUE: lambda totals: totals.queue.ns // MICROSECOND,
    names.NV_INPUT: lambda totals: totals.gather.ns // MICROSECOND,
    names.NV_INFER: lambda totals: totals.execute.ns // MICROSECOND,
    names.NV_OUTPUT: lambda totals: totals.scatter.ns // MICROSECOND,
}


def _of_models(own: Sequence[Series]) -> Iterator[Metric]:
    """What models count by themselves, under the names and with the labels that they give."""
    families: dict[str, Metric] = {}
    for series in merged(own):
        name, labels = series.name, dict(series.labels)
        if name not in families:
            kind = "unknown" if series.kind == COUNTER and not name.endswith("_total") else series.kind
            families[name] = Metric(name.removesuffix("_total") if kind == COUNTER else name, series.help, kind)
        if series.kind != HISTOGRAM:
            families[name].add_sample(name, labels, series.value)
            continue
        upto = np.cumsum(series.counts).tolist()
        for bound, count in zip((*series.bounds, math.inf), upto, strict=True):
            families[name].add_sample(f"{name}_bucket", {**labels, "le": floatToGoString(bound)}, count)
        families[name].add_sample(f"{name}_count", labels, upto[-1])
        families[name].add_sample(f"{name}_sum", labels, series.value)
    yield from families.values()


class _Page:
    """Families in the order in which their names first came up."""

    def __init__(self) -> None:
        self.families: dict[Name, Metric] = {}

    def add(self, name: Name, values: Sequence[str], value: float) -> None:
        """One sample; `values` are those of the name's labels."""
        suffix = "_info" if name.kind == "info" else ""
        self._family(name).add_sample(name.name + suffix, dict(zip(name.labels, values, strict=True)), value)

    def add_histogram(
        self,
        name: Name,
        values: Sequence[str],
        histogram: Histogram,
        unit: int,
        *,
        edges: Sequence[int] = (),
        examples: Mapping[str, Example] | None = None,
    ) -> None:
        """A histogram whose values are divided by `unit`. `edges`, some of its own, make it coarser.

        `examples` are by the number of the bucket, as text; only where no edge is left out.
        """
        family, labels, examples = self._family(name), dict(zip(name.labels, values, strict=True)), examples or {}
        upto = np.cumsum(histogram.counts).tolist()
        for place, (edge, count) in enumerate(zip([*histogram.edges.tolist(), None], upto, strict=True)):
            if edge is None or not edges or edge in edges:
                le = "+Inf" if edge is None else floatToGoString(edge / unit)
                exemplar = _exemplar(examples.get(str(place)), unit)
                family.add_sample(f"{name.name}_bucket", {**labels, "le": le}, count, exemplar=exemplar)
        family.add_sample(f"{name.name}_count", labels, upto[-1])
        family.add_sample(f"{name.name}_sum", labels, histogram.total / unit)

    def _family(self, name: Name) -> Metric:
        if name not in self.families:
            bare = name.name.removesuffix("_total") if name.kind == "counter" else name.name
            self.families[name] = Metric(bare, name.help, name.kind)
        return self.families[name]


def _exemplar(example: Example | None, unit: int) -> Exemplar | None:
    if example is None:
        return None
    return Exemplar({"trace_id": example.trace, "span_id": example.span}, example.value / unit, example.at)


def _add_distributions(page: _Page, labels: tuple[str, str], histograms: VersionHistograms, examples: Examples) -> None:
    def of(what: str) -> Mapping[str, Example] | None:
        return examples.get(key_of(what, labels[0], int(labels[1])))

    page.add_histogram(names.REQUEST_DURATION, labels, histograms.spans[WHOLE], SECOND, examples=of(WHOLE))
    for stage in STAGES:
        page.add_histogram(names.STAGE_DURATION, (*labels, stage), histograms.spans[stage], SECOND, examples=of(stage))
    page.add_histogram(names.BATCH_ROWS, labels, histograms.rows, 1)


def _add_taken(page: _Page, side: Tally) -> None:
    """What became of the spans that others sent."""
    fates = {
        "joined": side.spans_joined,
        "unmatched": side.spans_unmatched,
        "ambiguous": side.spans_ambiguous,
        "implausible": side.spans_implausible,
        "unused": side.spans_unused,
        "malformed": side.spans_malformed,
        "room": side.spans_without_room,
    }
    refused = {
        "size": side.messages_too_large,
        "garbage": side.messages_garbage,
        "busy": side.messages_busy,
        "slow": side.messages_slow,
    }
    for name, counts in ((names.SPANS_TAKEN, fates), (names.SPAN_MESSAGES_REFUSED, refused)):
        for label, count in counts.items():
            page.add(name, (label,), count)


def _add_outside(page: _Page, labels: tuple[str, str], outside: Mapping[str, Histogram]) -> None:
    for part in PARTS:
        if (histogram := outside.get(key_of(part, labels[0], int(labels[1])))) is not None:
            page.add_histogram(names.OUTSIDE_DURATION, (*labels, part), histogram, SECOND)


def _add_present(page: _Page, labels: tuple[str, str], running: Sequence[RunningVersion]) -> None:
    page.add(names.QUEUE_REQUESTS, labels, sum(each.depth.requests for each in running))
    page.add(names.QUEUE_ROWS, labels, sum(each.depth.rows for each in running))
    page.add(names.QUEUE_BYTES, labels, sum(each.depth.nbytes for each in running))
    page.add(names.INSTANCES, labels, sum(each.instances for each in running))
    page.add(names.LOAD, labels, running[0].load_ns / SECOND)


def _add_backends(
    page: _Page, labels: tuple[str, str], backends: Mapping[str, bool], batches: int, ran: Mapping[tuple[str, str, str], int]
) -> None:
    """Of one backend alone, what it ran is what the version ran."""
    for backend, is_serving in backends.items():
        page.add(names.BACKEND, (*labels, backend), is_serving)
        page.add(names.BACKEND_BATCHES, (*labels, backend), batches if len(backends) == 1 else ran[*labels, backend])


def _add_steering(page: _Page, labels: tuple[str, str], version: RunningVersion, ran: Mapping[tuple[str, str, str], int]) -> None:
    if version.variant is not None:
        page.add(names.VARIANT_BATCHES, (*labels, version.variant[0]), ran[*labels, version.variant[0]])
    if version.steering is None:
        return
    steering, moves = version.steering
    page.add(names.STEERING_QUANTILE, labels, steering.quantile)
    page.add(names.STEERING_MARGIN, labels, steering.margin_ns / SECOND)
    page.add(names.STEERING_VARIANT, labels, steering.variant / SHARE_OF)
    for level in range(1, version.classes + 1):
        page.add(names.STEERING_SHED, (*labels, str(level)), steering.shed.get(level, 0) / SHARE_OF)
    for move, count in moves.items():
        page.add(names.STEERING_DECISIONS, (*labels, move), count)


def _add_budget(page: _Page, spent: _Spent) -> None:
    objective, burn = spent.objective, spent.burn
    labels = objective.name, objective.model
    page.add(names.SLO_REQUESTS, labels, spent.total[TOTAL])
    page.add(names.SLO_BAD, labels, spent.total[BAD])
    for cause, share in zip(CAUSES, spent.total[BAD + 1 :].tolist(), strict=True):
        page.add(names.SLO_CHARGED if cause in CHARGES else names.SLO_CAUSED, (*labels, cause), share)
    page.add(names.SLO_TARGET, labels, objective.target)
    page.add(names.SLO_THRESHOLD, labels, objective.threshold_ns / SECOND)
    page.add(names.SLO_LEFT, labels, burn.left)
    page.add(names.SLO_EXHAUSTED, labels, math.inf if burn.exhausted_in_ns is None else burn.exhausted_in_ns / SECOND)
    for window, rate in {FAST: burn.fast, SLOW: burn.slow, **burn.windows}.items():
        page.add(names.SLO_BURN, (*labels, duration_text(window)), rate)
    for stage, ns in zip(STAGES, spent.stages.tolist(), strict=True):
        page.add(names.SLO_STAGE_BUDGET, (*labels, stage), ns / SECOND)


def _add_tritons(page: _Page, labels: tuple[str, str], past: _Past, running: Sequence[RunningVersion]) -> None:
    for name, value in past.tritons.items():
        page.add(name, labels, value)
    for reason, count in past.failures.items():
        page.add(names.NV_FAILURE, (*labels, reason), count)
    page.add(names.NV_PENDING, labels, sum(each.depth.requests for each in running))
    edges = [edge * MILLISECOND for edge in _TRITONS_BUCKETS_MS]
    page.add_histogram(names.NV_FIRST_RESPONSE, labels, past.histograms.spans[FIRST_RESPONSE], MILLISECOND, edges=edges)
    page.add(names.NV_LOAD, labels, running[0].load_ns / SECOND)
