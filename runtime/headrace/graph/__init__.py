"""Graphs: nodes over named tensors, compiled into segments."""
