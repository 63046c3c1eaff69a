"""`headrace models`: load everything as a server would, and say what came of it."""

from __future__ import annotations

import json as jsonlib
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.model import State
from headrace.server.logs import configure_logs
from headrace.tensor import TensorSpec, format_shape

if TYPE_CHECKING:
    from headrace.engine.engine import Engine, ModelStatus
    from headrace.engine.profiles import Profiles


def load_all(repository: Path, names: Sequence[str] = (), profiles: Profiles | None = None) -> Engine:
    """An engine, to be used in a `with`, that holds the models of these names, or all of them, and serves none.

    Raises:
        InvalidRepository: there is no repository at that path; or, when it starts, no model of such a name.
    """
    from headrace.engine.engine import Engine, ModelControl

    configure_logs("error", "text")
    logging.getLogger("headrace").setLevel(logging.CRITICAL)  # why a model is broken is in the list, once
    control = ModelControl("explicit", tuple(names)) if names else ModelControl()
    return Engine(repository, control=control, profiles=profiles)


def show_models(repository: Path, names: Sequence[str] = (), *, json: bool) -> int:
    """Print what is in `repository`; the exit status, 1 when a model is broken.

    Raises:
        InvalidRepository: there is no repository at that path, or no model of such a name.
    """
    with load_all(repository, names) as engine:
        statuses = engine.statuses()
    if json:
        jsonlib.dump([_record(status) for status in statuses], sys.stdout, indent=2)
        print()
    else:
        _print_table(statuses)
    return 1 if any(is_broken(status) for status in statuses) else 0


def is_broken(status: ModelStatus) -> bool:
    """Whether the model, or this version of it, did not come up."""
    return status.state is not State.READY


def _record(status: ModelStatus) -> dict[str, Any]:
    spec = status.spec
    record: dict[str, Any] = {
        "model": status.model,
        "version": status.version,
        "state": status.state.value,
        "reason": status.reason,
        "filled": list(status.filled),
        "warnings": list(status.warnings),
    }
    if spec is not None:
        record |= {
            "digest": spec.digest,
            "backend": spec.backend,
            "max_batch_size": spec.max_batch_size,
            "inputs": [_tensor_record(tensor) for tensor in spec.inputs],
            "outputs": [_tensor_record(tensor) for tensor in spec.outputs],
        }
    return record


def _tensor_record(tensor: TensorSpec) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": tensor.datatype, "dims": list(tensor.dims), "optional": tensor.optional}


def _print_table(statuses: Sequence[ModelStatus]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    table = Table("model", "version", "digest", "backend", "batch", "inputs", "outputs", "filled in", "state", box=None)
    for status in statuses:
        spec = status.spec
        facts = ["", "", "", "", ""]
        if spec is not None:
            facts = [spec.digest[:12], spec.backend, str(spec.max_batch_size), _tensors(spec.inputs), _tensors(spec.outputs)]
        state = f"[red]{status.state.value}[/red]" if is_broken(status) else status.state.value
        version = "" if status.version is None else str(status.version)
        table.add_row(*map(escape, [status.model, version, *facts, ", ".join(status.filled)]), state)
    console.print(table)
    for status in statuses:
        name = status.model if status.version is None else f"{status.model} {status.version}"
        if is_broken(status):
            console.print(f"[red]{escape(name)} is broken:[/red] {escape(' '.join(status.reason.split()))}", soft_wrap=True)
        for warning in status.warnings:
            console.print(f"[yellow]{escape(name)}:[/yellow] {escape(warning)}", soft_wrap=True)


def _tensors(tensors: Sequence[TensorSpec]) -> str:
    return "\n".join(f"{tensor.name} {tensor.datatype} {format_shape(tensor.dims)}" for tensor in tensors)
