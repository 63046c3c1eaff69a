"""Headrace: an inference runtime for ONNX model graphs, on one edge box or a Ray cluster.

```python
from headrace import Engine

with Engine("models") as engine:
    answer = engine.infer("mlp", {"x": rows})
```
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headrace.version import __version__

if TYPE_CHECKING:
    from headrace.engine.engine import Engine, ModelControl
    from headrace.models.graphs import Graph

__all__ = ["Engine", "Graph", "ModelControl", "__version__"]


def __getattr__(name: str) -> Any:
    # Importing the package costs nothing that a use of it does not need.
    if name in ("Engine", "ModelControl"):
        from headrace.engine import engine

        return getattr(engine, name)
    if name == "Graph":
        from headrace.models.graphs import Graph

        return Graph
    raise AttributeError(f"module 'headrace' has no attribute '{name}'")
