"""Compression of HTTP bodies: gzip and deflate, in and out."""

from __future__ import annotations

import math
import zlib

from headrace.errors import InvalidRequest, Unsupported

_WINDOWS = {"gzip": 31, "deflate": 15}
CODINGS = ", ".join(_WINDOWS)
"""What this server understands, as `Accept-Encoding` says it."""
_LEVEL = 1


class UnsupportedCoding(Unsupported):
    """A body compressed in a way that this server does not know."""

    def __init__(self) -> None:
        super().__init__("Unsupported compression type")


class Oversized(InvalidRequest):
    """A body that is larger than it may be once it is decompressed."""

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"the decompressed request body exceeds the maximum allowed input size of {limit} bytes. "
            "Use --http-max-input-size to increase the limit."
        )


def check_coding(content_encoding: str) -> str:
    """The coding of a body, empty for none.

    Raises:
        UnsupportedCoding: it is neither gzip nor deflate, or more than one.
    """
    coding = content_encoding.strip().lower()
    if coding in ("", "identity"):
        return ""
    if coding not in _WINDOWS:
        raise UnsupportedCoding()
    return coding


def decompress(body: bytes, coding: str, limit: int) -> bytes:
    """A body without its coding; stops as soon as there are more than `limit` bytes.

    Raises:
        InvalidRequest: it is not of this coding, or is cut short.
        Oversized: it holds more than `limit` bytes.
    """
    decoder = zlib.decompressobj(_WINDOWS[coding])
    try:
        plain = decoder.decompress(body, limit + 1)
    except zlib.error as error:
        raise InvalidRequest(f"the request body is not {coding}: {error}") from None
    if len(plain) > limit:
        raise Oversized(limit)
    if not decoder.eof or decoder.unused_data:
        raise InvalidRequest(f"the request body is not {coding}: {'something follows it' if decoder.eof else 'it is cut short'}")
    return plain


def compress(body: bytes, coding: str) -> bytes:
    """A body in a coding; quickly rather than well."""
    encoder = zlib.compressobj(_LEVEL, zlib.DEFLATED, _WINDOWS[coding])
    return encoder.compress(body) + encoder.flush()


def wanted_coding(accept_encoding: str) -> str:
    """The coding that an `Accept-Encoding` prefers, the first of equals; empty for none."""
    weights: dict[str, float] = {}
    for entry in accept_encoding.lower().split(","):
        coding, _, parameters = entry.partition(";")
        weights.setdefault(coding.strip(), _weight(parameters))
    others = weights.get("*", 0.0)
    for coding in _WINDOWS:
        weights.setdefault(coding, others)
    known = {coding: weight for coding, weight in weights.items() if coding in _WINDOWS and weight > 0}
    best = max(known, key=lambda coding: known[coding], default="")
    return best if best and known[best] >= weights.get("identity", 0.0) else ""


def _weight(parameters: str) -> float:
    """The q-value; one that is none counts as a refusal."""
    key, _, value = parameters.strip().partition("=")
    if not key:
        return 1.0
    try:
        weight = float(value)
    except ValueError:
        return 0.0
    return weight if key.strip() == "q" and math.isfinite(weight) and 0 <= weight <= 1 else 0.0
