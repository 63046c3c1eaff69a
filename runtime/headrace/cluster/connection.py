"""The Ray that a batch job works on: one that is there, or one of its own, as slim as it goes."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError

from headrace.backends.installed import usable_gpus
from headrace.cluster.plan import OBJECT_STORE_BYTES, check_shared_memory
from headrace.errors import InvalidJob, JobFailed, sentence
from headrace.machine import usable_cpus

_LISTEN_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Actors:
    """How many actors work on a job, and what Ray sets aside for each on its node.

    `count` None is as many as there is room for; `cpus` None is 1, or what a batch of the job that goes on has threads.
    """

    count: int | None = None
    cpus: int | None = None
    gpus: float = 0


def room_for(wanted: Actors) -> int:
    """How many actors Ray has room for, those of others and nodes that it may yet start not counted in; at least 1."""
    there = ray.cluster_resources()
    room = [there.get("CPU", 0) / (wanted.cpus or 1)] + ([there.get("GPU", 0) / wanted.gpus] if wanted.gpus else [])
    return max(1, int(min(room)))


@contextmanager
def connected(wanted: Actors) -> Iterator[None]:
    """Be connected to the Ray of this process, of RAY_ADDRESS, or one that ends when this is left. See `batch.RayJob`.

    Raises:
        InvalidJob: this machine has less than an actor takes. JobFailed: Ray does not answer, or does not start.
    """
    if ray.is_initialized():
        yield
        return
    directory = None
    told: dict[str, Any] = {"address": os.environ.get("RAY_ADDRESS")}
    if told["address"]:
        _see_that_somebody_listens(told["address"])
    else:
        told, directory = _of_its_own(wanted), tempfile.mkdtemp(prefix="headrace-")
        told["_temp_dir"] = directory
    logging.getLogger("ray").setLevel(logging.ERROR)
    is_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM) if is_main else None
    try:
        try:
            ray.init(**told, namespace="headrace", configure_logging=False, log_to_driver=False)
        except (ConnectionError, RuntimeError, ValueError, RayError) as error:
            raise JobFailed(f"Ray does not answer, or does not start: {sentence(error)}") from None
        if handler is not None:
            signal.signal(signal.SIGTERM, handler)  # Ray has put its own there
        yield
    finally:
        ray.shutdown()
        if directory is not None:
            with suppress(OSError):
                shutil.rmtree(directory)


def _see_that_somebody_listens(address: str) -> None:
    """Ray itself waits for minutes, and then ends this process. Of what is no HOST:PORT it says itself what is wrong.

    Raises:
        JobFailed: nobody does.
    """
    host, _, port = address.rpartition(":")
    if not port.isdecimal() or "/" in host:
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), _LISTEN_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise JobFailed(
            f"no Ray answers at {address}, which RAY_ADDRESS says: {getattr(error, 'strerror', None) or error}"
        ) from None


def _of_its_own(wanted: Actors) -> dict[str, Any]:
    """How a Ray of this machine is started: with as many CPUs as the actors take.

    Raises:
        InvalidJob: this machine has less than one of them takes.
    """
    cpus = wanted.cpus or 1
    for what, each, there in (("CPUs", cpus, usable_cpus()), ("GPUs", wanted.gpus, usable_gpus())):
        if each > there:
            raise InvalidJob(
                f"an actor is to have {each:g} {what}, and this machine has {there}: give it less, or set RAY_ADDRESS"
            )
    check_shared_memory()
    return {
        "address": "local",
        "num_cpus": (wanted.count or usable_cpus() // cpus) * cpus,
        "object_store_memory": OBJECT_STORE_BYTES,
        "include_dashboard": False,
    }
