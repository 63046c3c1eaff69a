"""What a replica says of itself."""

from __future__ import annotations

import pytest

from headrace.cluster.member import reachable
from headrace.errors import InvalidRepository


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1:5", "127.0.0.1:5"),
        ("0.0.0.0:5", "127.0.0.1:5"),
        ("[::]:5", "[::1]:5"),
        ("[0:0:0:0:0:0:0:1]:5", "[::1]:5"),
    ],
)
def test_addresses_are_numbers(address: str, expected: str) -> None:
    assert reachable(address) == expected


def test_a_name_is_looked_up() -> None:
    assert reachable("localhost:5") in ("127.0.0.1:5", "[::1]:5")
    with pytest.raises(InvalidRepository, match=r"balancers cannot reach nowhere\.invalid:5"):
        reachable("nowhere.invalid:5")
