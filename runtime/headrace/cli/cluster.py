"""`headrace up` and `headrace down`: a cluster on this machine."""

from __future__ import annotations

import secrets
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from headrace.errors import InvalidCluster


def up(
    file: Annotated[
        Path | None, typer.Argument(metavar="CLUSTER.yaml", help="As for serve deploy; see configs/cluster.", show_default=False)
    ] = None,
    cluster: Annotated[bool, typer.Option("--cluster", help="Several replicas behind a balancer, on Ray.")] = False,
    repository: Annotated[Path | None, typer.Option("--repository", "-r", metavar="DIR", help="The folder of models.")] = None,
    grpc: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Where clients come. [127.0.0.1:8001]")] = None,
    replicas: Annotated[int | None, typer.Option(metavar="N", min=1, help="How many processes serve. [1]")] = None,
) -> None:
    """Start a cluster on this machine: Ray, replicas, and a balancer in front of them. It runs until `headrace down`.

    Once more, it brings the cluster that runs to what the file says now, replica by replica, while requests are answered.
    Prints one line on stdout when it is ready, such as `ready grpc=HOST:PORT replicas=2 ray=HOST:PORT`.

    \b
    Examples:
      headrace up --cluster --repository models --replicas 2
      headrace up --cluster configs/cluster/local.yaml --repository models --grpc 0.0.0.0:8001
    """
    if not cluster:
        raise InvalidCluster("headrace up starts a cluster: say --cluster; a single server is started by headrace serve")
    if find_spec("ray") is None:
        raise InvalidCluster("a cluster needs Ray: pip install 'headrace[ray]'")
    from headrace.cluster import launch

    known = launch.started()
    if known is not None and not launch.is_alive(known):
        _say("ending what is left of a cluster that died")
        launch.stop(known, _say, gently=False)
        known = None
    token = known.token if known is not None else secrets.token_hex(32)
    launch.let_in(token)
    from headrace.cluster.plan import check, read_plan

    plan = read_plan(file, repository, grpc, replicas)
    if known is not None and plan.app != known.app:
        raise InvalidCluster(f"the application '{known.app}' runs here; headrace down ends it, then '{plan.app}' can be started")
    check(plan, is_new=known is None)
    began = time.monotonic()
    if known is None:
        known = launch.start(plan, token, _say)
    else:
        launch.deploy(known, plan, _say)
    reached, ready = launch.addresses(known)
    _say(f"up after {time.monotonic() - began:.0f} s; its Ray: RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH={known.token_file}")
    print(f"ready grpc={','.join(reached)} replicas={ready} ray={known.ray_address}", flush=True)


def down() -> None:
    """End the cluster that `headrace up` started: requests under way are answered first. Any other Ray is left alone.

    \b
    Example:
      headrace down
    """
    from headrace.cluster import launch

    cluster = launch.started()
    if cluster is None:
        raise InvalidCluster(f"nothing was started by headrace up ({launch.record()} is not there)")
    if launch.is_alive(cluster):
        launch.let_in(cluster.token)
    launch.stop(cluster, _say)


def _say(line: str) -> None:
    print(f"headrace: {line}", file=sys.stderr, flush=True)
