"""What a Ray of one machine does without; `ray start` calls this by way of `RAY_START_HOOK`."""

from __future__ import annotations

from typing import Any


def slim(parameters: Any, head: bool) -> None:
    """Change the parameters (`ray._private.parameter.RayParams`) that a node is about to be started with.

    It has no server for Ray's client, which costs a process, and a port that another Ray may have. `ray start` has no option for
    that.
    """
    parameters.ray_client_server_port = None
