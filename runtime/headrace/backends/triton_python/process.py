"""The server's side of the process of a model: what is asked of it, and what it asks.

Whoever waits for a batch reads the socket itself. Only once a request is answered later than its call of `execute`, a thread
listens all the time.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from headrace.backends.base import Batch, Inner, Outputs, Piece
from headrace.backends.channel import Mapped, Region, Regions, lay_out, look, send, write
from headrace.backends.joining import trace_of
from headrace.backends.process import Process, ProcessGone
from headrace.backends.triton_python.api import LOG_MARK
from headrace.backends.triton_python.calls import Calls
from headrace.backends.triton_python.counted import Counted
from headrace.backends.triton_python.link import copied
from headrace.backends.triton_python.places import Places
from headrace.backends.triton_python.talk import Late, Listening, Message, Over
from headrace.clock import SECOND, MonotonicClock
from headrace.errors import BackendFailed, HeadraceError, InvalidRepository
from headrace.request import NOWHERE, Head, Origin
from headrace.tensor import Tensor

_LEVELS = {"I": logging.INFO, "W": logging.WARNING, "E": logging.ERROR, "V": logging.DEBUG}
_GRACE_SECONDS = 1.0
_OF_A_CALL = 0.9
"""How much of the time that a batch has left a call of another model may take: the model shall learn that it was too long."""


class ModelProcess(Process):
    """One process that runs a model.

    Args:
        name: of the model.
        instance: which of its instances this is.
        program: see `Process`.
        environment: see `Process`.
        inner: the way into the engine, for the calls of the model.
        counted: the metrics of the model's own.
        seconds: how long a batch may take, and how long a request may wait for its next response.

    Raises:
        OSError: the system gives no process, or no descriptors.
    """

    def __init__(
        self,
        name: str,
        instance: str,
        program: list[str],
        environment: Mapping[str, str],
        inner: Inner,
        counted: Counted,
        seconds: float,
    ) -> None:
        self.instance, self._counted = instance, counted
        self._memory, self._read = Regions(), Mapped()
        self._sending = threading.Lock()
        """Guards the memory, and what is sent."""
        self._lent: dict[int, Region] = {}
        """What answers are in, until they are read."""
        self._expected, self._seconds = 0, seconds
        self._executions: dict[int, Places] = {}
        self._number = 0
        self._ready: Message | None = None
        self._joins = False
        """Whether what runs there may trace."""
        self._calls = Calls(inner, self._tell)
        self._inner = inner
        self._listening = Listening(self._receive, self._hear)
        self._listener: threading.Thread | None = None
        super().__init__("model", name, program, environment)

    def load(self, order: Message, seconds: float) -> Mapping[str, Any] | None:
        """Let it import the model; the configuration that the model has completed, if it has.

        Raises:
            InvalidRepository: it cannot, or did not in this time.
        """
        try:
            send(self._socket, order)
            answer, _ = self.next_message(seconds)
        except (ProcessGone, OSError) as error:
            raise self._unloadable(self.how_gone(error)) from None
        if "error" in answer:
            raise InvalidRepository(f"model '{self.name}' could not be loaded: {answer['error']}")
        return answer["config"]

    def initialize(self, order: Message, seconds: float) -> None:
        """Let it initialize the model.

        Raises:
            InvalidRepository: it cannot, or did not in this time.
        """
        try:
            with self._sending:
                self._memory.send(self._socket, {**order, "do": "initialize"})
            self._wait(lambda: self._ready, seconds)
        except (ProcessGone, OSError) as error:
            raise self._unloadable(self.how_gone(error)) from None
        assert self._ready is not None
        if "error" in self._ready:
            raise InvalidRepository(f"model '{self.name}' could not be initialized: {self._ready['error']}")
        self._joins = self._ready["joins"]

    def execute(self, batch: Batch, heads: Sequence[Head], order: Message, *, is_decoupled: bool) -> Outputs | list[Piece] | None:
        """Let it run a batch. See `Session.run`.

        Args:
            batch: what to run.
            heads: those of the batch.
            order: what to say of its requests.
            is_decoupled: whether the model is.

        Raises:
            ProcessGone: it ended, or took too long.
            HeadraceError: the model raised.
        """
        with self._in_use:
            if self._is_closed:
                raise ProcessGone(self._why)
            try:
                return self._execute(batch, heads, order, is_decoupled)
            except BrokenPipeError as error:
                raise ProcessGone(self.how_gone(error)) from None

    def _execute(self, batch: Batch, heads: Sequence[Head], order: Message, is_decoupled: bool) -> Outputs | list[Piece] | None:
        tensors = batch.tensors()
        values = list(tensors.values())
        laid, nbytes = lay_out(values)
        number = self._number = self._number + 1
        until = MonotonicClock.now() + int(self._seconds * SECOND)
        trace = trace_of(heads) if self._joins else ""
        repeats = not (trace or order["odd"] or any(order["ids"]))
        message = {"do": "execute", "inputs": tuple(zip(tensors, laid, strict=True)), **order}
        if trace:
            message["trace"] = trace
        with self._sending:
            given, taken = self._memory.take(nbytes), self._memory.take(self._expected)
            write(given.memory(), values, laid)
            execution = self._executions[number] = Places(batch, heads, self.instance, until, is_decoupled=is_decoupled)
            self._memory.send(self._socket, message, (number, given.number, taken.number), repeats=repeats)
            execution.memory = self._memory.lend(taken)  # while it runs
        batch.away()
        self._wait(lambda: execution.told, self._seconds)
        told = execution.told
        assert told is not None
        self._joins = told["joins"]
        with self._sending:
            if told["kept"]:
                self._memory.drop(given)
            else:
                self._memory.give_back(given)
        if "ends" in told:
            self.end(_GRACE_SECONDS)  # the next batch is for the next process
        if "open" in told and execution.is_waited_for:
            self._wait(lambda: not execution.open, self._seconds)
        memory, execution.memory = execution.memory, None
        assert memory is not None
        self._expected = max(self._expected, told.get("nbytes", 0))
        result = execution.result([look(memory, place) for place in told.get("places", ())])
        if execution.is_parted and execution.open:
            self._listen()
        else:
            self._executions.pop(number, None)
        return result

    def close(self) -> None:
        """See `Process.close`. Requests that still wait for a response fail."""
        why = f"the process of model '{self.name}' {self._why}; it is being restarted"
        self._listening.end(Over(self._why))
        for execution in list(self._executions.values()):  # the thread of a batch may be about to forget it
            execution.fail_all(BackendFailed(why))
        self._calls.close()
        with self._in_use:  # no batch starts the thread any more
            self._is_closed = True
        if self._listener is not None:
            self._listener.join()
        self._counted.ended(self)
        super().close()

    def heard(self, line: str) -> None:
        """See `Process.heard`; lines of `pb_utils.Logger` have a level."""
        if not line.startswith(LOG_MARK):
            super().heard(line)
            return
        self.log.log(_LEVELS.get(line[1:2], logging.INFO), "%s", line[2:], extra={self.kind: self.name})

    # What it says.

    def _receive(self, seconds: float | None) -> tuple[Message, list[int]]:
        try:
            return self.listen(seconds)
        except TimeoutError:
            raise Late from None
        except ProcessGone as gone:
            raise Over(str(gone)) from None

    def _wait(self, is_done: Any, seconds: float) -> None:
        try:
            self._listening.wait(is_done, seconds)
        except Over as over:
            raise ProcessGone(str(over)) from None
        except Late:
            raise self.late(seconds) from None

    def _hear(self, message: Message, descriptors: list[int]) -> None:
        self._read.learn(message, descriptors)
        if "read" in message:
            with self._sending:
                for number in message["read"]:
                    self._memory.give_back(self._lent.pop(number))
        match message["do"]:
            case "ready":
                self._ready = message
            case "executed":
                number = message["numbers"][0]
                self._executions[number].end(message)
                self._forget_if_answered(number)
            case "lost":
                if (execution := self._executions.get(message["id"])) is not None:
                    execution.lose(message["index"], self.name)
                    self._forget_if_answered(message["id"])
            case "unwanted":
                self._calls.drop(message["stream"])
            case _:
                self._answer(message)

    def _answer(self, message: Message) -> None:
        """Something that a thread of the model waits for."""
        call = message["call"]
        match message["what"]:
            case "respond":
                self._respond(message)
            case "infer":
                self._calls.begin(message, self._tensors(message), self._deadline(), self._origin(*message["for"]))
            case "next":
                self._calls.next(message)
            case "cancel":
                self._calls.cancel(message)
            case "room":
                with self._sending:
                    region = self._memory.take(message["nbytes"])
                    self._executions[message["id"]].memory = self._memory.lend(region)
                    self._memory.send(self._socket, {"do": "answer", "call": call, "to": region.number})
            case "is_cancelled":
                execution = self._executions.get(message["id"])
                self._tell(call, {"is": execution is None or execution.is_cancelled(message["index"])}, {})
            case "metric":
                at = message["at"]
                memory = self._read.readable(message["in"])[at : at + message["nbytes"]]
                self._tell(call, {"error": self._counted.add(self, message, memory)}, {})
            case "is_ready":
                version = message["version"] or "0"
                self._tell(call, {"is": version.isdecimal() and self._inner.is_ready(message["model"], int(version))}, {})
            case _:
                self._calls.manage(message)

    def _respond(self, message: Message) -> None:
        execution = self._executions.get(message["id"])
        if execution is not None:
            execution.respond(message, self._tensors(message), MonotonicClock.now() + int(self._seconds * SECOND))
            self._forget_if_answered(message["id"])
        self._tell(message["call"], {}, {})

    def _forget_if_answered(self, number: int) -> None:
        execution = self._executions.get(number)
        if execution is not None and execution.is_parted and execution.told is not None and not execution.open:
            del self._executions[number]

    def _tensors(self, message: Message) -> dict[str, Tensor]:
        """A copy of what came with a message: its memory is used again when that is answered."""
        if "from" not in message:
            return {}
        memory = self._read.readable(message["from"])
        return {name: copied(look(memory, place)) for name, place in zip(message["names"], message["places"], strict=True)}

    def _tell(self, call: int, message: Message, tensors: Mapping[str, Tensor]) -> None:
        """Answer a thread of the model that waits. Not if the process is gone: then nobody does."""
        message = {**message, "do": "answer", "call": call}
        with self._sending:
            try:
                if tensors:
                    values = list(tensors.values())
                    laid, nbytes = lay_out(values)
                    region = self._memory.take(nbytes)
                    write(region.memory(), values, laid)
                    self._lent[region.number] = region
                    message |= {"names": list(tensors), "places": laid, "from": region.number}
                self._memory.send(self._socket, message)
            except (OSError, HeadraceError):
                self.log.debug("an answer found nobody", exc_info=True)

    def _origin(self, number: int, place: int | None) -> Origin:
        """Where a call comes from: from a request of a batch that is under way."""
        execution = self._executions.get(number)
        return NOWHERE if execution is None else execution.origin(place)

    def _deadline(self) -> int:
        """Until when a call of another model must be answered, in ns: within the time of the batches that are under way."""
        now = MonotonicClock.now()
        until = max((execution.until for execution in list(self._executions.values())), default=now + int(self._seconds * SECOND))
        return now + int(_OF_A_CALL * (until - now))

    # Responses that come later than their call of `execute`.

    def _listen(self) -> None:
        if self._listener is None:
            self._listener = threading.Thread(target=self._listen_on, name=f"{self.name} responses", daemon=True)
            self._listener.start()

    def _listen_on(self) -> None:
        while True:
            due = min((execution.until for execution in list(self._executions.values())), default=None)
            left = self._seconds if due is None else max(0.001, (due - MonotonicClock.now()) / SECOND)
            try:
                self._listening.wait(lambda: False, min(left, self._seconds))
            except Over:
                return
            except Late:
                self._expire()
            except Exception:
                self.log.exception("what model '%s' said was not understood; this is a bug in Headrace", self.name)

    def _expire(self) -> None:
        now = MonotonicClock.now()
        for number, execution in list(self._executions.items()):
            if execution.told is not None and execution.until <= now:
                execution.fail_all(
                    BackendFailed(
                        f"model '{self.name}' sent neither a response nor TRITONSERVER_RESPONSE_COMPLETE_FINAL within "
                        f"{self._seconds:g} s"
                    )
                )
                self._forget_if_answered(number)

    def _unloadable(self, why: str) -> InvalidRepository:
        return InvalidRepository(f"the process of model '{self.name}' {why}, while it was loading; its last lines are in the log")
