"""The command line as people meet it: a process, its exit status, its two streams."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from headrace.backends import installed
from headrace.cli import doctor
from headrace.errors import InvalidRepository
from headrace.transport.ways import chosen_transport
from tests.command_line import refusal

ROOT = Path(__file__).parent.parent.parent
HEADRACE = [sys.executable, "-m", "headrace"]
ALONE = ("--http=none", "--metrics=none")
TRANSPORT = chosen_transport("auto")


def run(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [*HEADRACE, *map(str, arguments)]
    return subprocess.run(command, env={**os.environ, **environment}, cwd=ROOT, capture_output=True, text=True, check=False)


@contextmanager
def serving(*arguments: str | Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server that is up, and its ready line."""
    command = [*HEADRACE, "serve", "--grpc=127.0.0.1:0", *ALONE, "--drain-grace=0", *map(str, arguments)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield server, server.stdout.readline()
        finally:
            server.kill()


def stop(server: subprocess.Popen[str], number: signal.Signals = signal.SIGTERM) -> tuple[str, str]:
    server.send_signal(number)
    out, err = server.communicate(timeout=50)
    assert server.returncode == 0, err
    return out, err


@pytest.fixture(scope="session")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file that gives back what it gets."""
    rows = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "identity", rows[:1], rows[1:])
    file = tmp_path_factory.mktemp("models") / "identity.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), file)
    return file


@pytest.fixture
def repository(tmp_path: Path, identity: Path) -> Path:
    """One good model, one whose file is junk, one whose configuration is."""
    models = tmp_path / "models"
    for name, content in (("good", identity.read_bytes()), ("junk", b"no model"), ("typo", identity.read_bytes())):
        (models / name / "1").mkdir(parents=True)
        (models / name / "1/model.onnx").write_bytes(content)
    (models / "typo/config.pbtxt").write_text("max_bach_size: 4")
    return models


def one_line(text: str) -> str:
    assert text.endswith("\n")
    assert text.count("\n") == 1, text
    return text


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["serve", "--repository", "/no/such/folder"], "/no/such/folder"),
        (["serve", "/no/such/model.onnx"], "/no/such/model.onnx"),
        (["serve", "README.md"], "README.md is no .onnx file"),
        (["serve"], "--repository DIR"),
        (["serve", "--repository", "configs", "model.onnx"], "not both"),
        (["serve", "--repository", "configs", "--load-model", "m"], "model_control explicit only"),
        (["serve", "--repository", "configs", "--bogus"], "No such option: --bogus"),
        (["serve", "--repository", "configs", "--transport", "quic"], "option --transport is 'quic'"),
        (["serve", "--repository", "configs", "--drain-grace", "soon"], "--drain-grace"),
        (["serve", "--repository", "configs", "--drain-grace", "-1"], "option --drain-grace is -1"),
        (["serve", "--repository", "configs", "--grpc", "8001"], "expected HOST:PORT"),
        (["serve", "--repository", "configs", "--config", "absent.yaml"], "cannot read absent.yaml"),
        (["serve", "--repository", "configs", "--config", "constraints.txt"], "constraints.txt"),
        (
            [
                "serve",
                "--repository",
                "configs",
                "--grpc",
                "127.0.0.1:0",
                *ALONE,
                "--model-control",
                "explicit",
                "--load-model",
                "no",
            ],
            "'no'",
        ),
        (["serve", "--repository", "configs/server", "--grpc", "no-such-host.invalid:0", *ALONE], "no-such-host.invalid"),
        (["models", "--repository", "/no/such/folder"], "/no/such/folder"),
        (["models"], "--repository"),
        (["launder"], "No such command 'launder'"),
        ([], "Missing command"),
    ],
)
def test_a_mistake_is_told_in_one_line(
    arguments: Sequence[str], told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert told in one_line(refusal(*arguments, capture=capsys))


def test_a_process_that_refuses_has_a_status() -> None:
    done = run("launder")
    assert (done.returncode, done.stdout) == (2, "")
    assert "No such command 'launder'" in one_line(done.stderr)


def test_a_busy_port_is_told_in_one_line(identity: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = run("serve", identity, "--grpc", address, *ALONE)
    assert done.returncode == 2
    assert done.stdout == ""
    assert address in one_line(done.stderr)


def test_a_bad_key_is_told_with_its_file(tmp_path: Path) -> None:
    file = tmp_path / "server.yaml"
    file.write_text("drain_grce: 1\n")
    done = run("serve", "--repository", "configs", "--config", file)
    assert done.returncode == 2
    assert one_line(done.stderr) == f"headrace: {file}: key 'drain_grce' is unknown; did you mean 'drain_grace'?\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serving_one_file(identity: Path, number: signal.Signals) -> None:
    with serving(identity) as (server, ready):
        assert re.fullmatch(rf"ready grpc=127\.0\.0\.1:[1-9]\d* models=1/1 transport={TRANSPORT}\n", ready)
        out, err = stop(server, number)
    assert out == ""
    lines = [json.loads(line) for line in err.splitlines()]
    assert lines[-1]["message"] == "drained"
    assert all({"time", "level", "logger"} <= line.keys() for line in lines)


def test_a_server_with_nothing_to_serve_is_none(tmp_path: Path) -> None:
    junk = tmp_path / "junk.onnx"
    junk.write_bytes(b"no model")
    ended = run("serve", junk, "--grpc", "127.0.0.1:0", *ALONE)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "no model came up; junk: " in ended.stderr.splitlines()[-1]


def test_broken_models_are_counted_and_the_rest_is_served(repository: Path) -> None:
    with serving("--repository", repository, "--log-format=text") as (server, ready):
        assert "models=1/3" in ready
        _, err = stop(server)
    assert re.search(r"ERROR .*model=junk", err)


def test_explicit_control_loads_what_it_is_told(repository: Path) -> None:
    with serving("--repository", repository, "--model-control=explicit", "--load-model=good") as (server, ready):
        assert "models=1/1" in ready
        stop(server)


def test_options_win_over_the_file(repository: Path, tmp_path: Path) -> None:
    file = tmp_path / "server.yaml"
    file.write_text("repository: models\nmodel_control: explicit\nload_model: [junk]\nlog_format: text\n")
    with serving("--config", file, "--load-model=good") as (server, ready):
        assert "models=1/1" in ready
        _, err = stop(server)
    assert "{" not in err


def test_a_second_signal_hastens(identity: Path) -> None:
    with serving(identity, "--drain-grace=1000") as (server, _):
        assert server.stderr is not None
        server.send_signal(signal.SIGTERM)
        while "new requests are taken" not in server.stderr.readline():
            pass
        stop(server)


def test_models_tells_what_is_there_and_what_is_broken(repository: Path) -> None:
    done = run("models", "--repository", repository, COLUMNS="160")
    assert done.returncode == 1
    assert re.search(r"good\s+1\s+[0-9a-f]{12}\s+onnxruntime\s+4\s+x FP32 \[3\]\s+y FP32 \[3\]", done.stdout)
    assert re.search(r"^junk 1 is broken: .*model\.onnx", done.stdout, re.MULTILINE)
    assert re.search(r"^typo is broken: .*max_bach_size", done.stdout, re.MULTILINE)
    assert done.stderr == ""


def test_models_as_json(repository: Path) -> None:
    done = run("models", "--repository", repository, "--json")
    records = {record["model"]: record for record in json.loads(done.stdout)}
    assert done.returncode == 1
    assert records["good"]["state"] == "READY"
    assert records["good"]["inputs"] == [{"name": "x", "datatype": "FP32", "dims": [3], "optional": False}]
    assert "max_batch_size" in " ".join(records["good"]["filled"])
    assert len(records["good"]["digest"]) == 64
    assert "digest" not in records["junk"]
    assert "max_bach_size" in records["typo"]["reason"]


def test_models_is_content_with_good_ones(identity: Path, tmp_path: Path) -> None:
    (tmp_path / "good/1").mkdir(parents=True)
    (tmp_path / "good/1/model.onnx").write_bytes(identity.read_bytes())
    assert run("models", "--repository", tmp_path).returncode == 0


def test_doctor_looks_at_everything() -> None:
    done = run("doctor", "--json")
    told = json.loads(done.stdout)
    assert (done.returncode, told["ok"]) == (0, True)
    topics = {finding["topic"]: finding for finding in told["findings"]}
    assert "CPUExecutionProvider" in topics["execution providers"]["found"]
    assert f"auto takes {TRANSPORT}" in topics["transport"]["found"]
    assert {"python", "gpus", "cpus", "memory", "shared memory", "extra triton", "extra ray"} <= topics.keys()


def test_doctor_finds_fault(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(installed, "onnxruntime_builds", lambda: {"onnxruntime": "1.32.0", "onnxruntime-gpu": "1.31.1"})
    assert doctor.show_findings(json=False) == 1
    told = capsys.readouterr().out
    assert "onnxruntime 1.32.0 and onnxruntime-gpu 1.31.1 are both installed" in told
    assert "pip install 'headrace[cpu]'" in told


def test_without_onnxruntime_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installed, "onnxruntime_builds", dict)
    monkeypatch.setattr(installed, "find_spec", lambda name: None)
    with pytest.raises(InvalidRepository, match=re.escape("pip install 'headrace[cpu]'")):
        installed.check_onnxruntime()


@pytest.mark.parametrize("command", [[], ["serve"], ["models"], ["doctor"]])
def test_help_has_examples(command: list[str]) -> None:
    done = run(*command, "--help")
    assert done.returncode == 0
    assert re.search(r"Examples?:\n +headrace ", done.stdout)


def test_every_way_in_at_once(identity: Path) -> None:
    with serving(identity, "--http=127.0.0.1:0", "--metrics=127.0.0.1:0", "--allow-client-shm") as (server, ready):
        found = re.fullmatch(rf"ready grpc=(\S+) http=(\S+) metrics=(\S+) models=1/1 transport={TRANSPORT}\n", ready)
        assert found, ready
        body = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}]}).encode()
        with urllib.request.urlopen(f"http://{found[2]}/v2/models/identity/infer", body) as answer:
            assert json.load(answer)["outputs"][0]["data"] == [1.0, 2.0, 3.0]
        with urllib.request.urlopen(f"http://{found[3]}/metrics") as page:
            metrics = page.read().decode()
            assert 'nv_inference_request_success{model="identity",version="1"} 1.0' in metrics
            assert f'headrace_transport_info{{transport="{TRANSPORT}"}} 1.0' in metrics
        with urllib.request.urlopen(f"http://{found[2]}/v2") as answer:
            assert "system_shared_memory" in json.load(answer)["extensions"]
        _, err = stop(server)
    assert json.loads(err.splitlines()[-1])["answered"] == 1
