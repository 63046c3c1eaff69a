"""Generated sequences of requests, good and bad, over every transport; an oracle that knows neither judges each answer.

The oracle is what the test itself knows: numpy's values for a good request, and for a bad one the code that the protocol has for
what was done to it. A gate holds the model while requests are cancelled and expire, so that their order is no accident.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as pb

from headrace.backends.base import Batch
from headrace.backends.fake import Gate, Script
from headrace.ledger.records import Outcome
from headrace.protocol.validate import bucket_of
from headrace.scheduling.admission import Estimate, Limits, Line
from headrace.tensor import DTYPES
from tests.transport.serving import PATIENCE, Server, fill, serving
from tests.waiting import until

Code = grpc.StatusCode
SEQUENCES = 300
MANY = {"native": 100_000, "portable": 20_000}
KINDS = (*DTYPES, "BYTES")
TYPED = {
    "BOOL": "bool_contents", "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents",
    "UINT64": "uint64_contents", "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents",
    "INT64": "int64_contents", "FP32": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents",
}  # fmt: skip


def echo(kind: str, batching: str = "dynamic_batching {}", rows: int = 8) -> str:
    name = f"TYPE_{'STRING' if kind == 'BYTES' else kind}"
    return f"""backend: "fake" max_batch_size: {rows} input {{ name: "x" data_type: {name} dims: -1 }}
        output {{ name: "y" data_type: {name} dims: -1 }} {batching}"""


@dataclass
class Asked:
    """A request as bytes, the code it must end with, and what must come back."""

    payload: bytes
    code: grpc.StatusCode = Code.OK
    raw: bytes = b""
    how: str = "good"


class Kept:
    """The servers of one transport, and how often each code came."""

    def __init__(self, server: Server, scripts: dict[str, Script]) -> None:
        self.server, self.scripts = server, scripts
        self.codes: Counter[grpc.StatusCode] = Counter()
        self.call = server.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")


def refuse_13(batch: Batch) -> None:
    """The model that fails for one number."""
    if (np.asarray(batch.tensors()["x"]) == 13).any():
        raise RuntimeError("thirteen")


@pytest.fixture(scope="module")
def kept(transport: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kept]:
    models = {kind: (echo(kind), Script()) for kind in KINDS}
    models["fails"] = (echo("INT32", rows=1), Script(fail=refuse_13))
    # What is foretold depends on what ran before, and here everything has to depend on the request alone.
    policy = "dynamic_batching { default_queue_policy { max_queue_size: 6 } }"
    policy += 'parameters { key: "admission" value { string_value: "open" } }'
    models["gated"] = (echo("INT32", policy), Script())
    models["decoupled"] = (echo("INT32") + "model_transaction_policy { decoupled: true }", Script())
    models["broken"] = (echo("INT32") + 'parameters { key: "answers" value { string_value: "many" } }', Script())
    repository = tmp_path_factory.mktemp("repository")
    fake = fill(repository, {name: made for name, made in models.items() if name != "broken"})
    fill(repository, {"broken": models["broken"]})
    with serving(transport, repository, {"fake": fake}) as server:
        yield Kept(server, {name: script for name, (_, script) in models.items()})


# What is asked.


def wire(values: np.ndarray[Any, Any]) -> bytes:
    if values.dtype.kind != "O":
        return values.tobytes()
    return b"".join(len(element).to_bytes(4, "little") + element for element in values.ravel())


@st.composite
def tensors(draw: st.DrawFn, kind: str) -> np.ndarray[Any, Any]:
    shape = (draw(st.integers(0, 8)), draw(st.integers(0, 5)))
    count = shape[0] * shape[1]
    if kind == "BYTES":
        elements = draw(st.lists(st.binary(max_size=6), min_size=count, max_size=count))
        values = np.empty(count, np.object_)
        values[:] = elements
        return values.reshape(shape)
    size = DTYPES[kind].itemsize
    bits = draw(st.binary(min_size=count * size, max_size=count * size))
    if kind == "BOOL":
        bits = bytes(byte & 1 for byte in bits)
    return np.frombuffer(bits, DTYPES[kind]).reshape(shape)


def message(kind: str, values: np.ndarray[Any, Any], typed: bool) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name=kind)
    given = request.inputs.add(name="x", datatype=kind, shape=values.shape)
    if not typed:
        request.raw_input_contents.append(wire(values))
    else:
        given.contents.SetInParent()
        getattr(given.contents, TYPED[kind]).extend(values.ravel().tolist())
    return request


NO_MESSAGE, SOME_MESSAGE = "no message", "some message"


def cut(request: pb.ModelInferRequest) -> None:
    request.raw_input_contents[0] += b"\1"


MUTATIONS: dict[str, tuple[grpc.StatusCode, Any]] = {
    "unknown model": (Code.NOT_FOUND, lambda r: setattr(r, "model_name", "nobody")),
    "unknown version": (Code.NOT_FOUND, lambda r: setattr(r, "model_version", "7")),
    "no number": (Code.INVALID_ARGUMENT, lambda r: setattr(r, "model_version", "one")),
    "below 0": (Code.INVALID_ARGUMENT, lambda r: setattr(r, "model_version", "-3")),
    "not ready": (Code.UNAVAILABLE, lambda r: r.MergeFrom(pb.ModelInferRequest(model_name="broken", model_version="1"))),
    "decoupled": (Code.UNIMPLEMENTED, lambda r: setattr(r, "model_name", "decoupled")),
    "datatype": (Code.INVALID_ARGUMENT, lambda r: setattr(r.inputs[0], "datatype", "FP61")),
    "rank": (Code.INVALID_ARGUMENT, lambda r: r.inputs[0].shape.append(1)),
    "rows": (Code.INVALID_ARGUMENT, lambda r: r.inputs[0].shape.__setitem__(0, 9)),
    "negative": (Code.INVALID_ARGUMENT, lambda r: r.inputs[0].shape.__setitem__(1, -1)),
    "no shape": (Code.INVALID_ARGUMENT, lambda r: r.inputs[0].ClearField("shape")),
    "name": (Code.INVALID_ARGUMENT, lambda r: setattr(r.inputs[0], "name", "z")),
    "twice": (Code.INVALID_ARGUMENT, lambda r: r.inputs.append(r.inputs[0])),
    "surplus input": (Code.INVALID_ARGUMENT, lambda r: r.inputs.add(name="z", datatype="INT32", shape=(1, 0))),
    "no input": (Code.INVALID_ARGUMENT, lambda r: r.ClearField("inputs")),
    "output": (Code.INVALID_ARGUMENT, lambda r: r.outputs.add(name="z")),
    "size": (Code.INVALID_ARGUMENT, cut),
    "no data": (Code.INVALID_ARGUMENT, lambda r: r.ClearField("raw_input_contents")),
    "parameter": (Code.INVALID_ARGUMENT, lambda r: r.parameters["triton_x"].CopyFrom(pb.InferParameter(bool_param=True))),
    "timeout": (Code.INVALID_ARGUMENT, lambda r: r.parameters["timeout"].CopyFrom(pb.InferParameter(int64_param=-1))),
    "region": (
        Code.NOT_FOUND,
        lambda r: r.outputs.add(
            name="y",
            parameters={
                "shared_memory_region": pb.InferParameter(string_param="nobody"),
                "shared_memory_byte_size": pb.InferParameter(int64_param=1),
            },
        ),
    ),
}


def failing(number: int) -> Asked:
    """A request to the model that fails for 13."""
    bad = message("INT32", np.full((1, 1), number, np.int32), typed=False)
    bad.model_name = "fails"
    return Asked(bad.SerializeToString(), Code.INTERNAL if number == 13 else Code.OK, wire(np.full(1, number, np.int32)), "fails")


@st.composite
def requests(draw: st.DrawFn) -> Asked:
    kind = draw(st.sampled_from(KINDS))
    values = draw(tensors(kind))
    how = draw(st.sampled_from(["good"] * 12 + ["fails", "bytes", *MUTATIONS]))
    typed = how == "good" and kind in TYPED and draw(st.booleans())
    if typed and kind != "BYTES":
        # As typed contents hold them: a float of Python's keeps no signalling NaN.
        values = np.array(values.ravel().tolist(), values.dtype).reshape(values.shape)
    request = message(kind, values, typed)
    if how == "good":
        return Asked(request.SerializeToString(), raw=wire(values), how=f"{kind}{' typed' if typed else ''}")
    if how == "fails":
        return failing(draw(st.sampled_from([12, 13])))
    if how == "bytes":
        return broken(draw, request.SerializeToString())
    code, change = MUTATIONS[how]
    change(request)
    return Asked(request.SerializeToString(), code, how=how)


def broken(draw: st.DrawFn, payload: bytes) -> Asked:
    """Bytes that are no message, as protobuf itself says; those that are one after all are asked as they are."""
    at = draw(st.integers(0, max(0, len(payload) - 1)))
    noise = draw(st.binary(min_size=1, max_size=3))
    payload = payload[:at] + noise + (payload[at + draw(st.integers(0, 3)) :] if draw(st.booleans()) else b"")
    try:
        pb.ModelInferRequest.FromString(payload)
    except DecodeError:
        return Asked(payload, Code.INVALID_ARGUMENT, how=NO_MESSAGE)
    return Asked(payload, how=SOME_MESSAGE)


@dataclass
class Held:
    """What happens to requests while the model is held: their numbers by what becomes of them."""

    fates: list[str] = field(default_factory=list)


HELD = st.builds(Held, st.lists(st.sampled_from(["runs", "cancelled", "expires"]), min_size=1, max_size=5))
SEQUENCE = st.one_of(*[st.lists(requests(), min_size=1, max_size=6)] * 7, HELD)


# What comes back.


def judge(kept: Kept, asked: list[Asked]) -> None:
    calls = [kept.call.future(one.payload, timeout=PATIENCE) for one in asked]
    for one, call in zip(asked, calls, strict=True):
        code = call.code()
        kept.codes[code] += 1
        assert ("are not a ModelInferRequest message" in (call.details() or "")) == (one.how == NO_MESSAGE), one.payload
        if one.how == SOME_MESSAGE:
            continue  # whatever it says now
        assert code is one.code, f"{one.how}: {call.code()} {call.details()}"
        if code is Code.OK:
            answer = pb.ModelInferResponse.FromString(call.result())
            assert list(answer.raw_output_contents) == [one.raw], one.how
            assert [output.name for output in answer.outputs] == ["y"]
        else:
            assert call.details(), f"{one.how}: no word of why"


def gated(value: int, **parameters: int) -> bytes:
    request = message("INT32", np.full((1, 1), value, np.int32), typed=False)
    request.model_name = "gated"
    for key, number in parameters.items():
        request.parameters[key].int64_param = number
    return request.SerializeToString()


def hold(kept: Kept, held: Held) -> None:
    """Cancel and expire requests behind one that runs; what is left runs when the gate opens."""
    server, script = kept.server, kept.scripts["gated"]
    server.engine.ledger.drain()
    before, script.gate, ran = server.ledger("gated"), Gate(), len(script.batches)
    gate = script.gate
    first = kept.call.future(gated(0), timeout=PATIENCE)
    gate.wait_for(1)
    fates = Counter(held.fates)
    left, calls = fates["runs"], {}
    # One kind after the other: each has come to its end before the next begins.
    for value, fate in enumerate(held.fates, 1):
        if fate != "expires":
            calls[value] = kept.call.future(gated(value), timeout=PATIENCE)
    until(lambda: server.waiting("gated") == left + fates["cancelled"])
    for value, fate in enumerate(held.fates, 1):
        if fate == "cancelled":
            calls[value].cancel()
    until(lambda: server.waiting("gated") == left)
    for value, fate in enumerate(held.fates, 1):
        if fate == "expires":
            calls[value] = kept.call.future(gated(value, timeout=1_000), timeout=PATIENCE)
            calls[value].code()
    script.gate = None
    gate.open()
    for value, fate in enumerate(["runs", *held.fates]):
        call = calls[value] if value else first
        code = call.code()
        kept.codes[code] += 1
        if fate == "cancelled":
            assert code is Code.CANCELLED
        elif fate == "expires":
            assert (code, call.details()) == (Code.DEADLINE_EXCEEDED, "the deadline passed before model 'gated' could answer")
        else:
            answer = pb.ModelInferResponse.FromString(call.result())
            assert list(answer.raw_output_contents) == [np.int32(value).tobytes()]
    server.wait_settled("gated")
    ends = server.ledger("gated")
    ended = {outcome: ends[outcome] - before[outcome] for outcome in (Outcome.ANSWERED, Outcome.CANCELLED, Outcome.EXPIRED)}
    assert list(ended.values()) == [1 + left, fates["cancelled"], fates["expires"]]
    assert sum(script.batches[ran:]) == 1 + left, "what was cancelled or had expired did not run"


def run(kept: Kept, examples: int, phases: tuple[Phase, ...]) -> None:
    @settings(
        max_examples=examples,
        deadline=None,
        phases=phases,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @example([failing(13)])  # of some hundred sequences, none may have it
    @given(SEQUENCE)
    def each(sequence: list[Asked] | Held) -> None:
        if isinstance(sequence, Held):
            hold(kept, sequence)
        else:
            judge(kept, sequence)

    each()
    overload(kept)
    every = {Code.OK, Code.INVALID_ARGUMENT, Code.NOT_FOUND, Code.UNIMPLEMENTED, Code.UNAVAILABLE, Code.INTERNAL}
    every |= {Code.CANCELLED, Code.DEADLINE_EXCEEDED, Code.RESOURCE_EXHAUSTED}
    assert set(kept.codes) == every


def overload(kept: Kept) -> None:
    """A full queue, and a deadline that cannot be met: these depend on what else waits."""
    server, script = kept.server, kept.scripts["gated"]
    script.gate = gate = Gate()
    calls = [kept.call.future(gated(0), timeout=PATIENCE)]
    gate.wait_for(1)
    calls += [kept.call.future(gated(1), timeout=PATIENCE) for _ in range(6)]
    until(lambda: server.waiting("gated") == 6)
    judge(kept, [Asked(gated(2), Code.UNAVAILABLE, how="full")])
    script.gate = None
    gate.open()
    judge_all = [pb.ModelInferResponse.FromString(call.result()) for call in calls]
    assert [answer.raw_output_contents[0] for answer in judge_all] == [bytes(4)] + [b"\1\0\0\0"] * 6
    queue = server.engine.routes.resolve("gated").queue
    queue.set_limits(Limits(estimate=Estimate({bucket_of(((1,),)): Line(60 * 10**9, 1, 8)})))
    script.gate = gate = Gate()
    running = kept.call.future(gated(0), timeout=PATIENCE)
    gate.wait_for(1)
    try:
        judge(kept, [Asked(gated(3, timeout=10_000_000), Code.RESOURCE_EXHAUSTED, how="too late")])
    finally:
        queue.set_limits(Limits())
        script.gate = None
        gate.open()
        running.result()


@pytest.mark.timeout(240)
def test_generated_sequences(kept: Kept) -> None:
    run(kept, SEQUENCES, (Phase.explicit, Phase.generate, Phase.shrink))


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_many_generated_sequences(kept: Kept, transport: str) -> None:
    run(kept, MANY[transport], (Phase.generate,))


def test_the_oracle_can_be_wrong(kept: Kept) -> None:
    """A wrong expectation fails: otherwise all of the above would say nothing."""
    good = message("INT32", np.ones((1, 1), np.int32), typed=False).SerializeToString()
    with pytest.raises(AssertionError, match="good"):
        judge(kept, [Asked(good, raw=b"\2\0\0\0")])
    with pytest.raises(AssertionError, match=r"StatusCode\.OK"):
        judge(kept, [Asked(good, Code.NOT_FOUND)])
