"""Headers of a call that become parameters of its request: those whose name matches a pattern the server is given."""

from __future__ import annotations

import re
from collections.abc import Iterable

from headrace.errors import InvalidRepository, InvalidRequest

SEQUENCE_KEY = "x-headrace-sequence"
"""The header that keeps the requests of a sequence together, where several replicas answer."""
_RESERVED = ("sequence_id", "sequence_start", "sequence_end", "priority", "timeout", "headers", "binary_data_output")


class HeaderForwarding:
    """Takes the headers to forward out of those of a call.

    Args:
        pattern: a regular expression, found anywhere in a header's name; empty forwards nothing.

    Raises:
        InvalidRepository: it is no regular expression.
    """

    def __init__(self, pattern: str = "") -> None:
        try:
            self._pattern = re.compile(pattern) if pattern else None
        except re.error as error:
            raise InvalidRepository(f"header forward pattern '{pattern}' is no regular expression: {error}") from None

    @property
    def is_on(self) -> bool:
        """Whether any header is forwarded at all."""
        return self._pattern is not None

    def parameters(self, headers: Iterable[tuple[str, str | bytes]] | None) -> dict[str, str]:
        """The parameters that a call's headers give its request. Values of a header that comes twice are joined by commas.

        Raises:
            InvalidRequest: one that matches has the name of a parameter with a meaning of its own.
        """
        found: dict[str, str] = {}
        if self._pattern is None:
            return found
        for name, value in headers or ():
            # What ends in -bin is bytes, which no parameter carries.
            if isinstance(value, bytes) or not self._pattern.search(name):
                continue
            if name in _RESERVED or name.startswith("triton_"):
                raise InvalidRequest(f"Header '{name}' is reserved for Triton usage and cannot be forwarded.")
            found[name] = f"{found[name]},{value}" if name in found else value
        return found
