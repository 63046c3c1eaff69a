"""Jobs from and to an object store: S3 on loopback, of which requests are lost, delayed and cut."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import pickle
import random
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.fs as pfs
import pytest

from headrace.errors import HeadraceError, InvalidJob, JobChanged, JobFailed, JobLocked
from headrace.jobs import BatchJob, Options, beginning
from headrace.jobs.stores import lease, objects
from headrace.jobs.stores.location import JobStore
from headrace.jobs.stores.objects import Objects
from headrace.jobs.verify import verify_output
from headrace.jobs.worker import Worker
from tests.jobs.conftest import digests, write_vectors
from tests.jobs.faulty import KINDS, Asked, FaultyS3
from tests.jobs.test_kills import begin, command, finish
from tests.waiting import until

OPTIONS = Options(batch_rows=16)
ROWS = (1024, 300, 2048)


@pytest.fixture(scope="module")
def s3() -> Iterator[FaultyS3]:
    server = FaultyS3()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_REGION", "us-east-1")
        patch.setattr(objects, "_PAUSES", (0.01,) * 3)
        yield server
    server.close()


@pytest.fixture
def bucket(s3: FaultyS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A bucket of the test, and a machine of its own: what it has on disk is below `tmp_path`."""
    (tmp_path / "machine").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "machine"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "machine"))
    return s3.bucket(tmp_path.name.replace("_", "-"))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_vectors(tmp_path_factory.mktemp("data") / "in", ROWS)


@pytest.fixture(scope="module")
def expected(repository: Path, files: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What a job from disk to disk makes."""
    output = tmp_path_factory.mktemp("expected") / "out"
    BatchJob("mlp", repository, files, output, OPTIONS).run()
    return digests(output)


def upload(directory: Path, url: str) -> str:
    """Put all files of a directory into a store."""
    for file in sorted(directory.rglob("*.parquet")):
        Objects().create(f"{url}/{file.relative_to(directory)}", file.read_bytes())
    return url


def content(url: str) -> dict[str, bytes]:
    """All objects below a URL, by their names there."""
    store = Objects()
    return {one.url.removeprefix(f"{url}/"): store.read(one.url)[0] for one in store.below(url)}


def stored(url: str) -> dict[str, str]:
    """As `digests`, of an output in a store."""
    found = content(url)
    return {name: hashlib.sha256(found[name]).hexdigest() for name in sorted(found) if not name.startswith("_headrace")}


def test_from_a_store_to_a_store(repository: Path, bucket: str, tmp_path: Path) -> None:
    """Partitions, names that need quoting, what is hidden: as on disk, to the byte; and verified there."""
    for day in ("day=1", "day=two & 50%"):
        write_vectors(tmp_path / "in" / day, [700])
    write_vectors(tmp_path / "in" / "_hidden", [10])
    upload(tmp_path / "in", f"{bucket}/in")
    BatchJob("mlp", repository, tmp_path / "in", tmp_path / "out", OPTIONS).run()
    done = BatchJob("mlp", repository, f"{bucket}/in", f"{bucket}/a b/out", OPTIONS).run()
    assert stored(f"{bucket}/a b/out") == digests(tmp_path / "out")
    assert (done.rows, done.splits) == (1400, 2)
    found = verify_output(f"{bucket}/a b/out", sample=3)
    assert (found.parts, found.rows, found.problems) == (2, 1400, [])
    assert found.sampled_rows
    manifest = json.loads(content(f"{bucket}/a b/out")["_headrace/manifest.json"])
    assert manifest["input"] == [f"{bucket}/in"]
    assert manifest["found"]["files"][0][0] == f"{bucket}/in/day=1/000.parquet"
    part = next(name for name in stored(f"{bucket}/a b/out"))
    Objects().remove(f"{bucket}/a b/out/{part}")
    assert verify_output(f"{bucket}/a b/out", sample=0).problems == [f"{bucket}/a b/out/{part} is not there"]


def test_rows_are_rejected_there_too(repository: Path, bucket: str, tmp_path: Path) -> None:
    """The references name objects; of a run that did not record its split nothing is left."""
    lines = "".join(f'{{"i": [{77 if row == 7 else 1}]}}\n' for row in range(40))
    Objects().create(f"{bucket}/in.jsonl", lines.encode())
    Objects().create(f"{bucket}/out/_headrace/begun", b"")
    Objects().create(f"{bucket}/out/_rejects/part-00003.jsonl", b"of a run that died")
    done = BatchJob("lookup", repository, f"{bucket}/*.jsonl", f"{bucket}/out", Options(batch_rows=8, keep=("i",))).run()
    assert done.rejected == 1
    (told,) = (json.loads(rejected) for name, rejected in content(f"{bucket}/out").items() if name.startswith("_rejects"))
    assert (told["file"], told["row"]) == (f"{bucket}/in.jsonl", 7)


@pytest.mark.parametrize("kind", ["any", *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS)])
def test_every_request_goes_wrong_once(
    repository: Path, s3: FaultyS3, bucket: str, files: Path, expected: dict[str, str], kind: str
) -> None:
    """But the first, which sees whether anybody is there. Before or after it took effect: nothing is there twice, or missing."""
    upload(files, f"{bucket}/in")
    seen: set[Asked] = set()
    kinds = itertools.cycle(KINDS[:-1] if kind == "any" else [kind])

    def once(asked: Asked) -> str | None:
        is_new = bool(seen) and asked not in seen
        seen.add(asked)
        return next(kinds) if is_new else None

    s3.fault = once
    BatchJob("mlp", repository, f"{bucket}/in/*.parquet", f"{bucket}/out", OPTIONS).run()
    s3.fault = lambda asked: None
    assert {asked.name.rpartition("/")[2] for asked in seen if asked.method == "PUT"} >= {"lock", "manifest.json", "00003.json"}
    assert stored(f"{bucket}/out") == expected
    assert verify_output(f"{bucket}/out", sample=1).problems == []
    assert content(f"{bucket}/out")["_headrace/lock"] == b""


@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_at_an_upload(
    repository: Path, s3: FaultyS3, bucket: str, files: Path, expected: dict[str, str], moment: str
) -> None:
    """Before a part is there, and between it and its record; going on opens no file whose splits are finished."""
    upload(files, f"{bucket}/in")
    job = command(repository, files, Path("out"))
    job[job.index("--input") + 1], job[job.index("--output") + 1] = f"{bucket}/in", f"{bucket}/out"
    begun: list[Any] = []

    def kill(asked: Asked) -> str | None:
        last = "out/part-00002.parquet" if moment == "before" else "out/_headrace/splits/00002.json"
        if asked.method == "PUT" and asked.name == last:
            until(lambda: bool(begun))
            os.killpg(begun[0].pid, signal.SIGKILL)
            return "cut before"
        return None

    s3.fault = kill
    begun.append(begin("-m", "headrace", *job))
    assert begun[0].wait(50) == -signal.SIGKILL
    s3.fault = lambda asked: None
    assert len(stored(f"{bucket}/out")) == (2 if moment == "before" else 3)
    s3.asked.clear()
    finish(job)
    assert {name for name in s3.opened() if name.startswith("in/")} == {"in/002.parquet"}
    assert stored(f"{bucket}/out") == expected


def test_what_is_finished_is_not_opened_and_what_has_changed_is_told(
    repository: Path, s3: FaultyS3, bucket: str, files: Path
) -> None:
    upload(files, f"{bucket}/in")
    job = ("mlp", repository, f"{bucket}/in", f"{bucket}/out", OPTIONS)
    BatchJob(*job).run()
    with pytest.raises(InvalidJob, match=f"{bucket}/out has a job already: go on with it"):
        BatchJob(*job).run()
    s3.asked.clear()
    assert BatchJob(*job, resume=True).run().before == sum(ROWS)
    assert not [name for name in s3.opened() if name.startswith("in/")]
    s3.put(f"{bucket}/in/001.parquet", b"other")
    with pytest.raises(JobChanged, match=f"{bucket}/in/001.parquet has 5 bytes, and had "):
        BatchJob(*job, resume=True).run()


def test_a_graph_that_does_not_give_the_same_twice(repository: Path, bucket: str, files: Path, expected: dict[str, str]) -> None:
    """The part of a run that died before it recorded it makes room for another."""
    Objects().create(f"{bucket}/out/_headrace/begun", b"")
    Objects().create(f"{bucket}/out/part-00001.parquet", b"another")
    BatchJob("mlp", repository, files, f"{bucket}/out", OPTIONS).run()
    assert stored(f"{bucket}/out") == expected


def as_google(s3: FaultyS3) -> dict[str, str]:
    """The variables with which Google's client asks it."""
    key = {"gcs_base_url": s3.endpoint, "disable_oauth": True, "client_email": "", "private_key": "", "private_key_id": ""}
    return {"GOOGLE_SERVICE_ACCOUNT_KEY": json.dumps(key)}


def test_google(
    repository: Path,
    s3: FaultyS3,
    bucket: str,
    files: Path,
    expected: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its client, and versions that are numbers: a part that is there already, a lock that is stale, and going on."""
    for name, value in as_google(s3).items():
        monkeypatch.setenv(name, value)
    upload(files, f"{bucket}/in")
    bucket = bucket.replace("s3://", "gs://")
    hold(f"{bucket}/out")
    Objects().create(f"{bucket}/out/part-00001.parquet", b"another")
    job = ("mlp", repository, f"{bucket}/in/*.parquet", f"{bucket}/out", OPTIONS)
    BatchJob(*job).run()
    assert "process 7 on afar, since today. Its lock is taken over" in caplog.text
    assert stored(f"{bucket}/out") == expected
    assert BatchJob(*job, resume=True).run().before == sum(ROWS)
    assert verify_output(f"{bucket}/out", sample=1).problems == []


# Locks.


def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on this is another machine."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "elsewhere"))


@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_two_runs_exclude_each_other(
    repository: Path, bucket: str, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """On one machine that is known at once; on two the lock is watched, and seen to be written anew."""
    monkeypatch.setattr(lease, "_SECONDS", 2.0)
    first = JobStore(f"{bucket}/out")
    first.prepare()
    with first.lock():
        if where == "elsewhere":
            elsewhere(tmp_path, monkeypatch)
        with pytest.raises(JobLocked, match=f"another run works on {bucket}/out: process {os.getpid()} on "):
            BatchJob("mlp", repository, files, f"{bucket}/out", OPTIONS).run()
    BatchJob("mlp", repository, files, f"{bucket}/out", OPTIONS).run()


def hold(url: str, **changed: object) -> None:
    """A lock of a run that is somewhere else, and does nothing."""
    holder = {"owner": "o", "machine": "m", "pid": 7, "host": "afar", "since": "today", "seconds": 0.5, "renewals": 0}
    assert Objects().create(f"{url}/_headrace/lock", json.dumps(holder | changed).encode())


def test_a_stale_lock_is_taken_over(
    repository: Path, bucket: str, files: Path, expected: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    hold(f"{bucket}/out")
    BatchJob("mlp", repository, files, f"{bucket}/out", OPTIONS).run()
    assert "the last run did not come to its end: process 7 on afar, since today. Its lock is taken over" in caplog.text
    assert stored(f"{bucket}/out") == expected


def test_one_of_two_takes_a_stale_lock(repository: Path, s3: FaultyS3, bucket: str, files: Path) -> None:
    """Between seeing and taking, another was there."""
    hold(f"{bucket}/out")

    def be_quicker(asked: Asked) -> None:
        if asked.name == "out/_headrace/lock" and asked.condition not in ("", "*"):
            s3.put(f"{bucket}/{asked.name}", b"mine")

    s3.fault = be_quicker
    with pytest.raises(JobLocked, match=f"another run works on {bucket}/out, which has just begun"):
        BatchJob("mlp", repository, files, f"{bucket}/out", OPTIONS).run()
    assert content(f"{bucket}/out") == {"_headrace/lock": b"mine"}


def run_and_lose_the_lock(s3: FaultyS3, repository: Path, bucket: str, files: Path, lose: Callable[[], None], why: str) -> None:
    """A job whose lock is lost while its second part is uploaded: that is not recorded, and nothing more is uploaded."""

    def fault(asked: Asked) -> str | None:
        if asked.method == "PUT" and asked.name == "out/part-00001.parquet":
            lose()
        return None

    s3.fault = fault
    with pytest.raises(
        JobFailed, match=f"the lock {bucket}/out/_headrace/lock is not held any more: {why}.* 1 of 5 splits are fin"
    ):
        BatchJob("mlp", repository, files, f"{bucket}/out", OPTIONS).run()
    assert [name for name in content(f"{bucket}/out") if "splits" in name] == ["_headrace/splits/00000.json"]


def test_a_lock_that_another_run_has_taken(
    repository: Path, s3: FaultyS3, bucket: str, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is seen when it is to be written anew, and left to whom it belongs."""
    monkeypatch.setattr(lease, "_SECONDS", 0.8)

    def lose() -> None:
        s3.put(f"{bucket}/out/_headrace/lock", b'{"owner": "another"}')
        (renewing,) = (thread for thread in threading.enumerate() if thread.name == "headrace-lease")
        renewing.join(20)

    run_and_lose_the_lock(s3, repository, bucket, files, lose, "another run has taken it over")
    assert content(f"{bucket}/out")["_headrace/lock"] == b'{"owner": "another"}'


def test_a_lock_that_was_written_anew_and_nobody_heard(
    repository: Path,
    s3: FaultyS3,
    bucket: str,
    files: Path,
    expected: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The answer is lost, and whatever is asked about it; later it is found to be ours, and the job goes on."""
    monkeypatch.setattr(lease, "_RENEWALS", 600)
    lost: list[Asked] = []
    heard: list[str] = []

    def fault(asked: Asked) -> str | None:
        if asked.name == "out/part-00001.parquet":
            until(lambda: len(heard) > 3, 30)
        if asked.name != "out/_headrace/lock" or asked.condition == "*":
            return None
        if "the store does not answer" in caplog.text:
            heard.append(asked.method)
            return None
        lost.append(asked)
        return "cut after" if len(lost) == 1 else "cut before"

    s3.fault = fault
    BatchJob("mlp", repository, files, f"{bucket}/out", OPTIONS).run()
    s3.fault = lambda asked: None
    assert heard[:4] == ["PUT", "GET", "GET", "PUT"]
    assert stored(f"{bucket}/out") == expected


def test_a_lock_that_could_not_be_written_anew(
    repository: Path, s3: FaultyS3, bucket: str, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever wants it may have it by now."""

    def lose() -> None:
        monkeypatch.setattr(lease, "monotonic", lambda: time.monotonic() + 61)

    run_and_lose_the_lock(s3, repository, bucket, files, lose, "it could not be written anew for 60 s")


def test_several_put_parts_for_whoever_has_the_lock(
    repository: Path, s3: FaultyS3, bucket: str, files: Path, expected: dict[str, str]
) -> None:
    """Some are made twice, as by one that was taken for dead; with another lock, or another part there, none is."""
    asked = beginning.Asked("mlp", repository, (upload(files, f"{bucket}/in"),), OPTIONS, cpus=1)
    store = JobStore(f"{bucket}/out")
    store.prepare()
    with store.lock():
        first, second, third = (Worker(asked, pickle.loads(pickle.dumps(store.writer())), 1 << 20, 0) for _ in range(3))
        manifest = first.open(None).manifest
        store.begin(manifest)
        for number in range(3):
            first.make(number)
        second.open(manifest)
        for number in (4, 3, 2):
            second.make(number)
        assert stored(f"{bucket}/out") == expected
        s3.put(f"{bucket}/out/part-00002.parquet", b"another")
        with pytest.raises(JobFailed, match=r"part-00002\.parquet was written anew meanwhile: another run works"):
            second.make(2)
        third.open(manifest)
        s3.put(f"{bucket}/out/_headrace/lock", b'{"owner": "another"}')
        with pytest.raises(JobFailed, match=f"the lock {bucket}/out/_headrace/lock is not held any more"):
            third.make(0)
        for worker in (first, second, third):
            worker.stop()


# What is said when it cannot be.


def told(repository: Path, files: Path | str, output: str) -> str:
    with pytest.raises(HeadraceError) as raised:
        BatchJob("mlp", repository, files, output, OPTIONS).run()
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 300
    return str(raised.value)


def test_a_store_that_is_not_as_it_should_be(
    repository: Path, s3: FaultyS3, bucket: str, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = told(repository, files, "s3://no-such-bucket/out")
    assert said.startswith("s3://no-such-bucket/out: the store says 404 Not Found, NoSuchBucket: The specified bucket does not")
    assert said.endswith(". Make the bucket, or name another")
    assert "s3://no-such-bucket/in" in told(repository, "s3://no-such-bucket/in/*.parquet", f"{bucket}/out")
    assert told(repository, f"{bucket}/in/*.parquet", f"{bucket}/out").startswith(f"there is no file at {bucket}/in/*.parquet;")
    Objects().create(f"{bucket}/there/is.txt", b"1")
    assert told(repository, files, f"{bucket}/there").startswith(
        f"there are objects below {bucket}/there, and no output of a job"
    )
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    said = told(repository, files, f"{bucket}/out")
    assert said == (
        f"{bucket}/out: the store does not answer (connection refused). See that it can be reached, and where it is "
        "(AWS_ENDPOINT_URL)"
    )


def test_credentials_that_are_wrong(repository: Path, s3: FaultyS3, bucket: str, files: Path) -> None:
    s3.check_credentials(True)
    try:
        said = told(repository, files, f"{bucket}/out")
    finally:
        s3.check_credentials(False)
    assert said.startswith(f"{bucket}/out: the store says 403 Forbidden, InvalidAccessKeyId: ")
    assert "See the credentials (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY), and what they allow" in said


@pytest.mark.parametrize("gone", ["AWS_SECRET_ACCESS_KEY", "both"])
def test_credentials_that_are_not_there(
    repository: Path, bucket: str, files: Path, monkeypatch: pytest.MonkeyPatch, gone: str
) -> None:
    """Nor those of a machine in a cloud."""
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    if gone == "both":
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    said = told(repository, files, f"{bucket}/out")
    assert said == (
        f"{bucket}/out: there are no credentials for the store. Say them, as by AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    )


@pytest.mark.parametrize("where", ["memory://out", "s3://", "S3://bucket/x"])
def test_urls_that_are_of_no_store(repository: Path, files: Path, where: str) -> None:
    assert "name it as s3://BUCKET/NAME or gs://BUCKET/NAME; other input can be read by BatchJob(…, files" in told(
        repository, files, where
    )


def test_the_input_is_in_one_place(repository: Path, files: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidJob, match="name one or the other"):
        BatchJob("mlp", repository, [str(files), "s3://bucket/in"], tmp_path / "out", OPTIONS).run()


def test_filesystems_that_are_given(repository: Path, files: Path, expected: dict[str, str], tmp_path: Path) -> None:
    """One of pyarrow, and one of fsspec."""
    memory = fsspec.filesystem("memory")
    memory.put(f"{files}/", "/given/", recursive=True)
    below = pfs.SubTreeFileSystem(str(files.parent), pfs.LocalFileSystem())
    for name, where, filesystem in (("fsspec", "/given", memory), ("arrow", "in/*.parquet", below)):
        BatchJob("mlp", repository, where, tmp_path / name, OPTIONS, filesystem=filesystem).run()
        assert digests(tmp_path / name) == expected
    with pytest.raises(InvalidJob, match="a str is no filesystem"):
        BatchJob("mlp", repository, "x", tmp_path / "out", OPTIONS, filesystem="memory").run()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_and_faulty_again_and_again(
    repository: Path, s3: FaultyS3, bucket: str, files: Path, expected: dict[str, str]
) -> None:
    """Jobs that are killed at any request, while a tenth of all requests go wrong."""
    upload(files, f"{bucket}/in")
    for seed in range(12):
        chance, output = random.Random(seed), f"{bucket}/out-{seed}"
        job = command(repository, files, Path("out"))
        job[job.index("--input") + 1], job[job.index("--output") + 1] = f"{bucket}/in", output
        killed = 0
        while killed < 3:
            begun: list[Any] = []
            left = [chance.randrange(5, 60)]

            def fault(
                asked: Asked, begun: list[Any] = begun, left: list[int] = left, chance: random.Random = chance
            ) -> str | None:
                left[0] -= 1
                if left[0] == 0:
                    until(lambda: bool(begun))
                    os.killpg(begun[0].pid, signal.SIGKILL)
                    return chance.choice(("cut before", "cut after"))
                return chance.choice(KINDS) if left[0] < 50 and chance.random() < 0.1 else None

            s3.fault = fault
            begun.append(begin("-m", "headrace", *job))
            if begun[0].wait(100) != -signal.SIGKILL:
                break
            killed += 1
        s3.fault = lambda asked: None
        finish(job)
        assert stored(output) == expected, f"seed {seed}"
