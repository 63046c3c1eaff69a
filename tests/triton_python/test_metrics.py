"""What models count by themselves, and where it can be scraped."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as client
from prometheus_client.parser import text_string_to_metric_families as parse

from headrace.backends.triton_python.counted import MOST_SERIES
from headrace.engine.engine import Engine, ModelControl
from headrace.engine.observed import metrics_of
from headrace.errors import HeadraceError
from headrace.series import COUNTER, GAUGE, HISTOGRAM, Series, merged
from headrace.telemetry.names import METRICS
from tests.transport.serving import Server
from tests.triton_python.asking import Ask, ask
from tests.triton_python.conftest import write_model
from tests.triton_python.test_model_process import infer, pids
from tests.waiting import until

pytestmark = pytest.mark.timeout(180)

Sample = tuple[str, tuple[tuple[str, str], ...], float]

COUNTS = """
class TritonPythonModel:
    def initialize(self, args):
        counter = pb_utils.MetricFamily("rows", "Rows", pb_utils.MetricFamily.COUNTER)
        moved = pb_utils.MetricFamily("moved", "Ups and downs", pb_utils.MetricFamily.GAUGE)
        seen = pb_utils.MetricFamily("seen", "Seen last", pb_utils.MetricFamily.GAUGE)
        sizes = pb_utils.MetricFamily("sizes", "Sizes", pb_utils.MetricFamily.HISTOGRAM)
        self.rows, self.moved, self.seen = counter.Metric(), moved.Metric({"a": "b"}), seen.Metric()
        self.sizes = sizes.Metric(buckets=[2, 1])

    def execute(self, requests):
        for request in requests:
            x = x_of(request)
            if x[0] < 0:
                os._exit(1)
            for value in x.tolist():
                self.rows.increment(1)
                self.moved.increment(value)
                self.seen.set(value)
                self.sizes.observe(value)
        return [response([os.getpid()]) for _ in requests]
"""


def told(page: str, name: str) -> list[tuple[str, str, str, list[Sample]]]:
    """The families whose names begin so: name, kind, help, samples."""
    return sorted(
        (family.name, family.type, family.documentation, sorted(_sample(each) for each in family.samples))
        for family in parse(page)
        if family.name.startswith(name)
    )


def _sample(sample: object) -> Sample:
    name, labels, value, *_ = sample  # type: ignore[misc]
    bound = {"le": str(float(labels["le"]))} if "le" in labels else {}
    return name, tuple(sorted({**labels, **bound}.items())), value


def page_of(engine: Engine) -> str:
    return metrics_of(engine).render()[0].decode()


def values(engine: Engine) -> dict[str, float]:
    """By name, and by the bound of a bucket. The parser lets counters end in `_total`."""
    families = parse(page_of(engine))
    names = ("rows", "moved", "seen", "sizes")
    samples = [sample for family in families if family.name in names for sample in family.samples]
    return {sample.name + sample.labels.get("le", ""): sample.value for sample in samples}


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    """Two instances of a model that counts."""
    write_model(tmp_path, "m", COUNTS, "instance_group { count: 2 kind: KIND_CPU }")
    with Engine(tmp_path) as started:
        assert started.ready, started.statuses()
        yield started


def test_the_page_is_that_of_a_triton(triton: client.InferenceServerClient, headrace: Server, metrics_port: int) -> None:
    asked = Ask("counts", {"x": np.array([[1, 2, 3, 40]], np.float32)})
    assert list(ask(headrace.client, asked)) == list(ask(triton, asked)) == ["y"]
    with urllib.request.urlopen(f"http://127.0.0.1:{metrics_port}/metrics") as answer:
        theirs = told(answer.read().decode(), "own")
    assert [(name, kind) for name, kind, _, _ in theirs] == [
        ("own:rows", "counter"), ("own_counter", "counter"), ("own_gauge", "gauge"), ("own_histogram", "histogram")
    ]  # fmt: skip
    assert _plain(told(page_of(headrace.engine), "own")) == _plain(theirs)


def _plain(families: list[tuple[str, str, str, list[Sample]]]) -> object:
    """What each transport has asked for is counted by the one Triton: values follow from how often."""
    (rows,) = [samples[0][2] for name, _, _, samples in families if name == "own:rows"]
    return [
        (name, kind, help, [(each, labels, value if kind == "gauge" else value / rows) for each, labels, value in samples])
        for name, kind, help, samples in families
    ]


def test_openmetrics_has_them_too(engine: Engine) -> None:
    infer(engine, 1)
    page, _ = metrics_of(engine).render("application/openmetrics-text")
    assert b"# HELP rows Rows\n# TYPE rows unknown\nrows 1.0\n" in page  # there, counters end in _total
    assert b"# TYPE sizes histogram\n" in page


def test_several_processes_count_together(engine: Engine) -> None:
    """The two of them by turns; and what one has counted stays when it is gone."""
    asked, used = 0, set[int]()
    with ThreadPoolExecutor(4) as pool:
        while len(used) < 2:
            firsts = range(asked + 1, asked + 5)
            used.update(pid for (pid,) in pool.map(lambda first: infer(engine, first), firsts))
            asked += len(firsts)
    total = asked * (asked + 1) / 2
    expected = {"rows_total": asked, "moved": total, "sizes_bucket1.0": 1, "sizes_bucket2.0": 2}
    expected |= {"sizes_bucket+Inf": asked, "sizes_count": asked, "sizes_sum": total}
    found = values(engine)
    assert asked - 4 < found.pop("seen") <= asked
    assert found == expected
    before = pids(engine)
    with pytest.raises(HeadraceError):
        infer(engine, -1)
    until(lambda: None not in pids(engine) and pids(engine) != before)
    after = values(engine)
    assert {name: after[name] for name in ("rows_total", "sizes_count", "sizes_sum")} == {
        "rows_total": asked, "sizes_count": asked, "sizes_sum": total
    }  # fmt: skip
    infer(engine, 7)
    assert values(engine)["rows_total"] == asked + 1
    assert values(engine)["seen"] == 7


def test_text_that_cannot_be_written_is_written_all_the_same(tmp_path: Path) -> None:
    made = r'pb_utils.MetricFamily("c", "\ud800", pb_utils.MetricFamily.COUNTER).Metric({"l": "\udfff\n", "n": 1})'
    write_model(tmp_path, "m", f"class TritonPythonModel:\n    def initialize(self, args):\n        {made}")
    with Engine(tmp_path) as engine:
        assert 'c{l="?\\n",n="1"} 0.0\n' in page_of(engine)


def test_they_go_with_the_model(tmp_path: Path) -> None:
    write_model(tmp_path, "m", COUNTS)
    with Engine(tmp_path, control=ModelControl("explicit", ("m",))) as engine:
        assert told(page_of(engine), "rows")
        engine.unload("m")
        until(lambda: not told(page_of(engine), "rows"))


WRONG = {
    "a name": ("counter('two words')", "metric 'two words': a name is of letters"),
    "one of ours": ("counter('headrace_ready')", "metric 'headrace_ready': names that begin with headrace_"),
    "one of Triton's": ("counter('nv_inference_count')", "metric 'nv_inference_count': names that begin with"),
    "a label": ("counter('c', {'le-ss': 1})", "label 'le-ss' is not of letters"),
    "a label of Prometheus": ("counter('c', {'__name__': 'x'})", "label '__name__' is not of letters"),
    "too many": (
        f"[counter('c', {{'n': n}}) for n in range({MOST_SERIES + 1})]",
        f"model 'm' has {MOST_SERIES} series",
    ),
    "too many buckets": ("histogram(list(range(201)))", "a histogram has 200 buckets at the most"),
    "no number": ("histogram([1, float('nan')])", "bounds of buckets are different numbers, not [1.0, nan]"),
    "a bound twice": ("histogram([1, 2, 1])", "bounds of buckets are different numbers, not [1.0, 1.0, 2.0]"),
    "of another kind": ("(counter('c'), gauge('c'))", "metric family 'c' is there already, and is of another kind"),
    "down": ("counter('c').increment(-1)", "can only be incremented monotonically"),
}


@pytest.mark.parametrize(("made", "why"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_counted_says_why(tmp_path: Path, made: str, why: str) -> None:
    write_model(
        tmp_path,
        "m",
        f"""
        class TritonPythonModel:
            def initialize(self, args):
                Family = pb_utils.MetricFamily
                def counter(name, labels=None):
                    return Family(name, "", Family.COUNTER).Metric(labels)
                def gauge(name):
                    return Family(name, "", Family.GAUGE).Metric()
                def histogram(buckets):
                    return Family("h", "", Family.HISTOGRAM).Metric(buckets=buckets)
                {made}
        """,
    )
    with Engine(tmp_path) as engine:
        (status,) = engine.statuses()
        assert why in status.reason


def test_every_name_of_the_server_is_refused_to_models() -> None:
    from headrace.backends.triton_python.counted import Counted

    for name in METRICS:
        asked = {"name": name, "help": "", "kind": COUNTER, "labels": {}, "bounds": []}
        assert "the server's own" in Counted("m").add(None, asked, np.zeros(8, np.uint8))


def series(kind: str, value: float, **more: object) -> Series:
    return Series("s", "", kind, (), value, **more)  # type: ignore[arg-type]


def test_how_several_become_one() -> None:
    assert merged([series(COUNTER, 1), series(COUNTER, 2)]) == [series(COUNTER, 3)]
    assert merged([series(GAUGE, 1), series(GAUGE, -3)]) == [series(GAUGE, -2)]
    assert merged([series(GAUGE, 1, set_at=5), series(GAUGE, 2, set_at=4), series(GAUGE, 9)]) == [series(GAUGE, 1, set_at=5)]
    one, other = (series(HISTOGRAM, sum(counts), bounds=(1.0,), counts=counts) for counts in ((1, 0), (2, 3)))
    assert merged([one, other]) == [series(HISTOGRAM, 6, bounds=(1.0,), counts=(3, 3))]
    assert merged([one, series(HISTOGRAM, 9, bounds=(2.0,), counts=(9, 0))]) == [one], "other bounds"
    assert merged([series(GAUGE, 1), series(COUNTER, 2)]) == [series(GAUGE, 1)], "another kind"
