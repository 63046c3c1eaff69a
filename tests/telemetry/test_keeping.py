"""From the rings of a ledger to spans: what is kept together, in which trace, at which instants."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from headrace.budgets.outside import FAR, FAR_WAY
from headrace.clock import MILLISECOND, SECOND
from headrace.errors import Code
from headrace.ledger.home import open_home, the_neighbour
from headrace.ledger.identity import Identity, Part
from headrace.ledger.ledger import Ledger
from headrace.ledger.records import BatchRecord, Outcome, RequestRecord
from headrace.model import ModelSpec
from headrace.scheduling.plan import Reason
from headrace.telemetry import cohorts, span_names
from headrace.telemetry.environment import Wish
from headrace.telemetry.joining import Run
from headrace.telemetry.sampling import Why
from headrace.telemetry.tracer import Tracer

T = 1000 * SECOND
NEVER_BY_LOT = Wish(False, "nowhere", 0.0, 8192)
PARENT = {"context": 1, "trace_high": 5, "trace_low": 6, "span": 7, "trace_flags": 1}


class House:
    """A ledger in files, and what follows it, without a server and without time."""

    def __init__(self, wish: Wish = NEVER_BY_LOT, cap: int = 100_000) -> None:
        self.home = open_home()
        self.ledger = Ledger(lambda requests, batches: None)
        self.ledger.share(self.home)
        self.models = {
            name: self.ledger.register(ModelSpec(name, 1, "d", "fake", "", 8, (), ())) for name in ("m", "g", "g#2", "g#3")
        }
        self.me = the_neighbour(os.getpid())
        self.tally = self.home.tally
        self._exporter = InMemorySpanExporter()
        self.identity = Identity(self.me.id)
        self.tracer = Tracer(self.me, wish, cap, self._exporter)
        self.at = T + SECOND

    def request(self, number: int, model: str = "m", **more: Any) -> None:
        stamps = {name: T + place * 1000 for place, name in enumerate(RequestRecord._fields[2:11])}
        values = {"number": number, "batch": number, "model": self.models.get(model, 0), "rows": 1, **stamps, **more}
        self.ledger.write(RequestRecord(**values))

    def batch(self, number: int, requests: int = 1, model: str = "m", **more: Any) -> None:
        stamps = {"taken": T, "gathered": T + 1000, "executed": T + 2000, "scattered": T + 3000}
        values = {"number": number, **stamps, "model": self.models[model], "rows": requests, "requests": requests, **more}
        self.ledger.write_batch(BatchRecord(**values))

    def tick(self, after: int = 0) -> None:
        self.at += after
        self.tracer.tick(self.at)

    def finish(self) -> list[ReadableSpan]:
        """All spans that were sent, by and by."""
        self.tracer.finish(self.at)
        return list(self._exporter.get_finished_spans())

    def root(self, number: int, model: str = "m") -> tuple[int, int]:
        model_number = self.models[model]
        return self.identity.trace(model_number, number), self.identity.of(Part.REQUEST, model_number, number)


@pytest.fixture
def houses() -> Iterator[list[House]]:
    made: list[House] = []
    yield made
    for house in made:
        house.home.close()


@pytest.fixture
def house(houses: list[House]) -> House:
    houses.append(House())
    return houses[0]


def requests_of(spans: list[ReadableSpan]) -> list[tuple[int, int]]:
    """Trace and span of each request and each part of one."""
    chosen = [span for span in spans if span.name == span_names.REQUEST or span.name.startswith("rows ")]
    return sorted((span.context.trace_id, span.context.span_id) for span in chosen)


def about(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def by_name(spans: list[ReadableSpan], name: str) -> ReadableSpan:
    (found,) = [span for span in spans if span.name == name]
    return found


def test_what_is_dull_is_not_kept(house: House) -> None:
    house.request(1)
    house.batch(1)
    house.request(0, batch=0, outcome=Outcome.CANCELLED)
    assert house.finish() == []


def test_a_whole_batch_is_kept_for_one_of_it(house: House) -> None:
    for number in (1, 2, 3):
        house.request(
            number, batch=9, place=number - 1, **({"outcome": Outcome.FAILED, "code": Code.INTERNAL.value} if number == 2 else {})
        )
    house.request(4, batch=10)
    house.batch(9, 3, failed=1)
    house.batch(10)
    spans = house.finish()
    assert requests_of(spans) == sorted(house.root(number) for number in (1, 2, 3))
    batch = by_name(spans, "batch m")
    assert [link.context.span_id for link in batch.links] == [house.root(number)[1] for number in (1, 2, 3)]
    assert about(batch)["headrace.kept"] == ("error",)
    assert batch.context.trace_state["ot"] == "th:0"
    assert not batch.status.is_ok
    failed = next(span for span in spans if span.context.span_id == house.root(2)[1])
    assert about(failed)["error.type"] == "INTERNAL"


@pytest.mark.parametrize("after", ["request", "batch"])
def test_a_batch_waits_for_all_of_it(house: House, after: str) -> None:
    house.request(1, batch=9, deadline=1)
    if after == "request":
        house.batch(9, 2)
    else:
        house.request(2, batch=9, place=1)
    house.tick(SECOND)
    house.tick(SECOND)
    assert house.tally.spans_sent == 0
    if after == "request":
        house.request(2, batch=9, place=1)
    else:
        house.batch(9, 2)
    spans = house.finish()
    assert requests_of(spans) == sorted([house.root(1), house.root(2)])
    assert len(by_name(spans, "batch m").links) == 2


def test_it_does_not_wait_for_ever_and_the_late_one_joins_the_verdict(house: House) -> None:
    house.request(1, batch=9, deadline=1)
    house.batch(9, 2)
    house.tick()
    house.tick(cohorts.PATIENCE_NS)
    house.request(2, batch=9, place=1)
    house.tick(SECOND)
    spans = house.finish()
    assert requests_of(spans) == sorted([house.root(1), house.root(2)])
    batch = by_name(spans, "batch m")
    assert len(batch.links) == 1
    late = next(span for span in spans if span.name == "execute" and span.parent.span_id == house.root(2)[1])
    assert late.links[0].context.span_id == batch.context.span_id


def test_a_dull_batch_that_was_decided_on_early_leaves_its_late_one_dull(house: House) -> None:
    house.request(1, batch=9)
    house.batch(9, 2)
    house.tick()
    house.tick(cohorts.PATIENCE_NS)
    house.request(2, batch=9, place=1)
    assert house.finish() == []


def test_requests_without_a_number_have_spans_of_their_own(house: House) -> None:
    for _ in range(2):
        house.ledger.write(
            RequestRecord(received=T, decoded=T + 1, sent=T + 2, outcome=Outcome.INVALID, code=Code.NOT_FOUND.value)
        )
    one, other = requests_of(house.finish())
    assert one != other
    assert all((*one, *other))


def test_a_trace_that_was_given_is_gone_on_with(house: House) -> None:
    house.request(1, **PARENT)
    house.batch(1)
    spans = house.finish()
    server = by_name(spans, span_names.REQUEST)
    assert server.context.trace_id == 5 << 64 | 6
    assert server.parent is not None
    assert (server.parent.span_id, server.parent.is_remote) == (7, True)
    queue, execute = by_name(spans, "queue"), by_name(spans, "execute")
    assert {span.context.trace_id for span in (queue, execute)} == {5 << 64 | 6}
    assert {span.parent.span_id for span in (queue, execute)} == {server.context.span_id}
    assert by_name(spans, "batch m").context.trace_id != server.context.trace_id


def family(house: House, **parts: dict[str, Any]) -> None:
    """A request of `g` whose rows went to `g#2` and `g#3`, and another one, whose rows shared the batch in `g#2`."""
    origin = {"parent_model": house.models["g"]}
    house.request(31, "g#3", parent=21, parent_model=house.models["g#2"], **parts.get("third", {}))
    house.batch(31, model="g#3")
    house.request(21, "g#2", batch=20, parent=1, **origin, **parts.get("second", {}))
    house.request(22, "g#2", batch=20, place=1, parent=2, **origin)
    house.batch(20, 2, model="g#2")
    house.request(1, "g", **parts.get("first", {}))
    house.batch(1, model="g")
    house.request(2, "g")
    house.batch(2, model="g")


def test_parts_go_with_their_request(house: House) -> None:
    family(house, first={"deadline": 1})
    spans = house.finish()
    trace, root = house.root(1, "g")
    mine = {span.name: span for span in spans if span.context.trace_id == trace and not span.name.startswith(("queue", "exec"))}
    assert set(mine) == {span_names.REQUEST, "rows g#2", "rows g#3"}, "all of it, in one trace, though no trace was given"
    assert mine["rows g#2"].parent.span_id == root
    assert mine["rows g#3"].parent.span_id == mine["rows g#2"].context.span_id
    assert {span.context.trace_state["ot"] for span in spans} == {"th:0"}
    assert len(by_name(spans, "batch g#2").links) == 2, "whoever shared its batch is there"
    assert house.root(2, "g") not in requests_of(spans), "but not what else became of those"


@pytest.mark.parametrize("which", ["second", "third"])
def test_a_request_is_kept_for_its_parts(house: House, which: str) -> None:
    family(house, **{which: {"outcome": Outcome.FAILED, "code": Code.INTERNAL.value}})
    spans = house.finish()
    server = next(span for span in spans if span.context.span_id == house.root(1, "g")[1])
    assert about(server)["headrace.kept"] == ("family",)
    assert server.context.trace_state["ot"] == "th:0"


def test_dull_families_are_not_kept_and_nothing_is_left(house: House) -> None:
    family(house)
    house.tick()
    assert house.tracer._cohorts.held == 0
    assert house.finish() == []


def test_parts_whose_request_never_comes_are_decided_on(house: House) -> None:
    house.request(21, "g#2", parent=1, parent_model=house.models["g"], deadline=1)
    house.batch(21, model="g#2")
    house.tick()
    assert house.tracer._cohorts.held == 1
    house.tick(cohorts.PATIENCE_NS)
    assert house.tracer._cohorts.held == 0
    assert by_name(house.finish(), "rows g#2").context.trace_id == house.root(1, "g")[0]


def test_visits_are_within_their_batch(house: House) -> None:
    house.batch(0, model="m", reason=Reason.GRAPH, parent=1, parent_model=house.models["g"])
    house.batch(0, model="m", reason=Reason.GRAPH, parent=2, parent_model=house.models["g"])
    house.request(1, "g", **PARENT)
    house.batch(1, model="g")
    spans = house.finish()
    assert by_name(spans, "node m").parent.span_id == by_name(spans, "backend g").context.span_id


def test_lots_are_drawn_by_batches(houses: list[House]) -> None:
    house = House(Wish(False, "nowhere", 0.25, 8192))
    houses.append(house)
    for number in range(1, 401):
        house.request(2 * number, batch=number)
        house.request(2 * number + 1, batch=number, place=1)
        house.batch(number, 2)
    spans = house.finish()
    batches = [span for span in spans if span.name == "batch m"]
    assert 60 < len(batches) < 140
    assert len(requests_of(spans)) == 2 * len(batches)
    assert all(span.context.trace_state["ot"].startswith("th:c;rv:") for span in spans)
    assert {about(span)["headrace.kept"] for span in batches} == {("baseline",)}


def test_a_clock_that_is_set_moves_spans_and_stretches_none(house: House) -> None:
    house.request(1, **PARENT)
    house.batch(1)
    hour = 3600 * SECOND
    for header in house.home._headers:
        header.wall_ahead = hour
    spans = house.finish()
    server, batch = by_name(spans, span_names.REQUEST), by_name(spans, "batch m")
    assert (server.start_time, server.end_time) == (T + hour, T + 8000 + hour)
    assert (batch.start_time, batch.end_time) == (T + hour, T + 3000 + hour)


@pytest.mark.parametrize("deadline", [(1 << 63) - 1, 1, -(1 << 63)])
def test_absurd_deadlines_are_told_as_they_are(house: House, deadline: int) -> None:
    house.request(1, deadline=deadline, **PARENT)
    house.batch(1)
    server = by_name(house.finish(), span_names.REQUEST)
    assert about(server)["headrace.deadline_us"] == pytest.approx((deadline - T) / 1000)


def test_who_made_a_padded_batch_long(house: House) -> None:
    for place, nbytes in enumerate((10, 500, 600)):
        house.request(place + 1, batch=9, place=place, bytes_in=nbytes, rows=2 if place == 2 else 1, **PARENT)
    house.batch(9, 3, padding=40)
    spans = house.finish()
    assert about(by_name(spans, "batch m"))["headrace.batch.straggler"] == 1, "the longest row, not the most bytes"
    executes = sorted((span for span in spans if span.name == "execute"), key=lambda span: about(span)["headrace.batch.place"])
    assert [about(span)["headrace.batch.is_straggler"] for span in executes] == [False, True, False]


def test_every_name_is_registered_and_every_registered_name_is_emitted(house: House) -> None:
    family(house, first=PARENT, second=PARENT)
    house.batch(0, model="m", reason=Reason.GRAPH, parent=1, parent_model=house.models["g"])
    house.request(1, predicted=5000, deadline=1, client=9, code=Code.DEADLINE_EXCEEDED.value, outcome=Outcome.EXPIRED)
    house.batch(1, predicted=5000, padding=3)
    house.request(0, batch=0, outcome=Outcome.REFUSED, refusal=1, queued=0, code=Code.UNAVAILABLE.value)
    far = dict.fromkeys((*FAR, FAR_WAY), MILLISECOND)
    house.tracer.add_run(Run(RequestRecord(number=1, model=house.models["m"]), 5 << 64 | 6, 9, T, T + SECOND, far), house.at)
    spans = house.finish()
    assert {
        next(name for name in span_names.SPANS if span.name in (name, f"{name} {span.name.partition(' ')[2]}")) for span in spans
    } == set(span_names.SPANS)
    emitted = {name for span in spans for holder in (span, *span.links) for name in holder.attributes or {}}
    assert emitted == span_names.ATTRIBUTES
    assert all(type(value) in (str, int, float, bool, tuple) for span in spans for value in about(span).values())


def test_the_cap_drops_whole_batches_and_counts_them(houses: list[House]) -> None:
    house = House(cap=10)
    houses.append(house)
    for number in range(1, 11):
        house.request(number, **PARENT)
        house.batch(number)
    spans = house.finish()
    assert len(spans) == 10 == house.tally.spans_sent
    assert house.tally.spans_capped == 40
    assert house.tally.spans_unbuffered == house.tally.spans_failed == 0


def test_what_was_written_over_is_counted(house: House) -> None:
    for number in range(1, house.ledger._capacity + 100):
        house.request(number, batch=0)
    house.tick()
    assert house.tally.untraced == 100, "and one more, that may be half written"


def test_it_holds_a_bounded_number(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cohorts, "_MOST", 100)
    for number in range(1, 80):
        house.request(number, batch=number)
    house.tick()
    assert house.tracer._cohorts.held == 79
    for number in range(80, 160):
        house.request(number, batch=number)
    house.tick()
    assert house.tracer._cohorts.held == 0


def test_a_successor_goes_on_where_the_other_was(houses: list[House]) -> None:
    house = House()
    houses.append(house)
    house.request(1, **PARENT)
    house.batch(1)
    first = house.finish()
    house.request(2, **PARENT)
    house.batch(2)
    house._exporter = InMemorySpanExporter()
    house.tracer = Tracer(house.me, NEVER_BY_LOT, 1000, house._exporter)
    second = house.finish()
    assert (len(first), len(second)) == (5, 5)
    assert {span.context.span_id for span in first}.isdisjoint(span.context.span_id for span in second)


def test_misprediction_is_a_reason(house: House) -> None:
    house.request(1)
    house.batch(1, predicted=5 * MILLISECOND, executed=T + 50 * MILLISECOND, scattered=T + 51 * MILLISECOND)
    assert about(by_name(house.finish(), "batch m"))["headrace.kept"] == ("mispredicted",)


def test_random_orders_of_arrival_change_nothing(houses: list[House]) -> None:
    """Whatever is read first, the same is kept."""
    rng = np.random.default_rng(3)
    kept: list[set[str]] = []
    for _ in range(5):
        house = House()
        houses.append(house)
        writes = [(house.batch, (number, 3)) for number in range(1, 9)]
        writes += [(house.request, (number,)) for number in range(10, 34)]
        for index in rng.permutation(len(writes)):
            write, given = writes[index]
            if write == house.request:
                number = given[0] - 10
                late = {"deadline": 1} if number % 6 == 0 else {}
                house.request(given[0], batch=number // 3 + 1, place=number % 3, **late)
            else:
                house.batch(*given)
            if rng.random() < 0.3:
                house.tick()
        kept.append({f"{span.name} {about(span).get('headrace.batch.number')}" for span in house.finish()})
        house.home.close()
    assert all(each == kept[0] for each in kept)
    assert {f"batch m {number}" for number in (1, 3, 5, 7)} == {name for name in kept[0] if name.startswith("batch")}


def test_the_documentation_names_every_attribute_and_every_reason() -> None:
    text = (Path(__file__).parent.parent.parent / "docs/traces.md").read_text()
    assert set(re.findall(r"`((?:headrace|rpc|error)\.[a-z_.]+[a-z])`", text)) == span_names.ATTRIBUTES
    assert set(re.findall(r"^\| `([a-z]+)` \|", text, re.MULTILINE)) == {str(why.name).lower() for why in Why}
