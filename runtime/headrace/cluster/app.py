"""The Serve application: `serve run headrace.cluster.app:app repository=/srv/models`, or `import_path` in a Serve YAML."""

from typing import Any

from ray.serve import Application

from headrace.cluster.replica import STOPPING_SECONDS, Headrace
from headrace.cluster.settings import ClusterConfig, Holding

# No `from __future__ import annotations` here: Serve looks at the annotation itself, to make one of these of the arguments.


def app(config: ClusterConfig) -> Application:
    """The application that `config` describes: one deployment, whose replicas serve the models of one repository.

    What Serve decides – how many replicas, where, with which resources – is said where Serve has it: `deployments` in the YAML.
    """
    patience = config.server.drain_grace + config.server.drain_seconds
    # Of those that listen at one address themselves, a node has one, and the next waits until it has gone.
    alone = {} if config.balancer else {"max_replicas_per_node": 1, "max_surge_percent": 0}
    deployment: Any = Headrace
    return deployment.options(
        **alone,
        user_config=Holding().model_dump(mode="json"),
        graceful_shutdown_timeout_s=patience + STOPPING_SECONDS,
    ).bind(config)
