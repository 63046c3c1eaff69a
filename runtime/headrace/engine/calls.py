"""One call at a time on all cores, or one call a core on one thread each: what measuring the difference takes."""

from __future__ import annotations

import threading

from headrace.backends.base import Batch, Device, Session
from headrace.backends.registry import Backends
from headrace.clock import SECOND, Clock
from headrace.engine.lifecycle import Opened
from headrace.machine import usable_cpus
from headrace.protocol.headrace_pb2 import ModelConfig, ModelInstanceGroup

_THREADS = "intra_op_thread_count"


def can_compare(opened: Opened, most_bytes: int) -> bool:
    """Whether a version leaves open how it is called, and its weights may be in memory twice: up to `most_bytes`."""
    config = opened.config
    accelerators = config.optimization.execution_accelerators
    return (
        config.backend == "onnxruntime"
        and usable_cpus() > 1
        and opened.spec.instances == 1
        and config.instance_group[0].kind == ModelInstanceGroup.KIND_CPU
        and not accelerators.cpu_execution_accelerator
        and (_THREADS not in config.parameters or config.parameters[_THREADS].string_value.strip() in ("", "0"))
        and opened.version.nbytes <= most_bytes
    )


def on_one_thread(opened: Opened, backends: Backends) -> Session:
    """A second session of a version, whose runs have one thread each.

    Raises:
        InvalidRepository: it cannot be loaded.
    """
    config = ModelConfig()
    config.CopyFrom(opened.config)
    config.parameters[_THREADS].string_value = "1"
    return backends.get(config.backend, config.name).load(opened.version.path, config, Device())


def rows_per_second(session: Session, batch: Batch, threads: int, times: int, clock: Clock) -> float:
    """The rate at which so many threads, each calling `times` times, get `batch` done."""
    start = threading.Barrier(threads)
    failures: list[Exception] = []

    def call() -> None:
        try:
            start.wait()
            for _ in range(times):
                session.run(batch)
        except Exception as error:
            failures.append(error)

    others = [threading.Thread(target=call, name="headrace-probe-call", daemon=True) for _ in range(threads - 1)]
    for other in others:
        other.start()
    began = clock.now()
    call()
    for other in others:
        other.join()
    if failures:
        raise failures[0]
    return threads * times * batch.rows * SECOND / max(1, clock.now() - began)
