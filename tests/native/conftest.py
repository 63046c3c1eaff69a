"""Tests of what only the native transport has. Without kernels there is nothing to collect; `make test` knows of that."""

from __future__ import annotations

from headrace import kernels

collect_ignore_glob = [] if kernels.are_installed() else ["test_*.py"]
