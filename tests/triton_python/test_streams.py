"""Decoupled models that do not end well, and clients that do not wait for them."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from tests.transport.serving import TRANSPORTS, serving
from tests.triton_python.asking import Ask, ask_stream
from tests.triton_python.conftest import parameter, write_model
from tests.waiting import until

DECOUPLED = "model_transaction_policy { decoupled: true }\n"

KEPT = """
    class TritonPythonModel:
        kept = []

        def execute(self, requests):
            for request in requests:
                sender = request.get_response_sender()
                sender.send(response([1]))
                match int(x_of(request)[0]):
                    case 0:
                        pass
                    case 1:
                        self.kept.append(sender)
                    case 2:
                        raise ValueError("in the middle")
                    case 3:
                        return [response([1])]
                    case 4:
                        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
                        sender.send(response([2]))
                    case 5:
                        os._exit(6)
                    case 6:
                        self.kept.append(sender)
                        threading.Timer(0, os._exit, [7]).start()
                    case 7:
                        sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("other", x_of(request))]))
                    case 8:
                        sender.send(response([2]), flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""
NEVER_FINAL = [
    (0, "model 'm' has dropped the response sender of a request without TRITONSERVER_RESPONSE_COMPLETE_FINAL"),
    (1, "model 'm' sent neither a response nor TRITONSERVER_RESPONSE_COMPLETE_FINAL within 1 s"),
    (2, "Failed to process the request(s) for model 'm_0', message: ValueError: in the middle\n\nAt:\n"),
    (3, "Python model 'm' is using the decoupled mode and the execute function must return None."),
    (5, "the process of model 'm' ended: exit status 6; it is being restarted"),
    (6, "the process of model 'm' ended: exit status 7; it is being restarted"),
    (7, "model 'm' version 1, output 'y': the model did not return it"),
]


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_decoupled_model_that_does_not_end_well(tmp_path: Path, transport: str) -> None:
    """Each request is answered what there was, and then told why there is no more; and the next is served."""
    write_model(tmp_path, "m", KEPT, DECOUPLED + parameter("run_timeout_s", 1))
    with serving(transport, tmp_path) as server:

        def answers(number: int) -> list[object]:
            return ask_stream(server.client, Ask("m", {"x": np.int32([number])}))

        for number, told in NEVER_FINAL:
            found = answers(number)
            assert found[0] == {"y": ("int32", [1])}
            assert len(found) == 2
            assert told in found[1][1]  # type: ignore[index]
            assert answers(8) == [{"y": ("int32", [1])}, {"y": ("int32", [2])}]
        assert answers(4) == [{"y": ("int32", [1])}], "what is sent after the last response is an error of the model alone"


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_client_that_goes_away_is_heard_of(tmp_path: Path, transport: str) -> None:
    text = f"""
        def wait(sender):
            sender.send(response([1]))
            while not sender.is_cancelled():
                pass
            open({str(tmp_path / "heard")!r}, "w").close()
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

        class TritonPythonModel:
            def execute(self, requests):
                for request in requests:
                    threading.Thread(target=wait, args=[request.get_response_sender()]).start()
    """
    write_model(tmp_path / "repository", "m", text, DECOUPLED)
    with serving(transport, tmp_path / "repository") as server:
        heard = threading.Event()
        server.client.start_stream(lambda result, error: heard.set())
        server.client.async_stream_infer("m", Ask("m", {"x": np.int32([1])}).given())
        assert heard.wait(20)
        server.client.stop_stream(cancel_requests=True)
        until((tmp_path / "heard").exists)
