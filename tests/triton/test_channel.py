"""Which client calls a server."""

from __future__ import annotations

import pytest

from headrace import kernels
from headrace.backends.triton import channel
from headrace.backends.triton.settings import Settings
from headrace.errors import KernelsUnusable

HERE, FAR = Settings("127.0.0.1:8001", "m"), Settings("gpu-box:8001", "m")
TLS = Settings("127.0.0.1:8001", "m", tls=(None, None, None))


@pytest.mark.parametrize(
    ("settings", "proxy", "way"),
    [
        (HERE, "", "native"),
        (FAR, "", "native"),
        (Settings("unix:/run/triton", "m"), "", "native"),
        (TLS, "", "portable"),
        (FAR, "grpc_proxy", "portable"),
        (FAR, "http_proxy", "portable"),
        (HERE, "http_proxy", "native"),
    ],
)
def test_the_kernels_call_where_they_can(monkeypatch: pytest.MonkeyPatch, settings: Settings, proxy: str, way: str) -> None:
    for name in ("grpc_proxy", "https_proxy", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    if proxy:
        monkeypatch.setenv(proxy, "http://proxy:3128")
    assert channel.way_to(settings) == (way if kernels.are_installed() else "portable")


def test_without_kernels_it_is_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def load() -> None:
        raise KernelsUnusable("not here")

    monkeypatch.setattr(channel.kernels, "load", load)
    assert channel.way_to(HERE) == "portable"
