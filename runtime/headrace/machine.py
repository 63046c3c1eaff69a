"""What the machine gives this process: cores and memory, as limited by affinity and control groups."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Callable
from pathlib import Path

SWITCH_SECONDS = 0.0005
"""How long a thread keeps the interpreter that others want, where what they do is short: a tenth of Python's default."""

_CGROUPS = Path("/sys/fs/cgroup")


def usable_cpus() -> int:
    """How many cores this process can keep busy: its affinity, cut by the CPU quota of its control group. At least 1."""
    allowed = len(os.sched_getaffinity(0))
    quota = cpu_quota()
    return allowed if quota is None else max(1, min(allowed, math.ceil(quota)))


def cpu_model(told: Path = Path("/proc/cpuinfo")) -> str:
    """What the processor calls itself; where it has no name, as on many ARM machines, the numbers that tell its kind."""
    facts: dict[str, str] = {}
    try:
        for line in told.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            facts.setdefault(key.strip(), value.strip())
    except OSError:
        pass
    kinds = ("model name", "CPU implementer", "CPU variant", "CPU part", "CPU revision")
    return " ".join(facts[kind] for kind in kinds if facts.get(kind)) or platform.machine()


def cpu_quota() -> float | None:
    """The CPU quota of the control group in cores; None without one."""
    return _cgroup_limit("cpu.max", _cores)


def memory_limit() -> float | None:
    """The memory limit of the control group in bytes; None without one."""
    return _cgroup_limit("memory.max", lambda text: None if text == "max" else float(text))


def _cores(text: str) -> float | None:
    quota, period = text.split()
    return None if quota == "max" else int(quota) / int(period)


def _cgroup_limit(file: str, read: Callable[[str], float | None], root: Path = _CGROUPS) -> float | None:
    """The tightest limit on the way from this process's control group (version 2) to the root; None without one."""
    try:
        own = next(line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        return None
    group = root / own.strip("/")
    limits: list[float] = []
    for place in (group, *group.parents):
        if not place.is_relative_to(root):
            break
        try:
            limit = read((place / file).read_text().strip())
        except (OSError, ValueError):
            continue
        if limit is not None:
            limits.append(limit)
    return min(limits, default=None)
