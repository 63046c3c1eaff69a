"""The native data plane of Headrace. What is here is documented in the stub of `_native`; use it through `headrace`."""

from headrace_kernels import _native
from headrace_kernels._native import (
    PROFILE,
    Batch,
    Buffer,
    Call,
    CallError,
    Channel,
    Kernel,
    KernelError,
    Load,
    Queue,
    Server,
    __version__,
    check_pattern,
    python_entries,
)

inject = getattr(_native, "inject", None)
"""`inject(point, count, delay_ns=0)` lets the next passes of a point panic, or take longer; None in builds without `faults`."""

__all__ = [
    "PROFILE",
    "Batch",
    "Buffer",
    "Call",
    "CallError",
    "Channel",
    "Kernel",
    "KernelError",
    "Load",
    "Queue",
    "Server",
    "__version__",
    "check_pattern",
    "inject",
    "python_entries",
]
