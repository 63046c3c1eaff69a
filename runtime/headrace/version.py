"""The version. The kernels have the same, or are refused."""

__version__ = "0.1.0"
