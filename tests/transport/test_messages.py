"""What a model says when it fails reaches the client, whatever it says."""

from __future__ import annotations

import pytest
import tritonclient.grpc as triton

from headrace.backends.fake import Script
from tests.transport.serving import ECHO, Serve, tensor


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("caf\udcff", "caf?"),
        ("line one\nline two", "line one\nline two"),
        ("é" * 10, "é" * 10),
        ("x" * 100_000, "x" * 4000 + " … (100000 characters)"),
        ("", "RuntimeError"),
    ],
    ids=["no text", "lines", "letters", "a novel", "nothing"],
)
def test_any_message_arrives_with_its_code(serve: Serve, said: str, told: str) -> None:
    def fail(batch) -> None:
        raise RuntimeError(said)

    server = serve({"m": (ECHO, Script(fail=fail))})
    with pytest.raises(triton.InferenceServerException) as caught:
        server.client.infer("m", [tensor("x", [[1]])], client_timeout=20)
    assert (caught.value.status(), caught.value.message()) == ("StatusCode.INTERNAL", told)
