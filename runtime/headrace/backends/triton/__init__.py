"""Models that a Triton elsewhere runs. The only package that imports tritonclient."""
