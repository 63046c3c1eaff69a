"""The way of the process of a model to its server: what its threads ask, and what they are told.

Regions of memory go both ways. Those of the server hold the inputs of batches and take their outputs, and bring answers, which
are copied and given back with the next message. Those made here hold what is asked, and are used again once that is answered.
"""

from __future__ import annotations

import queue
import socket
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from headrace.backends.channel import Mapped, Memory, Place, Regions, lay_out, look, receive, write
from headrace.backends.triton_python.talk import Listening, Message, Over
from headrace.tensor import BytesTensor, Tensor


class Call:
    """Something that was asked, until it is answered."""

    __slots__ = ("answer", "number")

    def __init__(self, number: int) -> None:
        self.number = number
        self.answer: Message | None = None

    def is_answered(self) -> bool:
        """Whether it is."""
        return self.answer is not None


class Link:
    """The socket of a process, for all of its threads."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.orders: deque[Message] = deque()
        """What to execute, and whether to close."""
        self.lost: queue.SimpleQueue[Message] = queue.SimpleQueue()
        """What was dropped that the server still waits for, or keeps: filled by destructors, which must not wait."""
        self.is_executing = False
        """Whether the model may call others."""
        self.executes = 0
        """The number of the last batch."""
        self._mapped, self._regions = Mapped(), Regions()
        self._sending = threading.Lock()
        """Guards what follows, and the regions."""
        self._calls: dict[int, Call] = {}
        self._asked = 0
        self._read: list[int] = []
        """Regions of answers that were copied."""
        self._listening = Listening(self._receive, self._hear)
        self._reporter: threading.Thread | None = None

    def next_order(self) -> Message:
        """What to do next.

        Raises:
            Over: nothing, the server is gone.
        """
        self._listening.wait(lambda: self.orders)
        return self.orders.popleft()

    def region(self, number: int) -> Memory:
        """A region of the server, to read from or to write into."""
        return self._mapped.writable(number)

    def keep(self, nbytes: int) -> tuple[int, Memory]:
        """Memory that the server can read from the next message on, and its number. It is not used for anything else."""
        with self._sending:
            region = self._regions.take(nbytes)
        return region.number, region.memory()

    def send(self, message: Message, number: int = 0, *, repeats: bool = False) -> None:
        """Tell the server something, of the batch of this number. See `channel.send`.

        Raises:
            OSError: it is gone.
        """
        with self._sending:
            self._send(message, number, repeats=repeats)

    def ask(self, what: str, tensors: Mapping[str, Tensor] | None = None, **more: Any) -> Message:
        """Ask the server something, and wait for what it says.

        Raises:
            Over, OSError: it is gone.
        """
        with self._sending:
            self._asked += 1
            call = self._calls[self._asked] = Call(self._asked)
            message = {"do": "ask", "what": what, "call": call.number, **more}
            region = None
            if tensors is not None:
                places, nbytes = lay_out(list(tensors.values()))
                region = self._regions.take(nbytes)
                write(region.memory(), list(tensors.values()), places)
                message |= {"names": list(tensors), "places": places, "from": region.number}
            self._send(message)
        self._listening.wait(call.is_answered)
        with self._sending:
            del self._calls[call.number]
            if region is not None:
                self._regions.give_back(region)
        assert call.answer is not None
        return call.answer

    def tensors(self, answer: Message) -> dict[str, Tensor]:
        """A copy of the tensors of an answer."""
        places: Sequence[Place] = answer.get("places", ())
        if not places:
            return {}
        memory = self.region(answer["from"])
        copies = [copied(look(memory, place)) for place in places]
        with self._sending:
            self._read.append(answer["from"])
        return dict(zip(answer["names"], copies, strict=True))

    def report_lost(self) -> None:
        """From now on, tell the server at once what was dropped."""
        if self._reporter is None:
            self._reporter = threading.Thread(target=self._report, name="headrace-lost", daemon=True)
            self._reporter.start()

    def _report(self) -> None:
        while True:
            message = self.lost.get()
            try:
                self.send(message)
            except OSError:
                return

    def _send(self, message: Message, number: int = 0, *, repeats: bool = False) -> None:
        if self._read:
            message["read"], self._read, repeats = self._read, [], False
        self._regions.send(self._sock, message, (number, 0, 0), repeats=repeats)

    def _receive(self, seconds: float | None) -> tuple[Message, list[int]]:
        try:
            return receive(self._sock)
        except (EOFError, OSError) as error:
            raise Over("the server is gone") from error

    def _hear(self, message: Message, descriptors: list[int]) -> None:
        self._mapped.learn(message, descriptors)
        if message["do"] != "answer":
            self.orders.append(message)
        elif (call := self._calls.get(message["call"])) is not None:
            call.answer = message


def copied(tensor: Tensor) -> Tensor:
    """The tensor, in memory of its own."""
    if isinstance(tensor, BytesTensor):
        return BytesTensor(tensor.shape, tensor.offsets.copy(), tensor.data.copy())
    return np.array(tensor)
