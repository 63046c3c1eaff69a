"""Measurements: interleaved runs of rivals on one machine, their results committed with machine, versions and commit."""
