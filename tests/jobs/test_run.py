"""What a job makes of its rows is what the engine makes of them, in order, every row once."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.engine.engine import Engine
from headrace.errors import InvalidJob, JobFailed
from headrace.jobs import BatchJob, Options
from headrace.jobs.compiled import measured
from tests.build_models import add_model, mlp
from tests.jobs.conftest import Run, column, digests, read, write_vectors

GRAPH = """
max_batch_size: 4
inputs: {x: "FP32[32]"}
outputs: {y: "FP32[8]"}
nodes:
  m: {model: m, inputs: {x: x}, outputs: {y: y}}
"""


def test_rows_are_what_the_engine_makes_of_the_same_batches(run: Run, repository: Path, tmp_path: Path) -> None:
    """To the last bit, over two files, with windows that do not divide them; the columns that were not read are kept."""
    output = run("mlp", write_vectors(tmp_path / "in", [2500, 30]))
    table = read(output)
    assert table.column_names == ["id", "y"]
    assert column(table, "id").tolist() == list(range(2530))
    y, at = column(table, "y"), 0
    with Engine(repository) as engine:
        for file in sorted((tmp_path / "in").iterdir()):
            x = column(pq.read_table(file), "x")
            for window in range(0, len(x), 1024):
                end = min(window + 1024, len(x))
                for first in range(window, end, 16):
                    rows = x[first : min(first + 16, end)]
                    expected = engine.infer("mlp", {"x": rows})["y"]
                    np.testing.assert_array_equal(y[at : at + len(rows)], expected)
                    at += len(rows)
    assert at == len(y)


def test_the_profile_chooses(repository: Path, tmp_path: Path) -> None:
    """Without a number of rows the graph is measured, and what was chosen is in the manifest."""
    job = BatchJob("mlp", repository, write_vectors(tmp_path / "in", [300]), tmp_path / "out")
    done = job.run()
    assert (done.rows, done.total_rows, done.splits) == (300, 300, 1)
    manifest = json.loads((tmp_path / "out" / "_headrace" / "manifest.json").read_text())
    shapes = manifest["shapes"]
    assert shapes["batch_rows"][0][1] == done.batch_rows[1] > 1
    assert shapes["runners"] * shapes["threads"] >= 1
    assert manifest["graph"]["digest"]
    assert manifest["versions"]["onnxruntime"]


@pytest.mark.parametrize("name", ["m", "graph"])
def test_the_graph_is_measured_as_the_job_runs_it(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On so many threads, and apart from what is known of it on all; what is known is not measured again."""
    monkeypatch.setenv("HEADRACE_CACHE", str(tmp_path))
    models = tmp_path / "models"
    add_model(models, "m", mlp(), "max_batch_size: 4\n")
    (models / "graph").mkdir()
    (models / "graph" / "graph.yaml").write_text(GRAPH)
    alone = measured(models, name, 1)
    assert alone is not None
    profiles = set((tmp_path / "profiles").iterdir())
    assert measured(models, name, 1) == alone
    assert set((tmp_path / "profiles").iterdir()) == profiles
    assert measured(models, name) is not None
    assert len(set((tmp_path / "profiles").iterdir())) == 2 * len(profiles)


def test_lengths_are_padded_as_online(repository: Path, tmp_path: Path, run: Run) -> None:
    """Rows of about one length share batches, the mask is made, and what varies is cut back; rows that do not fit are told of."""
    random = np.random.default_rng(5)
    lengths = [*random.integers(1, 17, 200).tolist(), 0, 17, 3]
    rows = [random.integers(0, 100, length).tolist() for length in lengths]
    pq.write_table(pa.table({"ids": pa.array(rows, pa.list_(pa.int64())), "n": range(len(rows))}), tmp_path / "in.parquet")
    output = run("tokens", tmp_path / "in.parquet", options=Options())
    table = read(output)
    kept = [place for place, length in enumerate(lengths) if 1 <= length <= 16]
    assert table.column("n").to_pylist() == kept
    with Engine(repository) as engine:
        for place, hidden, total in zip(kept, table.column("hidden").to_pylist(), column(table, "sum"), strict=True):
            alone = engine.infer("tokens", {"ids": np.array([rows[place]], np.int64)})
            np.testing.assert_array_equal(np.float32(hidden), alone["hidden"][0])
            np.testing.assert_allclose(total, alone["sum"][0], rtol=1e-5, atol=1e-6)
    rejects = [json.loads(line) for line in (output / "_rejects" / "part-00000.jsonl").read_text().splitlines()]
    assert [reject["row"] for reject in rejects] == [200, 201]
    assert "has length 0" in rejects[0]["reason"]
    assert "largest bucket is 16" in rejects[1]["reason"]


def test_rows_become_others_and_come_back(run: Run, tmp_path: Path) -> None:
    """Over a border: a text gets what became of its words, none for none; one with a word that cannot be is told of."""
    texts = [" ".join("x" * (1 + (row * k) % 9) for k in range(row % 7)) for row in range(500)]
    texts[77] = "all is well but for indefatigability"
    pq.write_table(pa.table({"text": texts, "row": range(500)}), tmp_path / "in.parquet")
    table = read(output := run("words", tmp_path / "in.parquet", options=Options()))
    assert table.column("row").to_pylist() == [row for row in range(500) if row != 77]
    for row, answer in zip(table.column("row").to_pylist(), table.column("y").to_pylist(), strict=True):
        assert np.reshape(answer, -1).tolist() == [1.5 * len(word) for word in texts[row].split()]
    (reject,) = [json.loads(line) for line in (output / "_rejects" / "part-00000.jsonl").read_text().splitlines()]
    assert (reject["file"], reject["row"]) == (str(tmp_path / "in.parquet"), 77)
    assert digests(output) == digests(run("words", tmp_path / "in.parquet", "again", options=Options()))


@pytest.mark.parametrize("guilty", [[], [0], [63], [5, 6, 7, 40], list(range(64))])
def test_only_the_guilty_rows_of_a_batch_are_rejected(run: Run, tmp_path: Path, guilty: list[int]) -> None:
    i = np.arange(130) % 10
    i[guilty] = 99
    pq.write_table(pa.table({"i": i, "row": np.arange(130)}), tmp_path / "in.parquet")
    output = run("lookup", tmp_path / "in.parquet", options=Options(batch_rows=64))
    table = read(output)
    left = [row for row in range(130) if row not in guilty]
    assert table.column("row").to_pylist() == left
    np.testing.assert_array_equal(column(table, "y"), 1.5 * i[left])
    file = output / "_rejects" / "part-00000.jsonl"
    rejects = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    assert [reject["row"] for reject in rejects] == guilty
    assert all("idx=99" in reject["reason"] or "out of" in reject["reason"] for reject in rejects)


def test_too_many_rejects_stop_it_and_it_can_go_on(run: Run, repository: Path, tmp_path: Path) -> None:
    i = np.where(np.arange(5000) >= 3000, 99, 1)
    pq.write_table(pa.table({"i": i}), tmp_path / "in.parquet")
    with pytest.raises(JobFailed, match=r"at most 10 may be \(--max-rejects\).*2 of 5 splits are finished"):
        run("lookup", tmp_path / "in.parquet", most_rejected=10)
    output = run("lookup", tmp_path / "in.parquet", most_rejected=2000, resume=True)
    assert read(output).num_rows == 3000
    assert sum(len(path.read_text().splitlines()) for path in (output / "_rejects").iterdir()) == 2000


@pytest.mark.parametrize(
    ("graph", "options", "error", "told"),
    [
        ("nobody", Options(), InvalidJob, "no graph 'nobody' in .*lookup, mlp"),
        ("mlp", Options(columns={"z": "x"}), InvalidJob, "'z' is no input"),
        ("mlp", Options(columns={"x": "w"}), InvalidJob, "no column 'w'.*id, x"),
        ("mlp", Options(columns={"x": "id"}), InvalidJob, "'id' is int64"),
        ("mlp", Options(keep=("nothing",)), InvalidJob, "'nothing'.*id, x"),
        ("mlp", Options(text=("z",)), InvalidJob, "'z'"),
    ],
)
def test_what_cannot_begin_says_why(
    run: Run, tmp_path: Path, graph: str, options: Options, error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told):
        run(graph, write_vectors(tmp_path / "in", [10]), options=options)
    assert not (tmp_path / "out" / "_headrace" / "manifest.json").exists()


def test_an_output_that_is_none(run: Run, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(InvalidJob, match="is not empty, and no output of a job"):
        run("mlp", write_vectors(tmp_path / "in", [10]))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]
