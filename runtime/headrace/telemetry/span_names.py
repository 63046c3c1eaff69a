"""Every name that is in a span: of the span itself, and of what it says. Nothing else is emitted; a test checks both directions.

Server spans follow OpenTelemetry's conventions for RPC (semantic conventions 1.45, stable). For batches there are none; what is
ours begins with `headrace.`, and units are in the names.
"""

from __future__ import annotations


class Attribute(str):
    """The name of an attribute; `means` says what it tells."""

    means: str

    def __new__(cls, name: str, means: str) -> Attribute:
        """The name, with its meaning."""
        made = super().__new__(cls, name)
        made.means = means
        return made


METHOD = "inference.GRPCInferenceService/ModelInfer"

REQUEST = METHOD
"""A request, received to sent."""
ROWS = "rows"
"""Rows that a graph sent on to its next segment, or a model to another one: a request that is the child of another."""
QUEUE, EXECUTE = "queue", "execute"
"""Of a request: queued to taken, gathered to executed."""
BATCH, BACKEND, NODE = "batch", "backend", "node"
"""A batch, taken to scattered; in it the backend, gathered to executed; in that, what a graph ran."""
FAR = "far"
"""In the execution of a request, what a Triton did for it."""
SPANS = (REQUEST, ROWS, QUEUE, EXECUTE, BATCH, BACKEND, NODE, FAR)
"""What spans are called; all but `REQUEST`, `QUEUE` and `EXECUTE` are followed by the name of a model."""

RPC_SYSTEM = Attribute("rpc.system.name", "grpc")
RPC_METHOD = Attribute("rpc.method", "the method, fully qualified")
RPC_STATUS = Attribute("rpc.status_code", "gRPC's code, as a word")
ERROR_TYPE = Attribute("error.type", "the code, where it is the server's fault")

MODEL = Attribute("headrace.model.name", "the model")
VERSION = Attribute("headrace.model.version", "its version")
DIGEST = Attribute("headrace.model.digest", "the digest of its files")

OUTCOME = Attribute("headrace.outcome", "answered, failed, refused, invalid, expired, cancelled")
REFUSAL = Attribute("headrace.refusal", "why it was refused")
CLASS = Attribute("headrace.class", "its priority level")
CLIENT = Attribute("headrace.client", "the pseudonym of who asked")
REQUEST_ROWS = Attribute("headrace.rows", "its rows")
BYTES_IN = Attribute("headrace.bytes_in", "bytes of its inputs")
BYTES_OUT = Attribute("headrace.bytes_out", "bytes of its answer")
DEADLINE = Attribute("headrace.deadline_us", "how long it had, from received on")
SLACK = Attribute("headrace.slack_us", "how much of that was left when it was answered; below 0, it was late")
KEPT = Attribute("headrace.kept", "why its trace was kept")

RECEIVE_US = Attribute("headrace.receive_us", "received to queued")
GATHER_US = Attribute("headrace.gather_us", "taken to gathered")
SCATTER_US = Attribute("headrace.scatter_us", "executed to scattered")
SEND_US = Attribute("headrace.send_us", "scattered to sent")

NUMBER = Attribute("headrace.batch.number", "its number in its queue, as in the ledger")
PLACE = Attribute("headrace.batch.place", "which of the requests of its batch it is, from 0 on")
BATCH_ROWS = Attribute("headrace.batch.rows", "rows of the batch")
BATCH_REQUESTS = Attribute("headrace.batch.requests", "requests of the batch")
BATCH_FAILED = Attribute("headrace.batch.failed", "how many of them failed")
REASON = Attribute("headrace.batch.reason", "why the plan made it as large as it is")
PADDING = Attribute("headrace.batch.padding", "elements that nobody sent")
INSTANCE = Attribute("headrace.batch.instance", "the instance that ran it")
PREDICTED = Attribute("headrace.batch.predicted_us", "how long it was to run, where that was known")
ACTUAL = Attribute("headrace.batch.actual_us", "how long it ran")
STRAGGLER = Attribute("headrace.batch.straggler", "the place of the request whose length the others were padded to")
IS_STRAGGLER = Attribute("headrace.batch.is_straggler", "that is this one")

FAR_QUEUE = Attribute("headrace.far.queue_us", "how long it waited there")
FAR_GATHER = Attribute("headrace.far.gather_us", "compute input, in Triton's words")
FAR_EXECUTE = Attribute("headrace.far.execute_us", "compute infer")
FAR_SCATTER = Attribute("headrace.far.scatter_us", "compute output")
FAR_WAY = Attribute("headrace.far.way_us", "the rest of our execution: there had not got it, or was done with it")

ATTRIBUTES = frozenset(each for each in list(globals().values()) if isinstance(each, Attribute))
"""All that spans of a server say."""

JOB, SPLIT = "job", "split"
"""Of a batch job: a run of it, and in that each split that it finished, read to recorded; followed by the name of its graph."""

JOB_ID = Attribute("headrace.job.id", "the job, whichever of its runs this is")
JOB_SPLIT = Attribute("headrace.job.split", "the number of the split")
JOB_PART = Attribute("headrace.job.part", "the file that it became")
JOB_REJECTED = Attribute("headrace.job.rejected", "rows that are in no part")

JOB_ATTRIBUTES = frozenset(
    (MODEL, VERSION, DIGEST, REQUEST_ROWS, BYTES_OUT, ERROR_TYPE, JOB_ID, JOB_SPLIT, JOB_PART, JOB_REJECTED)
)
"""All that spans of jobs say."""
