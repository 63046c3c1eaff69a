"""`headrace up` and `headrace down`: a cluster on this machine."""

from __future__ import annotations

import secrets
import sys
import time
from importlib.util import find_spec
from pathlib import Path

from headrace.errors import InvalidCluster


def bring_up(file: Path | None, repository: Path | None, grpc: str | None, replicas: int | None) -> None:
    """Start what the file and the options say, or bring the cluster that runs to it, and print where it is.

    Raises:
        HeadraceError: it cannot be started, or did not come up. Nothing is left of it then; of one that ran before, all.
    """
    if find_spec("ray") is None:
        raise InvalidCluster("a cluster needs Ray: pip install 'headrace[ray]'")
    from headrace.cluster import launch

    cluster = launch.started()
    if cluster is not None and not launch.is_alive(cluster):
        _say("ending what is left of a cluster that died")
        launch.stop(cluster, _say, gently=False)
        cluster = None
    token = cluster.token if cluster is not None else secrets.token_hex(32)
    launch.let_in(token)
    from headrace.cluster.plan import check, read_plan

    plan = read_plan(file, repository, grpc, replicas)
    check(plan, is_new=cluster is None)
    began = time.monotonic()
    if cluster is None:
        cluster = launch.start(plan, token, _say)
    else:
        launch.deploy(cluster, plan, _say)
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
