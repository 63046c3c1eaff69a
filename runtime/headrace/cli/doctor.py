"""`headrace doctor`: what this machine can do, and what is missing."""

from __future__ import annotations

import json as jsonlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec

from headrace import kernels
from headrace.backends.installed import check_onnxruntime, onnxruntime_builds
from headrace.errors import HeadraceError, KernelsUnusable
from headrace.machine import cpu_quota, memory_limit
from headrace.transport.ways import chosen_transport

EXTRAS = {"triton": ("tritonclient", "the client, for tests and the demo"), "ray": ("ray", "clusters and distributed jobs")}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `ok` is None where there is nothing to judge; `remedy` is what to do when it is False."""

    topic: str
    found: str
    ok: bool | None = None
    remedy: str = ""


def show_findings(*, json: bool) -> int:
    """Print what was found; the exit status, 1 when something that serving needs is missing."""
    findings = list(examine())
    well = all(finding.ok is not False for finding in findings)
    if json:
        jsonlib.dump({"ok": well, "findings": [asdict(finding) for finding in findings]}, sys.stdout, indent=2)
        print()
    else:
        _print_findings(findings)
    return 0 if well else 1


def examine() -> Iterator[Finding]:
    """Look at everything; each finding stands alone, so one that cannot be made does not hide the others."""
    yield Finding("python", f"{platform.python_version()}, {platform.machine()}")
    yield from _onnxruntime()
    yield Finding("gpus", ", ".join(_gpus()) or "none")
    yield Finding("cpus", _told_cpus())
    yield Finding("memory", _told_memory())
    yield Finding("shared memory", _told_shared_memory())
    yield _transport()
    for extra, (module, use) in EXTRAS.items():
        there = find_spec(module) is not None
        yield Finding(f"extra {extra}", "installed" if there else f"not installed ({use}): pip install 'headrace[{extra}]'")


def _onnxruntime() -> Iterator[Finding]:
    try:
        check_onnxruntime()
        from headrace.backends import onnx  # the one module that may import ONNX Runtime
    except (HeadraceError, ImportError) as error:
        yield Finding("onnxruntime", str(error), False, "have exactly one of the extras: pip install 'headrace[cpu]', or [gpu]")
        return
    builds = ", ".join(f"{name} {version}" for name, version in onnxruntime_builds().items())
    yield Finding("onnxruntime", builds or f"{onnx.ort.__version__}, a build of its own", True)
    providers = onnx.execution_providers()
    yield Finding("execution providers", ", ".join(providers), "CPUExecutionProvider" in providers, "reinstall onnxruntime")


def _transport() -> Finding:
    try:
        chosen = chosen_transport("auto")
    except KernelsUnusable as error:
        return Finding("transport", str(error), False, "install the kernels that belong to this version, or remove them")
    except HeadraceError as error:
        return Finding("transport", str(error), False, "pip install headrace again: it brings grpcio")
    if chosen == "native":
        build = kernels.load()
        return Finding("transport", f"auto takes native (headrace-kernels {build.__version__}, {build.PROFILE} build)", True)
    return Finding("transport", "auto takes portable; the native one is not installed (make kernels)", True)


def _gpus() -> list[str]:
    """The NVIDIA GPUs as the driver's tool names them."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    query = [tool, "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return [f"nvidia-smi fails: {error}"]
    return [" ".join(line.split()) for line in answer.stdout.splitlines() if line.strip()]


def _told_cpus() -> str:
    usable, limit = len(os.sched_getaffinity(0)), cpu_quota()
    told = f"{usable} of {os.cpu_count()} usable"
    return told if limit is None else f"{told}, limited to {limit:g} by the control group"


def _told_memory() -> str:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = memory_limit()
    told = _gibibytes(total)
    return told if limit is None or limit >= total else f"{told}, limited to {_gibibytes(limit)} by the control group"


def _told_shared_memory() -> str:
    try:
        usage = shutil.disk_usage("/dev/shm")
    except OSError:
        return "no /dev/shm"
    return f"/dev/shm {_gibibytes(usage.total)}, {_gibibytes(usage.free)} free"


def _gibibytes(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"


def _print_findings(findings: list[Finding]) -> None:
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False, soft_wrap=True)
    marks = {True: "[green]ok[/green]     ", False: "[red]missing[/red]", None: "       "}
    for finding in findings:
        console.print(f"{marks[finding.ok]} {finding.topic:<20} {escape(finding.found)}")
        if finding.ok is False:
            console.print(f"{'':28} [bold]{escape(finding.remedy)}[/bold]")
