"""A Triton that speaks TLS only, and wants to know who asks."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.backends.triton.portable import PortableChannel
from tests.triton.far import MODELS, Triton, write_model
from tests.triton.here import Here, reason_of, rows, session_of


def certified(home: Path, name: str, *options: str) -> None:
    """A key and a certificate, `NAME.key` and `NAME.pem`."""
    files = ["-keyout", str(home / f"{name}.key"), "-out", str(home / f"{name}.pem")]
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    subprocess.run([*command, "-subj", f"/CN={name}", *files, *options], check=True, capture_output=True)


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Triton, Path]]:
    """A server with a certificate for its address, which takes clients of one authority; and where all that is."""
    home = tmp_path_factory.mktemp("tls")
    for authority in ("authority", "stranger"):
        certified(home, authority)
    for name in ("server", "client"):
        signed = ["-CA", str(home / "authority.pem"), "-CAkey", str(home / "authority.key")]
        certified(home, name, *signed, "-addext", "basicConstraints=CA:FALSE", "-addext", "subjectAltName=IP:127.0.0.1")
    write_model(home / "models", "doubles", *MODELS["doubles"])
    options = {"server-cert": "server.pem", "server-key": "server.key", "root-cert": "authority.pem"}
    files = [f"--grpc-{option}={home / file}" for option, file in options.items()]
    with Triton(home / "models", home / "log", "--grpc-use-ssl-mutual=true", *files) as server:
        yield server, home


def test_both_sides_show_who_they_are(here: Here, tls: tuple[Triton, Path]) -> None:
    server, home = tls
    here.add(
        "doubles", server.url, tls_ca=home / "authority.pem", tls_certificate=home / "client.pem", tls_key=home / "client.key"
    )
    engine = here.engine()
    assert (engine.infer("doubles", {"x": rows(1, 2)})["y"] == 2 * rows(1, 2)).all()
    (line,) = session_of(engine, "doubles")._client._free
    assert isinstance(line.channel, PortableChannel), "the kernels' client has no TLS"


@pytest.mark.parametrize(
    "given",
    [
        pytest.param({}, id="no TLS"),
        pytest.param({"tls": "on"}, id="an authority that this machine does not know"),
        pytest.param({"tls_ca": "stranger.pem"}, id="another authority"),
        pytest.param({"tls_ca": "authority.pem"}, id="no certificate of ours"),
        pytest.param(
            {"tls_ca": "authority.pem", "tls_certificate": "stranger.pem", "tls_key": "stranger.key"}, id="one of a stranger"
        ),
    ],
)
def test_who_is_not_known_is_not_served(here: Here, tls: tuple[Triton, Path], given: dict[str, str]) -> None:
    server, home = tls
    files = {key: value if key == "tls" else home / value for key, value in given.items()}
    here.add("doubles", server.url, **files, connect_timeout_s="0.5")
    assert f"no Triton answers at {server.url}" in reason_of(here.engine(), "doubles")
