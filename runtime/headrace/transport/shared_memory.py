"""The six calls about shared memory. Regions are the engine's; here is what the protocol says of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from google.protobuf.message import Message

from headrace.engine.regions import Regions
from headrace.errors import RegionNotFound, Unsupported, WrongRegion
from headrace.protocol import headrace_pb2 as pb


class SharedMemoryCalls:
    """Answers them.

    Args:
        regions: the registered regions.
        is_allowed: whether clients may register some. A client of this machine could otherwise read and write those of others.
    """

    def __init__(self, regions: Regions, *, is_allowed: bool) -> None:
        self._regions, self._is_allowed = regions, is_allowed

    @property
    def answers(self) -> dict[str, tuple[type[Message], Callable[[Any], Message]]]:
        """Request types and answers, by method."""
        return {
            "SystemSharedMemoryStatus": (pb.SystemSharedMemoryStatusRequest, self._status),
            "SystemSharedMemoryRegister": (pb.SystemSharedMemoryRegisterRequest, self._register),
            "SystemSharedMemoryUnregister": (pb.SystemSharedMemoryUnregisterRequest, self._unregister),
            "CudaSharedMemoryStatus": (pb.CudaSharedMemoryStatusRequest, self._cuda_status),
            "CudaSharedMemoryRegister": (pb.CudaSharedMemoryRegisterRequest, self._cuda_register),
            "CudaSharedMemoryUnregister": (pb.CudaSharedMemoryUnregisterRequest, self._cuda_unregister),
        }

    def _status(self, request: pb.SystemSharedMemoryStatusRequest) -> Message:
        found = [region for region in self._regions.registered() if request.name in ("", region.name)]
        if request.name and not found:
            raise RegionNotFound(request.name, "system shared memory")
        message = pb.SystemSharedMemoryStatusResponse()
        for region in found:
            told = message.regions[region.name]
            told.name, told.key, told.offset, told.byte_size = region.name, region.key, region.offset, region.byte_size
        return message

    def _register(self, request: pb.SystemSharedMemoryRegisterRequest) -> Message:
        self._check_allowed()
        self._regions.map_region(request.name, request.key, request.offset, request.byte_size)
        return pb.SystemSharedMemoryRegisterResponse()

    def _unregister(self, request: pb.SystemSharedMemoryUnregisterRequest) -> Message:
        self._check_allowed()
        self._regions.unmap_region(request.name)
        return pb.SystemSharedMemoryUnregisterResponse()

    # CUDA memory cannot be registered here, so there is none to tell of, and none to forget.

    def _cuda_status(self, request: pb.CudaSharedMemoryStatusRequest) -> Message:
        if any(region.name == request.name for region in self._regions.registered()):
            raise WrongRegion(request.name, "system", "CUDA")
        if request.name:
            raise RegionNotFound(request.name, "cuda shared memory")
        return pb.CudaSharedMemoryStatusResponse()

    def _cuda_register(self, request: pb.CudaSharedMemoryRegisterRequest) -> Message:
        self._check_allowed()
        raise Unsupported(f"failed to register CUDA shared memory region: '{request.name}', GPUs not supported")

    def _cuda_unregister(self, request: pb.CudaSharedMemoryUnregisterRequest) -> Message:
        self._check_allowed()
        return pb.CudaSharedMemoryUnregisterResponse()

    def _check_allowed(self) -> None:
        if not self._is_allowed:
            raise Unsupported("Client shared memory is disabled. Start the server with '--allow-client-shm=true' to enable.")
