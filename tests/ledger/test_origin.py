from __future__ import annotations

import pytest

from headrace.protocol.origin import GIVEN, MALFORMED, origin_of, peer_of_grpc, peer_of_host, pseudonym
from headrace.request import Origin

GOOD = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def test_a_trace_is_taken_over() -> None:
    assert origin_of([("traceparent", GOOD)], 7) == Origin(
        7, 0x4BF92F3577B34DA6, 0xA3CE929D0E0E4736, 0x00F067AA0BA902B7, trace_flags=1, context=GIVEN
    )
    later = GOOD.replace("00-", "cc-", 1) + "-what-comes"
    assert origin_of([("traceparent", later)], 7).context == GIVEN


@pytest.mark.parametrize(
    "wrong",
    ["", GOOD[:-3], GOOD.replace("00-", "ff-", 1), GOOD.upper(), GOOD + "x", GOOD.replace("f067aa0ba902b7", "0" * 14),
     "00-" + "0" * 32 + "-00f067aa0ba902b7-01", GOOD + "\n"],
)  # fmt: skip
def test_what_is_malformed_is_ignored_and_told(wrong: str) -> None:
    assert origin_of([("traceparent", wrong)], 7) == Origin(7, context=MALFORMED)


def test_two_traces_are_none() -> None:
    assert origin_of([("traceparent", GOOD), ("traceparent", GOOD)], 7).context == MALFORMED


def test_a_client_is_who_it_says_or_where_it_is() -> None:
    assert origin_of([("x-headrace-client", "till-4")], 7).client == pseudonym("till-4") == 0x940C4A89C2A4E4FD
    assert origin_of(None, 7) == Origin(7)
    here = pseudonym("127.0.0.1")
    assert (
        peer_of_grpc("ipv4:127.0.0.1:50051") == peer_of_grpc("ipv6:%5B::ffff:127.0.0.1%5D:1") == peer_of_host("127.0.0.1") == here
    )
    assert peer_of_grpc("ipv6:%5B2001:db8::0:1%5D:1") == peer_of_host("2001:db8::1") == pseudonym("2001:db8::1")
    assert peer_of_grpc("unix:/run/x.sock") == peer_of_grpc("unix:") == peer_of_host("") == pseudonym("unix")
