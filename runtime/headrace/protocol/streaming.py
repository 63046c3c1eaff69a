"""Answers of `ModelStreamInfer`: `ModelStreamInferResponse` messages, as bytes.

Protobuf merges messages that stand one behind the other, so a response is encoded as for `ModelInfer` and gets the flag
appended: its tensors are not copied another time.
"""

from __future__ import annotations

from google.protobuf.message import DecodeError

from headrace.errors import HeadraceError
from headrace.protocol.codec import encode_response
from headrace.protocol.headrace_pb2 import InferParameter, ModelInferRequest, ModelInferResponse, ModelStreamInferResponse
from headrace.request import Request, Response

_FINAL = "triton_final_response"
_FLAGS = {
    final: ModelInferResponse(parameters={_FINAL: InferParameter(bool_param=final)}).SerializeToString()
    for final in (False, True)
}
_INFER_RESPONSE = bytes([ModelStreamInferResponse.INFER_RESPONSE_FIELD_NUMBER << 3 | 2])
"""The tag of the field, whose length and bytes follow."""


def encode_stream_response(response: Response) -> bytes:
    """One answer, flagged as the last one or not.

    Raises:
        InvalidRequest: it would be larger than gRPC can carry.
    """
    body, flag = encode_response(response), _FLAGS[response.final]
    return b"".join((_INFER_RESPONSE, _varint(len(body) + len(flag)), body, flag))


def encode_refusal(error: HeadraceError, request_id: str) -> bytes:
    """The error of a request that was not scheduled: nothing but its id goes with it."""
    message = ModelStreamInferResponse(error_message=error.message, infer_response=ModelInferResponse(id=request_id))
    return message.SerializeToString()


def encode_failure(error: HeadraceError, request: Request) -> bytes:
    """The error of a request that was scheduled; it is its last answer, and has the version that was asked for."""
    told = ModelInferResponse(
        id=request.id,
        model_name=request.model,
        model_version=str(request.version) if request.version else "",
        parameters={_FINAL: InferParameter(bool_param=True)},
    )
    return ModelStreamInferResponse(error_message=error.message, infer_response=told).SerializeToString()


def request_id_of(payload: bytes) -> str:
    """The id in a `ModelInferRequest` that could not be decoded into a request; empty if it is no such message."""
    try:
        return ModelInferRequest.FromString(payload).id
    except DecodeError:
        return ""


def _varint(number: int) -> bytes:
    groups = bytearray()
    while number > 0x7F:
        groups.append(number & 0x7F | 0x80)
        number >>= 7
    groups.append(number)
    return bytes(groups)
