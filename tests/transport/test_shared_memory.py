"""System shared memory: registered, used for inputs and outputs, and mistreated by its clients."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.utils.shared_memory as client_shm
from tritonclient.grpc import service_pb2 as pb

from headrace.backends.fake import Gate, Script
from headrace.engine import regions as engine_regions
from tests.transport.asking import A, S, ask, is_well, value
from tests.transport.serving import ECHO, PATIENCE, Asked, Serve, Server, fails, fill, serving, tensor
from tests.waiting import until

INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND
UNIMPLEMENTED = grpc.StatusCode.UNIMPLEMENTED
INTERNAL = grpc.StatusCode.INTERNAL
EXISTS = grpc.StatusCode.ALREADY_EXISTS
DISABLED = "Client shared memory is disabled. Start the server with '--allow-client-shm=true' to enable."

STRINGS = """
backend: "fake"
max_batch_size: 8
input { name: "x" data_type: TYPE_STRING dims: -1 }
output { name: "y" data_type: TYPE_STRING dims: -1 }
"""
Segment = Callable[..., Path]


@pytest.fixture(scope="module")
def allowed(transport: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose clients may register shared memory."""
    repository = tmp_path_factory.mktemp("repository")
    two = ECHO + 'input { name: "a" data_type: TYPE_INT32 dims: -1 } output { name: "b" data_type: TYPE_INT32 dims: -1 }'
    models = {"m": (ECHO, Script()), "two": (two, Script()), "strings": (STRINGS, Script())}
    with serving(transport, repository, {"fake": fill(repository, models)}, allow_client_shm=True) as started:
        yield started


@pytest.fixture
def segment(request: pytest.FixtureRequest, allowed: Server) -> Iterator[Segment]:
    """Makes segments: `segment(size, name)`; they and all regions are gone afterwards."""
    with ExitStack() as stack:

        def make(size: int, name: str = "s", content: bytes = b"") -> Path:
            path = Path("/dev/shm") / f"headrace-test-{os.getpid()}-{name}"
            path.write_bytes(content + bytes(size - len(content)))
            stack.callback(path.unlink, missing_ok=True)
            return path

        yield make
    allowed.client.unregister_system_shared_memory()


def register(server: Server, name: str, segment: Path, size: int, offset: int = 0) -> None:
    server.client.register_system_shared_memory(name, f"/{segment.name}", size, offset)


def from_region(region: str, size: int, offset: int = 0, shape: tuple[int, ...] = (1, 3), name: str = "x") -> triton.InferInput:
    given = triton.InferInput(name, list(shape), "INT32")
    given.set_shared_memory(region, size, offset)
    return given


def to_region(region: str, size: int, offset: int = 0, name: str = "y") -> triton.InferRequestedOutput:
    wanted = triton.InferRequestedOutput(name)
    wanted.set_shared_memory(region, size, offset)
    return wanted


def goes_on(server: Server) -> bool:
    return server.client.infer("m", [tensor("x", [[7]])]).as_numpy("y").tolist() == [[7]]


# -- use ----------------------------------------------------------------------------------------------------------------


def test_the_way_of_tritons_own_client(allowed: Server) -> None:
    handle = client_shm.create_shared_memory_region("io", f"/headrace-test-{os.getpid()}-io", 24)
    try:
        client_shm.set_shared_memory_region(handle, [np.array([[1, 2, 3]], np.int32)])
        allowed.client.register_system_shared_memory("io", f"/headrace-test-{os.getpid()}-io", 24)
        answer = allowed.client.infer("m", [from_region("io", 12)], outputs=[to_region("io", 12, 12)])
        assert client_shm.get_contents_as_numpy(handle, np.int32, [1, 3], 12).tolist() == [[1, 2, 3]]
        told = answer.get_response()
        (output,) = told.outputs
        assert (output.name, output.datatype, list(output.shape)) == ("y", "INT32", [1, 3])
        assert list(told.raw_output_contents) == [b""]
        assert not output.parameters
    finally:
        allowed.client.unregister_system_shared_memory("io")
        client_shm.destroy_shared_memory_region(handle)


def test_a_window_need_not_begin_with_a_page(allowed: Server, segment: Segment) -> None:
    path = segment(64, content=b"....." + A)
    register(allowed, "r", path, 40, 1)
    allowed.client.infer("m", [from_region("r", 12, 4)], outputs=[to_region("r", 20, 19)])
    assert path.read_bytes() == b"....." + A + bytes(3) + A + bytes(32)


def test_some_in_shared_memory_and_some_in_the_message(allowed: Server, segment: Segment) -> None:
    path = segment(12, content=A)
    register(allowed, "r", path, 12)
    given = [tensor("x", [[4, 5, 6]]), from_region("r", 12, name="a")]
    answer = allowed.client.infer("two", given, outputs=[triton.InferRequestedOutput("b"), to_region("r", 12)])
    assert answer.as_numpy("b").tolist() == [[0, 1, 2]]
    assert np.frombuffer(path.read_bytes(), np.int32).tolist() == [4, 5, 6]
    assert list(answer.get_response().raw_output_contents) == [A, b""]


def test_strings(allowed: Server, segment: Segment) -> None:
    content = b"\x02\0\0\0hi\x03\0\0\0you"
    path = segment(40, content=content)
    register(allowed, "r", path, 40)
    given = triton.InferInput("x", [2, 1], "BYTES")
    given.set_shared_memory("r", len(content))
    allowed.client.infer("strings", [given], outputs=[to_region("r", 20, 20)])
    assert path.read_bytes()[20:].startswith(content)


def test_two_requests_of_a_batch_write_to_their_own(serve: Serve, segment: Segment) -> None:
    script = Script()
    server = serve({"m": (ECHO, script)}, allow_client_shm=True)
    path = segment(12)
    register(server, "r", path, 12)
    script.gate = gate = Gate()
    first = Asked(server, "m", [tensor("x", [[0]])], outputs=[to_region("r", 4, 0)])
    gate.wait_for(1)
    others = [Asked(server, "m", [tensor("x", [[n]])], outputs=[to_region("r", 4, 4 * n)]) for n in (1, 2)]
    gate.open()
    for asked in (first, *others):
        asked.result()
    assert np.frombuffer(path.read_bytes(), np.int32).tolist() == [0, 1, 2]


# -- status and registration ----------------------------------------------------------------------------------------------


def test_status(allowed: Server, segment: Segment) -> None:
    path = segment(64)
    register(allowed, "b", path, 8, 16)
    register(allowed, "a", path, 64)
    told = allowed.client.get_system_shared_memory_status().regions
    assert {(r.name, r.key, r.offset, r.byte_size) for r in told.values()} == {
        ("a", f"/{path.name}", 0, 64),
        ("b", f"/{path.name}", 16, 8),
    }
    assert set(allowed.client.get_system_shared_memory_status("b").regions) == {"b"}
    allowed.client.unregister_system_shared_memory("b")
    allowed.client.unregister_system_shared_memory("b")
    with fails(NOT_FOUND, "Unable to find system shared memory region: 'b'"):
        allowed.client.get_system_shared_memory_status("b")
    with fails(NOT_FOUND, "The region named 'a' is registered as system shared memory, not CUDA shared memory"):
        allowed.client.get_cuda_shared_memory_status("a")
    allowed.client.unregister_system_shared_memory()
    assert not allowed.client.get_system_shared_memory_status().regions


REGISTRATIONS = {
    "no such segment": ("r", "/headrace-none", 0, 8, INTERNAL, "Unable to open shared memory region: '/headrace-none'"),
    "a path": ("r", "/../etc/passwd", 0, 8, INTERNAL, "Unable to open shared memory region: '/../etc/passwd'"),
    "the parent": ("r", "..", 0, 8, INTERNAL, "Unable to open shared memory region: '..'"),
    "no text": ("r", "a\0b", 0, 8, INTERNAL, "Unable to open shared memory region: 'a\0b'"),
    "a long name": ("r", "k" * 300, 0, 8, INTERNAL, f"Unable to open shared memory region: '{'k' * 300}'"),
    "slashes only": ("r", "///", 0, 8, INVALID, "cannot register shared memory region 'r' - invalid shm key '///'"),
    "reserved": (
        "r",
        "//triton_python_backend_shm_region_1",
        0,
        8,
        INVALID,
        "cannot register shared memory region 'r' with key '//triton_python_backend_shm_region_1' as the key contains the "
        "reserved prefix 'triton_python_backend_shm_region_'",
    ),
    "too long": ("r", "", 0, 65, INVALID, "failed to register shared memory region 'r': invalid args"),
    "too far": ("r", "", 60, 8, INVALID, "failed to register shared memory region 'r': invalid args"),
    "far too far": ("r", "", 2**64 - 1, 2**64 - 1, INVALID, "failed to register shared memory region 'r': invalid args"),
    "nothing": ("r", "", 0, 0, INVALID, "failed to register shared memory region 'r': invalid args"),
    "no name": ("", "", 0, 8, INVALID, "failed to register shared memory region '': invalid args"),
    "twice": ("taken", "", 0, 8, EXISTS, "shared memory region 'taken' already in manager"),
}


@pytest.mark.parametrize("case", REGISTRATIONS)
def test_a_registration_that_fails(allowed: Server, segment: Segment, case: str) -> None:
    name, key, offset, size, code, told = REGISTRATIONS[case]
    path = segment(64)
    register(allowed, "taken", path, 64)
    request = pb.SystemSharedMemoryRegisterRequest(name=name, key=key or path.name, offset=offset, byte_size=size)
    with fails(code, told):
        allowed.stub.SystemSharedMemoryRegister(request, timeout=PATIENCE)
    assert set(allowed.client.get_system_shared_memory_status().regions) == {"taken"}


def test_neither_links_nor_pipes_nor_directories_are_segments(allowed: Server, segment: Segment, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(64))
    odd = segment(8, "odd")
    makers: dict[str, Callable[[], None]] = {
        "open": lambda: odd.symlink_to(secret),
        "Invalid": lambda: os.mkfifo(odd),
    }
    for word, make in makers.items():
        odd.unlink()
        make()
        told = f"Unable to open shared memory region: '/{odd.name}'"
        with fails(INTERNAL, told if word == "open" else f"Invalid shared memory region: '/{odd.name}'"):
            register(allowed, "r", odd, 8)
    odd.unlink()
    odd.mkdir()
    try:
        with fails(INTERNAL, f"Unable to open shared memory region: '/{odd.name}'"):
            register(allowed, "r", odd, 8)
    finally:
        odd.rmdir()


def test_there_are_only_so_many(allowed: Server, segment: Segment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_regions, "MOST_REGIONS", 2)
    path = segment(8)
    register(allowed, "a", path, 8)
    register(allowed, "b", path, 8)
    with fails(INVALID, "cannot register shared memory region 'c': 2 are registered; unregister one of them"):
        register(allowed, "c", path, 8)


def test_it_is_off_unless_it_is_allowed(server: Server, segment: Segment) -> None:
    path = segment(64)
    calls: list[Callable[[], object]] = [
        lambda: register(server, "r", path, 64),
        lambda: server.client.unregister_system_shared_memory(),
        lambda: server.client.register_cuda_shared_memory("r", b"", 0, 64),
        lambda: server.client.unregister_cuda_shared_memory(),
    ]
    for call in calls:
        with fails(UNIMPLEMENTED, DISABLED):
            call()
    assert not server.client.get_system_shared_memory_status().regions
    assert not server.client.get_cuda_shared_memory_status().regions
    assert "system_shared_memory" not in server.client.get_server_metadata().extensions
    request = ask(raw=(S,))
    request.inputs[0].parameters["shared_memory_region"].CopyFrom(value(string_param="r"))
    request.inputs[0].parameters["shared_memory_byte_size"].CopyFrom(value(int64_param=12))
    with fails(NOT_FOUND, "Unable to find shared memory region: 'r'"):
        server.stub.ModelInfer(request, timeout=PATIENCE)
    assert is_well(server)


def test_cuda_says_why_not(allowed: Server) -> None:
    assert not allowed.client.get_cuda_shared_memory_status().regions
    allowed.client.unregister_cuda_shared_memory()  # as Triton's own examples do before they begin
    with fails(UNIMPLEMENTED, "failed to register CUDA shared memory region: 'r', GPUs not supported"):
        allowed.client.register_cuda_shared_memory("r", b"", 0, 64)
    with fails(NOT_FOUND, "Unable to find cuda shared memory region: 'r'"):
        allowed.client.get_cuda_shared_memory_status("r")
    extensions = allowed.client.get_server_metadata().extensions
    assert "system_shared_memory" in extensions
    assert "cuda_shared_memory" not in extensions


# -- misuse -------------------------------------------------------------------------------------------------------------

MOST = 2**64 - 1
USES = {
    "unknown": (from_region("q", 12), None, NOT_FOUND, "Unable to find shared memory region: 'q'"),
    "offset": (from_region("r", 12, 64), None, INVALID, "Invalid offset for shared memory region: 'r'"),
    "below 0": (from_region("r", 12, -4), None, INVALID, "Invalid offset for shared memory region: 'r'"),
    "size": (from_region("r", 65), None, INVALID, "Invalid offset + byte size for shared memory region: 'r'"),
    "offset and size": (from_region("r", 8, 60), None, INVALID, "Invalid offset + byte size for shared memory region: 'r'"),
    "overflow": (
        from_region("r", -1, 4),
        None,
        INVALID,
        f"Integer overflow detected: byte_size ({MOST}) + offset (4) exceeds maximum value ({MOST}) for region 'r'",
    ),
    "not what the shape says": (
        from_region("r", 16),
        None,
        INVALID,
        "[request id: id] input byte size mismatch for input 'x' for model 'm'. Expected 12, got 16",
    ),
    "unknown output": (from_region("r", 12), to_region("q", 12), NOT_FOUND, "Unable to find shared memory region: 'q'"),
    "output offset": (from_region("r", 12), to_region("r", 1, 64), INVALID, "Invalid offset for shared memory region: 'r'"),
    "output too small": (
        from_region("r", 12),
        to_region("r", 11, 20),
        INTERNAL,
        "shared memory size specified with the request for output 'y' (11 bytes) should be at least 12 bytes to hold the results",
    ),
}


@pytest.mark.parametrize("case", USES)
def test_a_use_that_fails(allowed: Server, segment: Segment, case: str) -> None:
    given, wanted, code, told = USES[case]
    path = segment(128, content=A)
    register(allowed, "r", path, 64)
    with fails(code, told):
        allowed.client.infer("m", [given], outputs=[wanted] if wanted else None, request_id="id")
    assert path.read_bytes() == A + bytes(116)
    assert goes_on(allowed)


def test_outputs_must_not_overlap(allowed: Server, segment: Segment) -> None:
    path = segment(64)
    register(allowed, "r", path, 64)
    register(allowed, "other", path, 32, 8)
    given = [tensor("x", [[1]]), tensor("a", [[2]])]
    with fails(INVALID, "outputs 'y' and 'b' overlap in shared memory"):
        allowed.client.infer("two", given, outputs=[to_region("r", 12), to_region("other", 4, name="b")])
    assert path.read_bytes() == bytes(64)
    allowed.client.infer("two", given, outputs=[to_region("r", 8), to_region("other", 4, name="b")])
    assert np.frombuffer(path.read_bytes(), np.int32)[:3].tolist() == [1, 0, 2]


def test_inputs_may_overlap(allowed: Server, segment: Segment) -> None:
    register(allowed, "r", segment(24, content=A + A), 24)
    answer = allowed.client.infer("two", [from_region("r", 12), from_region("r", 12, 4, name="a")])
    assert (answer.as_numpy("y").tolist(), answer.as_numpy("b").tolist()) == ([[0, 1, 2]], [[1, 2, 0]])


def test_inputs_are_bounded(allowed: Server, segment: Segment) -> None:
    path = segment(8)
    os.truncate(path, 1 << 31)  # holes, which cost nothing
    register(allowed, "r", path, 1 << 31)
    with fails(INVALID, "the inputs in shared memory have 2147483648 bytes, a request may have 2147483647"):
        allowed.client.infer("m", [from_region("r", 1 << 31)])


def test_a_segment_that_is_truncated_kills_nobody(allowed: Server, segment: Segment) -> None:
    path = segment(4096, content=A)
    register(allowed, "r", path, 4096)
    os.truncate(path, 8)
    told = (
        "shared memory region 'r' is shorter than it was when it was registered: the tensor ends at byte 12 of the segment "
        f"'/{path.name}', which has 8"
    )
    with fails(INVALID, told):
        allowed.client.infer("m", [from_region("r", 12)])
    with fails(INVALID, told):
        allowed.client.infer("m", [tensor("x", [[1, 2, 3]])], outputs=[to_region("r", 12)])
    assert path.stat().st_size == 8
    assert goes_on(allowed)
    os.truncate(path, 4096)
    assert allowed.client.infer("m", [from_region("r", 12)]).as_numpy("y").tolist() == [[0, 1, 0]]


@pytest.mark.parametrize("mischief", ["truncated", "unlinked", "unregistered"])
def test_what_happens_to_a_region_while_a_request_is_on_its_way(serve: Serve, segment: Segment, mischief: str) -> None:
    script = Script()
    server = serve({"m": (ECHO, script)}, allow_client_shm=True)
    path = segment(24, content=A)
    register(server, "r", path, 24)
    script.gate = gate = Gate()
    asked = Asked(server, "m", [from_region("r", 12)], outputs=[to_region("r", 12, 12)])
    gate.wait_for(1)
    with path.open("r+b") as kept:
        kept.write(bytes(12))  # the input was copied when the request came
        kept.flush()
        if mischief == "truncated":
            os.truncate(path, 0)
        elif mischief == "unlinked":
            path.unlink()
        else:
            server.client.unregister_system_shared_memory("r")
            with fails(NOT_FOUND, "Unable to find shared memory region: 'r'"):
                server.client.infer("m", [from_region("r", 12)])
            register(server, "r", path, 12)
        gate.open()
        if mischief == "truncated":
            with fails(INVALID, f"{SHORTER} 24 of the segment '/{path.name}', which has 0"):
                asked.result()
        else:
            asked.result()
            kept.seek(0)
            assert kept.read() == bytes(12) + A
    assert goes_on(server)


SHORTER = "shared memory region 'r' is shorter than it was when it was registered: the tensor ends at byte"


def test_descriptors_are_closed_when_nobody_needs_them(serve: Serve, segment: Segment) -> None:
    script = Script()
    server = serve({"m": (ECHO, script)}, allow_client_shm=True)
    path = segment(24, "closed", content=A)

    def is_open() -> bool:
        links = list(Path("/proc/self/fd").iterdir())
        return any(link.is_symlink() and os.fspath(path) in os.fspath(link.readlink()) for link in links)

    register(server, "r", path, 24)
    script.gate = gate = Gate()
    asked = Asked(server, "m", [tensor("x", [[1]])], outputs=[to_region("r", 12)])
    gate.wait_for(1)
    server.client.unregister_system_shared_memory()
    assert is_open()
    gate.open()
    asked.result()
    until(lambda: not is_open())
    register(server, "r", path, 24)
    with fails(
        INTERNAL,
        "shared memory size specified with the request for output 'y' (1 bytes) should be at least 4 bytes to hold the results",
    ):
        server.client.infer("m", [tensor("x", [[1]])], outputs=[to_region("r", 1)])
    server.client.unregister_system_shared_memory()
    gc.collect()  # a call that was aborted is a cycle of frames, in gRPC
    until(lambda: not is_open())
