"""The description of REST for machines (OpenAPI 3.1) and for people (a page without scripts), from the table of its paths."""

from __future__ import annotations

import html
import re
from typing import Any

from headrace import __version__
from headrace.protocol.rest_calls import CALLS

INFERENCE = {
    "infer": "Ask a model. JSON, or JSON followed by binary tensors (`Inference-Header-Content-Length`).",
    "generate": "Not there yet.",
    "generate_stream": "Not there yet.",
}
"""What can be asked of a model, by the end of the path."""

_ERROR = {
    "description": "Refused; `error` says why.",
    "content": {
        "application/json": {
            "schema": {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}},
        }
    },
}
_PARAMETERS = {"type": "object", "additionalProperties": {"type": ["boolean", "number", "string"]}}
_SHAPE = {"type": "array", "items": {"type": "integer"}}


def _described(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


_TENSOR = _described(
    name={"type": "string"},
    datatype={
        "enum": ["BOOL", *(f"{kind}{bits}" for kind in ("UINT", "INT") for bits in (8, 16, 32, 64)), "FP32", "FP64", "BYTES"]
    },
    shape=_SHAPE,
    parameters=_PARAMETERS,
    data={"type": "array", "items": {"type": ["boolean", "number", "string", "array"]}},
)
_REQUEST = _described(
    id={"type": "string"},
    parameters=_PARAMETERS,
    inputs={"type": "array", "items": {**_TENSOR, "required": ["name", "datatype", "shape"]}},
    outputs={"type": "array", "items": {**_described(name={"type": "string"}, parameters=_PARAMETERS), "required": ["name"]}},
)
_RESPONSE = _described(
    id={"type": "string"},
    model_name={"type": "string"},
    model_version={"type": "string"},
    outputs={"type": "array", "items": {**_TENSOR, "required": ["name", "datatype", "shape"]}},
)


def document() -> dict[str, Any]:
    """OpenAPI 3.1 of every path."""
    paths: dict[str, Any] = {}
    for call in CALLS:
        body = {"content": {"application/json": {"schema": call.body}}, "required": False} if call.body else None
        _add(paths, call.http, call.path, call.says, body, {"description": call.rpc})
    schema = {**_REQUEST, "required": ["inputs"]}
    body = {
        "content": {
            "application/json": {"schema": schema},
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
        "required": True,
    }
    answer = {
        "description": "The outputs.",
        "content": {
            "application/json": {"schema": {**_RESPONSE, "required": ["model_name", "model_version", "outputs"]}},
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    }
    for tail, says in INFERENCE.items():
        for version in ("", "/versions/{version}"):
            _add(paths, "POST", f"/v2/models/{{model}}{version}/{tail}", says, body, answer)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Headrace", "version": __version__, "description": "The KServe V2 protocol over REST."},
        "paths": paths,
    }


def page() -> str:
    """All paths as HTML."""
    rows = "".join(
        f"<tr><td>{http.upper()}</td><td><code>{html.escape(path)}</code></td><td>{html.escape(operation['summary'])}</td></tr>"
        for path, operations in document()["paths"].items()
        for http, operation in operations.items()
    )
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><title>Headrace: REST V2</title>"
        "<style>body{font:16px system-ui;max-width:60rem;margin:2rem auto;padding:0 1rem}"
        "td,th{padding:.3rem .8rem .3rem 0;text-align:left;vertical-align:top}</style>"
        f"<h1>Headrace {html.escape(__version__)}: REST V2</h1>"
        "<p>For machines: <a href=/openapi.json>openapi.json</a>.</p>"
        f"<table><thead><tr><th>Method<th>Path<th>What</tr></thead><tbody>{rows}</tbody></table></html>"
    )


def _add(paths: dict[str, Any], http: str, path: str, says: str, body: Any, answer: dict[str, Any]) -> None:
    operation: dict[str, Any] = {
        "summary": says,
        "operationId": re.sub(r"\W+", "_", f"{http.lower()}{path}"),
        "parameters": [
            {
                "name": name,
                "in": "path",
                "required": True,
                "schema": {"type": "string", "pattern": "^[0-9]+$" if name == "version" else "^[^/]+$"},
            }
            for name in re.findall(r"{(\w+)}", path)
        ],
        "responses": {"200": answer, "4XX": _ERROR, "5XX": _ERROR},
    }
    if path.startswith("/v2/health"):
        operation["responses"]["400"] = {"description": "No."}
    if body is not None:
        operation["requestBody"] = body
    paths.setdefault(path, {})[http.lower()] = operation
