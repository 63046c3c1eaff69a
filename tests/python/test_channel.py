"""What two processes say to each other: messages over a socket."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from headrace.backends.channel import Mapped, Regions, Stack, lay_out, look, receive, send, write

Ends = tuple[socket.socket, socket.socket]


@pytest.fixture
def ends() -> Iterator[Ends]:
    """Both ends of a way."""
    here, there = socket.socketpair(type=socket.SOCK_SEQPACKET)
    with here, there:
        yield here, there


def test_a_message_arrives_with_its_numbers_and_descriptors(ends: Ends) -> None:
    send(ends[0], {"text": "é" * 10_000, "none": None}, (1 << 40, 2, 3), [0])
    message, (descriptor,) = receive(ends[1])
    os.close(descriptor)
    assert message == {"text": "é" * 10_000, "none": None, "numbers": [1 << 40, 2, 3]}
    send(ends[0], {})
    assert receive(ends[1]) == ({"numbers": [0, 0, 0]}, [])


def test_messages_that_repeat_are_told_apart(ends: Ends) -> None:
    said: list[dict[str, Any]] = [
        {"names": ("y",), "places": (("FP32", (rows, 4), 0),), "kept": kept} for rows in (1, 2, 1) for kept in (False, True)
    ]
    for number, message in enumerate(said):
        send(ends[0], message, (number, 0, 0), repeats=True)
    for number, message in enumerate(said):
        heard, _ = receive(ends[1])
        assert heard["numbers"] == [number, 0, 0]
        assert (heard["places"][0][1], heard["kept"]) == ([*message["places"][0][1]], message["kept"])
        heard["kept"] = "changed"  # which is nobody else's business


def test_a_message_that_repeats_tells_of_regions_when_there_are_new_ones(ends: Ends) -> None:
    regions, mapped = Regions(), Mapped()
    for _ in range(2):
        region = regions.take(1)
        region.memory()[0] = 7
        regions.send(ends[0], {"do": "run"}, (region.number, 0, 0), repeats=True)
        message, descriptors = receive(ends[1])
        mapped.learn(message, descriptors)
        assert message["do"] == "run"
        assert mapped.readable(message["numbers"][0])[0] == 7
        regions.give_back(region)


def test_arrays_of_a_stack_are_put_together_where_they_are_written() -> None:
    arrays = [np.arange(6, dtype=np.int32).reshape(2, 3), np.full((1, 3), 9, np.int32)]
    places, nbytes = lay_out([Stack(arrays, "INT32", (3, 3)), np.float32([1.5])])
    memory = np.zeros(nbytes, np.uint8)
    write(memory, [Stack(arrays, "INT32", (3, 3)), np.float32([1.5])], places)
    stack, alone = (look(memory, place) for place in places)
    assert np.array_equal(stack, np.concatenate(arrays))  # type: ignore[arg-type]  # neither is text
    assert np.array_equal(alone, [1.5])  # type: ignore[arg-type]
