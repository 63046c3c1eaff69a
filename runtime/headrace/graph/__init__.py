"""Graphs: checked, cut into segments, and run."""
