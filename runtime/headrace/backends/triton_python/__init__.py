"""Models that are written for Triton's Python backend, run unchanged in processes of their own: see docs/python-models.md.

In the server: `session.py`, `process.py`, `calls.py`. In the process of a model: `worker.py`, and `api.py`, which a `model.py`
imports as `triton_python_backend_utils`.
"""
