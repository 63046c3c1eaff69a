"""Batch jobs on real Ray from and to a loopback store, as S3 and as Google: their parts are those of a job on disk."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from headrace.errors import JobStopped
from headrace.jobs import BatchJob, Options
from headrace.jobs.manifest import Done
from headrace.jobs.verify import verify_output
from tests.cluster.clusters import driver
from tests.jobs.conftest import build_repository, digests, write_vectors
from tests.jobs.faulty import Asked, FaultyS3
from tests.jobs.test_stores import as_google, content, stored, upload

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]
ROWS = (3000, 100, 3000)
OPTIONS = Options(batch_rows=16)


@pytest.fixture(scope="module")
def s3() -> Iterator[FaultyS3]:
    """An S3, and a Ray of which this process is a driver, and which knows it."""
    server = FaultyS3()
    variables = {"AWS_ENDPOINT_URL": server.endpoint, "AWS_REGION": "us-east-1", **as_google(server)}
    with driver(cpus=3, AWS_ACCESS_KEY_ID="test", AWS_SECRET_ACCESS_KEY="test", **variables):
        yield server
    server.close()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("ray-stores")
    build_repository(place / "models")
    write_vectors(place / "in", ROWS)
    return place


@pytest.fixture(scope="module")
def expected(place: Path) -> dict[str, str]:
    """What a job from disk to disk makes."""
    BatchJob("mlp", place / "models", place / "in", place / "expected", OPTIONS).run()
    return digests(place / "expected")


@pytest.fixture
def bucket(s3: FaultyS3, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    bucket = s3.bucket(tmp_path.name.replace("_", "-"))
    upload(place / "in", f"{bucket}/in")
    return bucket


def job(place: Path, bucket: str, on: str, *, resume: bool = False) -> BatchJob:
    told = ("mlp", place / "models", f"{bucket}/in", f"{bucket}/out", OPTIONS)
    if on == "here":
        return BatchJob(*told, resume=resume)
    from headrace.cluster.batch import Actors, RayJob

    return RayJob(Actors(2), *told, resume=resume)


def after(job: BatchJob, splits: int, then: Callable[[], None], patch: pytest.MonkeyPatch) -> None:
    """Have something done when so many splits are recorded."""
    record: Callable[[Done], None] = job._recorded
    seen: list[Done] = []

    def recorded(done: Done) -> None:
        record(done)
        seen.append(done)
        if len(seen) == splits:
            then()

    patch.setattr(job, "_recorded", recorded)


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_begun_here_gone_on_with_there_and_back(
    place: Path, bucket: str, expected: dict[str, str], monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    bucket = bucket.replace("s3://", f"{scheme}://")
    for number, on in enumerate(("here", "on Ray")):
        begun = job(place, bucket, on, resume=number > 0)
        after(begun, 1, begun.stop, monkeypatch)
        with pytest.raises(JobStopped):
            begun.run()
        assert number < begun.progress.splits < len(expected)
    job(place, bucket, "here", resume=True).run()
    assert stored(f"{bucket}/out") == expected


@pytest.mark.parametrize("moment", ["before the part", "between the part and its record"])
def test_an_actor_is_killed(
    place: Path, s3: FaultyS3, bucket: str, expected: dict[str, str], monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """When it asks for an upload; a tenth of what is asked later is lost, too."""
    last = "out/part-00003.parquet" if moment == "before the part" else "out/_headrace/splits/00003.json"
    begun = job(place, bucket, "on Ray")
    killed: list[str] = []

    def kill(asked: Asked) -> str | None:
        if asked.method == "PUT" and asked.name == last and not killed:
            killed.extend(actor.name for actor in begun.progress.actors)
            for name in killed:
                os.kill(int(name.rpartition("/")[2]), signal.SIGKILL)
            return "cut before"
        return "cut after" if killed and len(s3.asked) % 10 == 0 else None

    s3.fault = kill
    assert begun.run().rows == sum(ROWS)
    s3.fault = lambda asked: None
    assert killed
    assert len(begun.progress.actors) > len(killed)
    assert stored(f"{bucket}/out") == expected
    assert verify_output(f"{bucket}/out", sample=1).problems == []
    assert content(f"{bucket}/out")["_headrace/lock"] == b""
