"""The border between Headrace's policy (Python) and its mechanism (Rust). Only plain types and buffers cross it.

Instants and durations are ns of CLOCK_MONOTONIC. Codes, outcomes, reasons and record layouts are those of `headrace.errors`,
`headrace.ledger` and `headrace.scheduling.plan`. Everything may be called from any thread.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, final

from typing_extensions import Buffer as BufferLike

__version__: str
PROFILE: str
"""`release`, or `checked`: with assertions, as the tests build it. Measure `release` only."""

_Input: TypeAlias = tuple[str, str, Sequence[int], BufferLike]
"""Of a request of this process: name, datatype, shape, contiguous bytes as on the wire (BYTES length-prefixed)."""
_Place: TypeAlias = tuple[str, int, int]
"""In shared memory of another server: region, offset, bytes."""
_Asked: TypeAlias = tuple[str, str, Sequence[int], BufferLike | None, _Place | None]
"""Of a request to another server: name, datatype, shape, contiguous bytes as on the wire, and where they are instead."""
_Origin: TypeAlias = tuple[int, int, int, int, int, int, int, int]
_Head: TypeAlias = tuple[
    int, str, dict[str, Any], int | None, int, int, int, _Origin, tuple[int | str, bool, bool] | None, list[int]
]
_Output: TypeAlias = tuple[int, Sequence[int], BufferLike, BufferLike | None]
"""Of a model: place in the spec, shape as clients see it, contiguous bytes; for BYTES also int64 offsets into them."""
_Gathered: TypeAlias = tuple[int, list[int], Buffer, Buffer | None]
"""Of a batch: place in the spec, shape, bytes; for BYTES also int64 offsets into them."""
_News: TypeAlias = tuple[list[tuple[int, int, str, str]], list[tuple[int, int]], list[tuple[str, str]], int, bool]
"""Errors for local entries (queue id, number, class of the error, message), entries whose clients have gone while their batch was
in parts (queue id, number), log lines (level, text), how many lines were not kept, whether the ledger fills and should be
drained."""

class KernelError(Exception):
    """A request was not admitted, or something broke.

    `args` are the class in `headrace.errors`, the message, and after how many ns to try again, or None.
    """

class CallError(Exception):
    """A call was not answered well.

    `args` are what became of it, gRPC's code (0 where there is none), and words. `unsent`: there is no connection, or the server
    said that it did not look at it, so that nothing has run; `lost`: the connection broke, and what was sent may have run;
    `late`: there was no answer in time; `answered`: the server's own error.
    """

@final
class Kernel:
    """What the queues and servers of one engine share: routes, regions, records, and the thread that expires.

    Args:
        now: for tests: the instant that is the present until `set_now`. Then nothing expires by itself.
    """

    def __new__(cls, now: int | None = None) -> Kernel: ...
    def open_queue(self, spec: Any, model_number: int, above: int, limits: Any) -> Queue:
        """A queue for a `headrace.model.ModelSpec` with `headrace.scheduling.admission.Limits`.

        Records name `model_number`, and number its requests and batches from `above` + 1.
        """

    def publish(self, model: str, versions: Mapping[int, Queue | None] | None) -> None:
        """Replace the routes of a model. None for a version: it is not ready; None for all: forget the model."""

    def close_routes(self) -> None:
        """Refuse every request of every server from now on."""

    def map_region(self, name: str, key: str, offset: int, byte_size: int, descriptor: int) -> None:
        """Let requests use a region of shared memory; the descriptor is duplicated."""

    def unmap_region(self, name: str) -> None:
        """Forget a region. Requests on their way keep theirs."""

    def next_news(self, *, wait: bool = True) -> _News | None:
        """Wait for something that Python has to do; None once the kernel is closed, or, not waiting, when there is nothing."""

    def take_records(self) -> tuple[bytes, bytes]:
        """All unread records: packed `ledger.REQUEST`, packed `ledger.BATCH`."""

    def share_records(self, requests: int, batches: int) -> None:
        """Write records into the rings of two files from now on (`headrace.ledger.ring`), which other processes may map.

        Args:
            requests: descriptor of the file for request records; it stays the caller's.
            batches: likewise for batch records.

        Raises:
            OSError: one cannot be mapped, or is no ring of such records.
        """

    def written(self) -> tuple[int, int]:
        """How many records there have been: of requests, of batches."""

    def set_now(self, now: int) -> None:
        """Move the clock of a kernel that was made with one.

        Raises:
            ValueError: it goes by the real clock.
        """

    def start_server(
        self,
        descriptor: int,
        *,
        is_unix: bool,
        methods: Sequence[str],
        dialogues: Sequence[str],
        header_pattern: str,
        window: tuple[int, int, int],
    ) -> Server:
        """Serve gRPC on a listening socket, which belongs to the server from now on, whatever happens.

        Args:
            descriptor: of the socket.
            is_unix: whether it is a socket file's.
            methods: unary calls that are handed to Python, by their full names.
            dialogues: calls with a stream each way, in which every message gets one answer from Python.
            header_pattern: which headers become parameters; see `check_pattern`.
            window: of each stream: requests on their way, unsent bytes, unsent bytes of answers that are not final.

        Raises:
            ValueError: the pattern is not understood.
            OSError: the machine has no thread or no poller left.
        """

    def close(self) -> None:
        """End the threads of the kernel, after its servers and queues."""

@final
class Queue:
    """What waits for one loaded version. See `headrace.scheduling.base.Queue`."""

    @property
    def id(self) -> int:
        """Its number in the kernel."""

    def push(self, request: Any, inputs: Sequence[_Input], registry: dict[int, Any], entry: Any) -> int:
        """Admit a `headrace.request.Request` of this process; its inputs are copied.

        `registry[number]` is `entry` from the moment on in which anybody can see the request. Nobody is woken: see `wake`.

        Raises:
            KernelError: it is invalid or refused.
        """

    def wake(self) -> None:
        """Let an idle instance look at what was pushed."""

    def cancel(self, number: int) -> None:
        """Nobody wants the answer of this local entry any more."""

    def settle(self, number: int, outcome: int, code: int, scattered: int, sent: int, bytes_out: int) -> bool:
        """The caller of a local entry has its answer, which was made at `scattered` (ns, 0 where no batch gave it).

        False if it was settled before.
        """

    def turn(self, until: int | None, keeps: bool) -> tuple[bytes, bool, int, int, int] | None:
        """Write what this thread has replied, then wait for something to plan.

        With `keeps`, where there is something to plan already and no `until`, what it has replied is left to `Batch.away` of the
        batch that is taken, or to whatever that is answered with.

        Returns:
            The view (packed `plan.VIEW`), whether nobody else will come, when the first of the instances that run is idle (ns, 0
            if none runs), when what this thread had replied was written (ns, 0 if nothing was left to write, or it is not), and
            when what was left at its last turn was (ns, 0 if nothing was); None when the queue is closed and empty.
        """

    def take(self, take: Sequence[int], drop: Sequence[int], instance: int, reason: int, predicted: int) -> Batch | None:
        """Carry out a plan and end the turn; None when nothing of it was left to take. `predicted` is in ns, 0 if unknown."""

    def abandon_turn(self) -> None:
        """End a turn that no plan came out of."""

    def set_limits(self, limits: Any) -> None:
        """Change the bounds, from the next push on."""

    def depth(self) -> tuple[int, int, int]:
        """Requests, rows and bytes that wait."""

    def counts(self) -> tuple[int, int, int, bool]:
        """Requests that wait, requests that are not settled, batches that run, whether the queue is closed."""

    def wait_settled(self, until: int) -> bool:
        """Wait until every pushed entry is settled, or `until`; says whether it is so."""

    def close(self) -> None:
        """Take no more. What is queued is still served."""

    def abandon(self) -> None:
        """Take no more, and refuse what waits."""

    def expire(self, now: int) -> int | None:
        """Answer what is overdue; when to come back."""

@final
class Batch:
    """Entries that run together. Requests are counted from 0, in the order of their rows."""

    @property
    def number(self) -> int:
        """Its number in the queue."""

    @property
    def offsets(self) -> list[int]:
        """Where the rows of each request begin; one more than there are requests."""

    @property
    def lengths(self) -> tuple[int, list[int]]:
        """What the inputs are padded to, 0 without padding, and the length of each request."""

    @property
    def locals(self) -> list[tuple[int, int]]:
        """Requests that came from this process: place, number in the queue."""

    @property
    def is_wanted(self) -> bool:
        """Whether a request is open that was not cancelled and whose deadline has not passed."""

    @property
    def is_open(self) -> bool:
        """Whether a request still waits for an answer."""

    def wanted(self, index: int | None = None) -> list[int]:
        """The outputs somebody asked for, or the request at `index`, by their places in the spec."""

    def gather(self, index: int | None = None) -> list[_Gathered]:
        """Copy the inputs of all requests, or of one, into memory aligned to 64 bytes.

        Raises:
            KernelError: it panicked.
        """

    def reply(self, outputs: Sequence[_Output]) -> list[int]:
        """Answer every open request with its rows. Small answers leave with the thread's next `turn` or later, others at once.

        Returns:
            The places of local requests: their callers have to be told, and settle.
        """

    def send(self, index: int, outputs: Sequence[_Output], is_final: bool) -> bool:
        """One answer to one request. Whether it is a local one.

        Raises:
            KernelError: it was answered after its final answer.
        """

    def fail(self, code: int, message: str, outcome: int, index: int | None = None) -> list[int]:
        """An error to one request, or to all that are open. The places of local ones."""

    def part(self) -> list[tuple[int, Batch]]:
        """Each request as a batch of its own, with its number in the queue; this one is over with that.

        What is sent for a part leaves at once. Whose client cancels, or has done so before, is in the news of the kernel.
        """

    def away(self) -> None:
        """Somebody else runs it, and this thread has time: what it has replied to the batch before is written."""

    def finish(self) -> None:
        """Everything is answered; what is not, fails. Writes the record of the batch."""

    def heads(self) -> list[_Head]:
        """Of each request what goes along when its rows are sent on.

        Number, id, parameters, deadline, timeout in ns, priority, when it was received, its `headrace.request.Origin`, its
        `headrace.request.Sequence` if it has one, and the outputs it gets by their places in the spec.
        """

    def request(self, index: int) -> dict[str, Any]:
        """A request field by field, as `headrace.request.Request` has them.

        Inputs are (name, datatype, shape, bytes), classes (output, count), a sequence (id, start, end).
        """

@final
class Buffer:
    """Memory of a batch: bytes, writable, aligned to 64. It is used again when the last view of it is gone."""

    def __buffer__(self, flags: int, /) -> memoryview: ...

@final
class Server:
    """Serves gRPC from its start to `close`."""

    def next_call(self) -> Call | None:
        """Wait for a control call; None once the server has ended."""

    def stop_accepting(self) -> None:
        """Refuse new requests; those that run go on."""

    def close(self, deadline: int) -> None:
        """Say goodbye to every connection, wait until `deadline` for the calls that run, then end the rest. Once."""

@final
class Call:
    """A control call. If it is dropped without an answer, its client is told that something broke."""

    @property
    def method(self) -> str:
        """The full name of the method."""

    @property
    def payload(self) -> bytes:
        """The message.

        Raises:
            RuntimeError: the call is answered.
        """

    def answer(self, payload: bytes) -> None:
        """Answer it. Only the first answer counts."""

    def fail(self, code: int, message: str) -> None:
        """Fail it."""

@final
class Channel:
    """A gRPC server, and one connection to it, which is opened when it is needed, and again when it was lost.

    Whoever calls does all the reading and writing in the own thread, without the interpreter; one thread at a time.

    Args:
        address: `HOST:PORT` or `unix:PATH`; without TLS.
        patience: how long a connection may take, in ns.

    Raises:
        OSError: the machine has no poller left.
    """

    def __new__(cls, address: str, patience: int) -> Channel: ...
    def call(self, path: str, payload: bytes, until: int) -> bytes:
        """The answer of `/package.Service/Method`, which is waited for until that instant.

        Raises:
            CallError: there is none.
            KernelError: the message is too large.
        """

    def infer(
        self,
        model: str,
        version: str,
        id: str,
        parameters: Sequence[tuple[str, bool | int | float | str]],
        inputs: Sequence[_Asked],
        outputs: Sequence[tuple[str, _Place | None]],
        until: int,
        metadata: Sequence[tuple[str, str]],
    ) -> tuple[str, list[tuple[str, str, list[int]]], list[Buffer]]:
        """`ModelInfer`: the version that answered, its outputs (name, datatype, shape), and their raw contents, aligned to 64.

        Raises as `call`.
        """

    def connect(self, until: int) -> bool:
        """Try to connect until that instant; whether there is a connection."""

    def close(self) -> None:
        """Let go of the connection."""

def check_pattern(pattern: str) -> str | None:
    """Why the server does not understand a pattern for headers; None if it does."""

@final
class Load:
    """A load on a V2 server, sent by a thread of its own until everything is sent and answered. Dropping it ends it.

    Args:
        address: `HOST:PORT` or `unix:PATH`.
        messages: packed `ModelInferRequest`s.
        picks: packed uint32: which message is sent when, over and over.
        due: packed int64, in order: when requests are due, in ns after the start. Without it, `clients` ask in a closed loop for
            `lasts` ns.
        channels: connections.
        deadline: how long after it was due the client gives a request up, in ns; 0 for never.
        most: how many requests may be on their way; what is due above that is not sent.
        patience: how long to wait for answers in the end, in ns.

    Raises:
        ConnectionError: nobody is there.
        ValueError: something is not packed as it should be.
    """

    def __new__(
        cls,
        address: str,
        messages: Sequence[bytes],
        picks: bytes,
        *,
        due: bytes | None = None,
        clients: int = 0,
        lasts: int = 0,
        channels: int = 1,
        deadline: int = 0,
        most: int,
        patience: int,
    ) -> Load: ...
    def take(self) -> bytes:
        """The samples since the last call: packed `headrace.load.analysis.SAMPLE`."""

    @property
    def cpu(self) -> int:
        """CPU time of the sending thread so far, in ns."""

    @property
    def is_over(self) -> bool:
        """Whether everything is sent, and answered or given up."""

    def stop(self) -> None:
        """Send no more."""

def python_entries() -> int:
    """How often native code has entered Python on behalf of requests since the process started."""
