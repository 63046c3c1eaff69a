"""Batches that somebody else runs: the answers of the batch before leave while it is away."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from headrace.backends.base import Batch
from headrace.backends.fake import Gate, Script
from headrace.errors import BackendFailed
from tests.transport.serving import ECHO, Asked, Serve, Server, tensor
from tests.transport.streaming import ended
from tests.waiting import until


class Remote:
    """A model whose one session has batches run elsewhere: each stands at the first gate, is away, and stands at the second."""

    def __init__(self, serve: Serve, config: str) -> None:
        self.sent, self.back = Gate(), Gate()
        self.script = Script(runs_elsewhere=True)
        self.says_away = True
        self.fails: list[int] = []
        """The batches that fail, counted from 1, before they are away."""
        self.server: Server = serve({"m": (config, self.script)})
        self.script.gate, self.script.fail = self.sent, self._away  # once it is warm

    def _away(self, batch: Batch) -> None:
        if len(self.script.batches) in self.fails:
            raise BackendFailed("there is nobody")
        if self.says_away:
            batch.away()
        self.back.enter()

    def ask(self, value: int) -> Asked:
        return Asked(self.server, "m", [tensor("x", np.full((1, 1), value, np.int32))])

    def two(self) -> tuple[Asked, Asked]:
        """Of two requests, the first has been answered, and the second is about to be sent."""
        first = self.ask(1)
        self.sent.wait_for(1)
        second = self.ask(2)
        until(lambda: self.server.waiting("m") == 1)
        self.sent.let()
        self.back.wait_for(1)
        self.back.let()
        self.sent.wait_for(2)
        return first, second

    def is_kept(self) -> bool:
        """Whether nobody's answer has left."""
        return "2 unsettled, 2 running" in repr(self.server.engine.routes.resolve("m").queue)


@pytest.fixture
def remote(request: pytest.FixtureRequest, serve: Serve) -> Iterator[Remote]:
    remote = Remote(serve, getattr(request, "param", ECHO))
    yield remote
    remote.sent.open()
    remote.back.open()


def value_of(asked: Asked) -> int:
    answer = asked.result().as_numpy("y")
    assert answer is not None
    return int(answer[0, 0])


def test_answers_leave_while_the_next_batch_is_away(remote: Remote, transport: str) -> None:
    first, second = remote.two()
    assert remote.is_kept() == (transport == "native"), "the other one keeps none"
    remote.sent.let()
    remote.back.wait_for(2)
    assert value_of(first) == 1  # while the second runs
    remote.back.let()
    assert value_of(second) == 2
    assert ended(remote.server, "m", ANSWERED=2)


def test_of_a_batch_that_never_says_that_it_is_away(remote: Remote) -> None:
    first, second = remote.two()
    remote.says_away = False
    remote.sent.open()
    remote.back.open()
    assert [value_of(first), value_of(second)] == [1, 2]
    assert ended(remote.server, "m", ANSWERED=2)


@pytest.mark.parametrize("waits", [False, True], ids=["nobody waits", "another waits"])
def test_of_a_batch_that_fails_before_it_is_away(remote: Remote, waits: bool) -> None:
    """Nobody's answer is kept longer than for one batch."""
    first, second = remote.two()
    remote.fails = [2]
    third = remote.ask(3) if waits else None
    until(lambda: remote.server.waiting("m") == int(waits))
    remote.sent.let()
    assert value_of(first) == 1
    with pytest.raises(InferenceServerException, match="there is nobody"):
        second.result()
    if third is not None:
        remote.sent.open()
        remote.back.open()
        assert value_of(third) == 3
    assert ended(remote.server, "m", ANSWERED=1 + waits, FAILED=1)


def test_of_a_batch_whose_client_gives_up(remote: Remote) -> None:
    first, second = remote.two()
    third = remote.ask(3)
    until(lambda: remote.server.waiting("m") == 1)
    for asked in (second, third):
        asked.call.cancel()
        with pytest.raises(InferenceServerException):
            asked.result()
    until(lambda: remote.server.waiting("m") == 0)  # so the server has heard of the one before, too
    remote.sent.open()
    remote.back.open()
    assert value_of(first) == 1
    assert ended(remote.server, "m", ANSWERED=1, CANCELLED=2)


@pytest.mark.parametrize("remote", [ECHO.replace("{}", "{ preserve_ordering: true }")], indirect=True)
def test_in_order_nothing_is_kept(remote: Remote) -> None:
    """A batch is over when it is answered, and before that no other may begin."""
    first, second = remote.two()
    assert value_of(first) == 1  # while the second has not been sent
    remote.sent.open()
    remote.back.open()
    assert value_of(second) == 2
