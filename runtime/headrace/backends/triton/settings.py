"""What a configuration says of a remote model: its parameters, read and checked."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from headrace.errors import InvalidRepository
from headrace.protocol.headrace_pb2 import ModelConfig

_LOOPBACK = re.compile(r"(localhost|127(\.\d+){3}|\[::1\]):\d+|unix:.*")
_TLS = ("tls_ca", "tls_certificate", "tls_key")


@dataclass(frozen=True, slots=True)
class Settings:
    """Where the model is, and how it is asked.

    `version` empty leaves the choice to the server. `tls` holds the contents of files: the certificates that it may have, and a
    certificate and a key of ours, each None where it was not named; it is None without TLS.
    """

    url: str
    model: str
    version: str = ""
    shared_memory: bool = True
    connect_timeout: float = 1.0
    run_timeout: float = 300.0
    tls: tuple[bytes | None, bytes | None, bytes | None] | None = None

    @property
    def is_here(self) -> bool:
        """Whether the address is one of this machine."""
        return _LOOPBACK.fullmatch(self.url) is not None

    def __str__(self) -> str:
        version = f" version {self.version}" if self.version else ""
        return f"model '{self.model}'{version} of the Triton at {self.url}"


def settings_of(config: ModelConfig, directory: Path) -> Settings:
    """The settings in the parameters of a configuration; files are found from the version's `directory`.

    Raises:
        InvalidRepository: one is missing, unknown in value, or a file cannot be read.
    """
    given = {key: value.string_value for key, value in config.parameters.items()}
    url = given.get("url", "")
    if not (url.startswith("unix:") or re.fullmatch(r"[^/\s]+:\d+", url)):
        raise InvalidRepository(
            f"model '{config.name}': parameter 'url' is '{url}'; it must be where the Triton listens for gRPC, HOST:PORT or "
            "unix:PATH"
        )
    shared = given.get("shared_memory", "auto")
    if shared not in ("auto", "off"):
        raise InvalidRepository(f"model '{config.name}': parameter 'shared_memory' is '{shared}', expected auto or off")
    version = given.get("version", "")
    if version and not re.fullmatch(r"[1-9]\d*", version):
        raise InvalidRepository(f"model '{config.name}': parameter 'version' is '{version}', expected a number, as in 1")
    return Settings(
        url,
        given.get("model", "") or config.name,
        version,
        shared == "auto",
        _seconds(config.name, given, "connect_timeout_s", 1.0),
        _seconds(config.name, given, "run_timeout_s", 300.0),
        _tls(config.name, given, directory),
    )


def _seconds(model: str, given: Mapping[str, str], key: str, default: float) -> float:
    try:
        seconds = float(given.get(key, default))
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < math.inf:
        raise InvalidRepository(f"model '{model}': parameter '{key}' is '{given[key]}'; it must be seconds, as in 30")
    return seconds


def _tls(model: str, given: Mapping[str, str], directory: Path) -> tuple[bytes | None, bytes | None, bytes | None] | None:
    switch = given.get("tls", "")
    if switch not in ("", "on", "off"):
        raise InvalidRepository(f"model '{model}': parameter 'tls' is '{switch}', expected on or off")
    named = [given.get(key, "") for key in _TLS]
    if switch == "off" or not (switch or any(named)):
        return None
    if bool(named[1]) != bool(named[2]):
        raise InvalidRepository(f"model '{model}': parameters 'tls_certificate' and 'tls_key' go together; give both, or none")
    ca, certificate, key = (_file(model, *each, directory) for each in zip(_TLS, named, strict=True))
    return ca, certificate, key


def _file(model: str, key: str, name: str, directory: Path) -> bytes | None:
    if not name:
        return None
    try:
        return (directory / name).read_bytes()
    except OSError as error:
        raise InvalidRepository(f"model '{model}': parameter '{key}' names '{name}', which cannot be read: {error}") from error
