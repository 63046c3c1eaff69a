"""Which compression an `Accept-Encoding` means, and what a body without its compression is."""

from __future__ import annotations

import gzip
import zlib

import pytest

from headrace.protocol.http_coding import check_coding, compress, decompress, wanted_coding


@pytest.mark.parametrize(
    ("accepted", "wanted"),
    [
        ("", ""),
        ("identity", ""),
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("GZIP", "gzip"),
        ("br, gzip", "gzip"),
        ("br", ""),
        ("gzip, deflate", "gzip"),
        ("deflate, gzip", "deflate"),
        ("gzip;q=0.5, deflate;q=0.8", "deflate"),
        ("gzip ; q=0.8 , deflate;q=0.5", "gzip"),
        ("gzip;q=0", ""),
        ("gzip;q=0, deflate", "deflate"),
        ("gzip;q=0.5, identity", ""),
        ("gzip;q=0.5, identity;q=0.2", "gzip"),
        ("*", "gzip"),
        ("gzip;q=0, *", "deflate"),
        ("*;q=0", ""),
        ("gzip;q=x", ""),
        ("gzip;q=nan", ""),
        ("gzip;q=2", ""),
        ("gzip;v=1", ""),
        (",;,=;q", ""),
    ],
)
def test_what_a_client_accepts(accepted: str, wanted: str) -> None:
    assert wanted_coding(accepted) == wanted


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_there_and_back(coding: str) -> None:
    body = bytes(range(256)) * 100
    undo = gzip.decompress if coding == "gzip" else zlib.decompress
    assert undo(compress(body, coding)) == body
    assert decompress(compress(body, coding), coding, len(body)) == body


@pytest.mark.parametrize(("given", "coding"), [("", ""), ("identity", ""), (" GZip ", "gzip"), ("deflate", "deflate")])
def test_what_a_body_says(given: str, coding: str) -> None:
    assert check_coding(given) == coding
