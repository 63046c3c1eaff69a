"""Batch jobs: a graph run over a data set, exactly once.

```python
from headrace.jobs import BatchJob

BatchJob("embed", "models", "texts/*.parquet", "vectors").run()
```
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headrace.jobs.beginning import Server
    from headrace.jobs.job import BatchJob, Progress
    from headrace.jobs.manifest import Options
    from headrace.jobs.stage import Stage

__all__ = ["BatchJob", "Options", "Progress", "Server", "Stage"]


def __getattr__(name: str) -> Any:
    # Parts of this package are of use without the others, and pyarrow is not always there.
    if name in ("BatchJob", "Progress"):
        from headrace.jobs import job

        return getattr(job, name)
    if name == "Server":
        from headrace.jobs.beginning import Server

        return Server
    if name == "Options":
        from headrace.jobs.manifest import Options

        return Options
    if name == "Stage":
        from headrace.jobs.stage import Stage

        return Stage
    raise AttributeError(f"module 'headrace.jobs' has no attribute '{name}'")
