"""Every metric that Headrace emits: its name, what it is, and what it says. Nothing else is emitted; a test checks it.

Names of spans are in `telemetry/span_names.py`.

Units are in the names. Label values come from fixed enumerations and from versions that are loaded, never from clients.

The `nv_` metrics are Triton's, with Triton's names, labels and units, so that its dashboards go on working. Where they come from:

    nv_inference_request_success       requests answered
    nv_inference_request_failure       requests not answered, by Triton's reasons:
                                       REJECTED  refused or expired
                                       CANCELED  cancelled by the client
                                       BACKEND   failed after a batch had taken them
                                       OTHER     failed before
                                       What did not pass validation is not counted, as in Triton.
    nv_inference_count                 rows of answered requests; 1 for a model that does not batch
    nv_inference_exec_count            batches in which at least one request was answered
    nv_inference_request_duration_us   received to sent, of answered requests
    nv_inference_queue_duration_us     stage queue
    nv_inference_compute_input_duration_us, _infer_, _output_    stages gather, execute, scatter
    nv_inference_pending_request_count                requests that wait in the queue
    nv_inference_first_response_histogram_ms          received to first answer scattered, in Triton's default buckets
    nv_model_load_duration_secs                       open, check and warm up
"""

from __future__ import annotations

from dataclasses import dataclass

VERSION = ("model", "version")
OBJECTIVE = ("objective", "model")


@dataclass(frozen=True, slots=True)
class Name:
    """One metric. `kind` is OpenMetrics' word for its type."""

    name: str
    kind: str
    help: str
    labels: tuple[str, ...] = ()


BUILD = Name("headrace_build", "info", "What runs: the versions of Headrace and of Python.", ("version", "python"))
TRANSPORT = Name("headrace_transport", "info", "Which transport takes the requests.", ("transport",))
READY = Name("headrace_ready", "gauge", "Whether the server is ready: 1 or 0.")
MODEL_VERSIONS = Name("headrace_model_versions", "gauge", "Versions of models that were not unloaded, by state.", ("state",))
LEDGER_RECORDS = Name("headrace_ledger_records_total", "counter", "Records written to the ledger.", ("kind",))
LEDGER_OVERRUN = Name(
    "headrace_ledger_overrun_total", "counter", "Records that were written over before the side process had read them."
)
LEDGER_SPILLED = Name("headrace_ledger_spilled_total", "counter", "Records that the side process has written to segments.")
LEDGER_UNWRITTEN = Name(
    "headrace_ledger_unwritten_total", "counter", "Records that the side process could not write to segments, and dropped."
)
SPANS_SENT = Name("headrace_spans_sent_total", "counter", "Spans that the endpoint has taken.")
SPANS_DROPPED = Name(
    "headrace_spans_dropped_total", "counter",
    "Spans of kept traces that were not sent. rate: above the cap; buffer: no room, the endpoint is too slow; export: it failed.",
    ("reason",),
)  # fmt: skip
SPANS_TAKEN = Name(
    "headrace_spans_taken_total", "counter",
    "Spans of others. joined: they say something of a request; unmatched: of none that is known; ambiguous: of several; "
    "implausible: what cannot be; unused: nothing; malformed: they are no spans; room: too many waited.",
    ("fate",),
)  # fmt: skip
SPAN_MESSAGES_REFUSED = Name(
    "headrace_span_messages_refused_total", "counter",
    "Messages with spans of others that were refused. size: too large; garbage: not understood; busy: too many at once, a "
    "connection too many among them; slow: not there in time.",
    ("reason",),
)  # fmt: skip
OUTSIDE_DURATION = Name(
    "headrace_outside_duration_seconds", "histogram",
    "What spans of others tell. network, ray: of the time around that from received to sent; far_queue, far_gather, far_execute, "
    "far_scatter, far_way: of that within the stage execute, at a Triton. Nothing where they do not tell.",
    (*VERSION, "part"),
)  # fmt: skip
TRACES_OVERRUN = Name(
    "headrace_traces_overrun_total", "counter",
    "Records that were written over before the side process had decided whether to keep their trace.",
)  # fmt: skip
SIDE_PROCESS = Name("headrace_side_process_up", "gauge", "Whether the side process runs: 1 or 0.")
GIL_WAIT = Name(
    "headrace_gil_wait_seconds", "histogram",
    "What a thread of the server waits for the interpreter, sampled; how late the operating system wakes it is in that.",
)  # fmt: skip

REQUESTS = Name(
    "headrace_requests_total", "counter", "Requests by how they ended. No model: none was found, or none was looked for.",
    (*VERSION, "outcome"),
)  # fmt: skip
REFUSALS = Name(
    "headrace_refusals_total", "counter", "Refused requests by reason. No model: refused before one was looked for.",
    (*VERSION, "reason"),
)  # fmt: skip
REQUEST_DURATION = Name("headrace_request_duration_seconds", "histogram", "From received to sent, of answered requests.", VERSION)
STAGE_DURATION = Name(
    "headrace_stage_duration_seconds", "histogram",
    "Each stage of answered requests. The sums of the stages add up to that of the requests.", (*VERSION, "stage"),
)  # fmt: skip
BATCH_ROWS = Name("headrace_batch_rows", "histogram", "Rows of each batch in which a request was answered.", VERSION)
BATCH_PADDING = Name(
    "headrace_batch_padding_total", "counter",
    "Elements along the padded dimension that nobody sent, of batches in which a request was answered.", VERSION,
)  # fmt: skip
BATCHES = Name(
    "headrace_batches_total", "counter",
    "Batches in which a request was answered, by why they had the size they had.", (*VERSION, "reason"),
)  # fmt: skip
WASTED_ROWS = Name(
    "headrace_wasted_rows_total", "counter", "Rows of requests that ran for nobody: cancelled or expired.", VERSION
)
MALFORMED_TRACES = Name(
    "headrace_malformed_traces_total", "counter",
    "Requests whose traceparent could not be understood, and was ignored. No model: none was found.", VERSION,
)  # fmt: skip
QUEUE_REQUESTS = Name("headrace_queue_requests", "gauge", "Requests that wait.", VERSION)
QUEUE_ROWS = Name("headrace_queue_rows", "gauge", "Rows of the requests that wait.", VERSION)
QUEUE_BYTES = Name("headrace_queue_bytes", "gauge", "Bytes of the requests that wait.", VERSION)
INSTANCES = Name("headrace_model_instances", "gauge", "Instances that run the version.", VERSION)
LOAD = Name("headrace_model_load_seconds", "gauge", "How long it took to open, check and warm up the version.", VERSION)

BACKEND = Name(
    "headrace_model_backend", "gauge", "Whether the backend would be given a batch of the version now: 1 or 0.",
    (*VERSION, "backend"),
)  # fmt: skip
BACKEND_BATCHES = Name(
    "headrace_backend_batches_total", "counter", "Batches in which a request was answered, by the backend that ran them.",
    (*VERSION, "backend"),
)  # fmt: skip

VARIANT_BATCHES = Name(
    "headrace_variant_batches_total", "counter", "Batches that ran on the cheaper variant of the version.", (*VERSION, "variant")
)
STEERING_QUANTILE = Name(
    "headrace_steering_quantile", "gauge", "Which quantile of the remembered execution times the predictor goes by.", VERSION
)
STEERING_MARGIN = Name(
    "headrace_steering_margin_seconds", "gauge", "What steering adds to the margin before deadlines and targets.", VERSION
)
STEERING_VARIANT = Name(
    "headrace_steering_variant_ratio", "gauge", "The share of batches that is to run on the cheaper variant.", VERSION
)
STEERING_SHED = Name(
    "headrace_steering_shed_ratio", "gauge", "The share of the requests of a class that is refused at the door.",
    (*VERSION, "level"),
)  # fmt: skip
STEERING_DECISIONS = Name(
    "headrace_steering_decisions_total", "counter", "Steps of the slow loop, by what they did.", (*VERSION, "move")
)
SLO_REQUESTS = Name("headrace_slo_requests_total", "counter", "Requests that count for an objective.", OBJECTIVE)
SLO_BAD = Name("headrace_slo_bad_requests_total", "counter", "Those that missed it: late, refused, expired, failed.", OBJECTIVE)
SLO_CHARGED = Name(
    "headrace_slo_charged_total", "counter",
    "Bad requests, each divided over the stages that were too long, or refused, or failed. They add up to the bad requests.",
    (*OBJECTIVE, "stage"),
)  # fmt: skip
SLO_CAUSED = Name(
    "headrace_slo_caused_total", "counter",
    "How much of that others were the reason for: batches ahead, the window for company, padding.", (*OBJECTIVE, "reason"),
)  # fmt: skip
SLO_TARGET = Name("headrace_slo_target_ratio", "gauge", "The share of requests that is to be good.", OBJECTIVE)
SLO_THRESHOLD = Name("headrace_slo_threshold_seconds", "gauge", "Within which a good request is answered.", OBJECTIVE)
SLO_LEFT = Name(
    "headrace_slo_budget_left_ratio", "gauge", "The share of the error budget that is left of the window; negative: overspent.",
    OBJECTIVE,
)  # fmt: skip
SLO_EXHAUSTED = Name(
    "headrace_slo_budget_exhausted_seconds", "gauge",
    "How long it lasts at the rate of the first alert's long window; +Inf: nothing is spent.", OBJECTIVE,
)  # fmt: skip
SLO_BURN = Name(
    "headrace_slo_burn_rate",
    "gauge",
    "How fast the budget is spent: at 1 it lasts as long as its window.",
    (*OBJECTIVE, "window"),
)
SLO_STAGE_BUDGET = Name(
    "headrace_slo_stage_budget_seconds", "gauge", "What a stage may take: declared, or learned.", (*OBJECTIVE, "stage")
)

NV_SUCCESS = Name("nv_inference_request_success", "unknown", "Number of successful inference requests, all batch sizes", VERSION)
NV_FAILURE = Name(
    "nv_inference_request_failure", "unknown", "Number of failed inference requests, all batch sizes", (*VERSION, "reason")
)
NV_COUNT = Name("nv_inference_count", "unknown", "Number of inferences performed (does not include cached requests)", VERSION)
NV_EXECUTIONS = Name(
    "nv_inference_exec_count", "unknown", "Number of model executions performed (does not include cached requests)", VERSION
)
NV_REQUEST = Name("nv_inference_request_duration_us", "unknown", "Cumulative inference request duration in microseconds", VERSION)
NV_QUEUE = Name("nv_inference_queue_duration_us", "unknown", "Cumulative inference queuing duration in microseconds", VERSION)
NV_INPUT = Name("nv_inference_compute_input_duration_us", "unknown", "Cumulative compute input duration in microseconds", VERSION)
NV_INFER = Name(
    "nv_inference_compute_infer_duration_us", "unknown", "Cumulative compute inference duration in microseconds", VERSION
)
NV_OUTPUT = Name(
    "nv_inference_compute_output_duration_us", "unknown", "Cumulative inference compute output duration in microseconds", VERSION
)
NV_PENDING = Name(
    "nv_inference_pending_request_count",
    "gauge",
    "Instantaneous number of pending requests awaiting execution per-model.",
    VERSION,
)
NV_FIRST_RESPONSE = Name(
    "nv_inference_first_response_histogram_ms", "histogram", "Duration from request to first response in milliseconds", VERSION
)
NV_LOAD = Name("nv_model_load_duration_secs", "gauge", "Model load time in seconds", VERSION)

METRICS: dict[str, Name] = {each.name: each for each in list(globals().values()) if isinstance(each, Name)}
"""All of them by name. An `info` is exposed as `<name>_info`."""
