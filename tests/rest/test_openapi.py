"""The description of REST: it is valid, it is whole, and the server does what it says, whatever it is asked."""

from __future__ import annotations

import re

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import checks

from headrace.protocol.rest_calls import CALLS
from headrace.transport import openapi
from tests.rest.resting import Rest

DOCUMENT = openapi.document()
NAMES = {"model": ["m", "raw", "word", "fail", "nope"], "version": ["1", "9"], "region": ["r"]}
for operations in DOCUMENT["paths"].values():  # half of all calls shall be for something that is there
    for operation in operations.values():
        for parameter in operation["parameters"]:
            known = {"enum": NAMES[parameter["name"]]}
            parameter["schema"] = {"anyOf": [known, parameter["schema"]]}
SCHEMA = schemathesis.openapi.from_dict(DOCUMENT)
OPERATIONS = [(path, http) for path, operations in DOCUMENT["paths"].items() for http in operations]
CHECKS = (
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
)
QUIET = settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.parametrize(("path", "http"), OPERATIONS, ids=[f"{http} {path}" for path, http in OPERATIONS])
def test_the_server_does_what_the_description_says(rest: Rest, path: str, http: str) -> None:
    operation = SCHEMA[path][http.upper()]

    @QUIET
    @given(operation.as_strategy() | operation.as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE))
    def ask(case: schemathesis.Case) -> None:
        response = case.call(base_url=f"http://{rest.transport.address}", timeout=20)
        # 500 is for what the model or the server did wrong; only one model does, and one name is in no repository.
        if response.status_code == 500:
            assert case.path_parameters["model"] == "fail" or path.endswith("/load")
        case.validate_response(response, checks=CHECKS)

    ask()
    assert rest.is_well()


@QUIET
@given(st.binary(max_size=200), st.sampled_from([None, "0", "1", "20", "x"]), st.sampled_from(["", "gzip", "deflate"]))
def test_any_body(rest: Rest, body: bytes, header: str | None, coding: str) -> None:
    headers = {"Content-Encoding": coding} | ({"Inference-Header-Content-Length": header} if header else {})
    assert rest.infer("m", body, **headers).error[0] == 400


def test_every_path_is_described() -> None:
    described = {(http.upper(), path) for path, operations in openapi.document()["paths"].items() for http in operations}
    inferred = {(http, path) for http, path in described if re.search("/(infer|generate|generate_stream)$", path)}
    assert described - inferred == {(call.http, call.path) for call in CALLS}
    assert len(inferred) == 6
    identifiers = [o["operationId"] for operations in openapi.document()["paths"].values() for o in operations.values()]
    assert len(set(identifiers)) == len(identifiers)


def test_where_it_is(rest: Rest) -> None:
    reply = rest.ask("GET", "/openapi.json")
    assert reply.json == openapi.document()
    assert reply.headers["content-type"] == "application/json"


def test_the_page_for_people(rest: Rest) -> None:
    reply = rest.ask("GET", "/docs")
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    page = reply.body.decode()
    assert all(f"<code>{call.path}</code>" in page for call in CALLS)
    assert "<script" not in page
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", page)
