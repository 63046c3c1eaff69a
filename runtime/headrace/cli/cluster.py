"""`headrace up` and `headrace down`: a cluster on this machine."""

from __future__ import annotations

import secrets
import sys
import time
from importlib.util import find_spec
from pathlib import Path

from headrace.errors import InvalidCluster


def bring_up(file: Path | None, repository: Path | None, grpc: str | None, replicas: int | None) -> None:
    """Start what the file and the options say, and print where it is.

    Raises:
        HeadraceError: it cannot be started, or did not come up; nothing is left of it then.
    """
    if find_spec("ray") is None:
        raise InvalidCluster("a cluster needs Ray: pip install 'headrace[ray]'")
    from headrace.cluster import launch

    token = secrets.token_hex(32)
    launch.let_in(token)
    from headrace.cluster.plan import check, read_plan

    plan = read_plan(file, repository, grpc, replicas)
    launch.clear_dead(_say)
    check(plan)
    began = time.monotonic()
    cluster = launch.start(plan, token, _say)
    reached, ready = launch.addresses(cluster)
    _say(f"up after {time.monotonic() - began:.0f} s; its Ray: RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH={cluster.token_file}")
    print(f"ready grpc={','.join(reached)} replicas={ready} ray={cluster.ray_address}", flush=True)


def take_down() -> None:
    """End what `headrace up` started, and nothing else.

    Raises:
        InvalidCluster: it has started nothing.
    """
    from headrace.cluster import launch

    cluster = launch.started()
    if cluster is None:
        raise InvalidCluster(f"nothing was started by headrace up ({launch.record()} is not there)")
    launch.let_in(cluster.token)
    launch.stop(cluster, _say)


def _say(line: str) -> None:
    print(f"headrace: {line}", file=sys.stderr, flush=True)
