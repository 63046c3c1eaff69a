"""Whether the native data plane is here, and whether it is the right one. The one place that knows.

`headrace_kernels` is a package of its own: Headrace runs without it, on the portable transport. A version that is not ours is
refused rather than passed over, because whoever installed it wants it.
"""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from types import ModuleType

from headrace.errors import KernelsUnusable
from headrace.version import __version__

_MODULE = "headrace_kernels"


def are_installed() -> bool:
    """Whether there are kernels, of whatever version."""
    return find_spec(_MODULE) is not None


def load() -> ModuleType:
    """The module `headrace_kernels`.

    Raises:
        KernelsUnusable: it is not installed, does not load, or is of another version; the message says what to do.
    """
    try:
        module = importlib.import_module(_MODULE)
    except ModuleNotFoundError as error:
        if error.name != _MODULE:
            raise _unusable(error) from error
        raise KernelsUnusable(
            "the native transport is not installed: run `make kernels` in a clone, or pip install "
            f"headrace-kernels=={__version__}; --transport portable does without"
        ) from None
    except ImportError as error:
        raise _unusable(error) from error
    if module.__version__ != __version__:
        raise KernelsUnusable(
            f"headrace {__version__} needs headrace-kernels {__version__}, and {module.__version__} is installed: run "
            f"`make kernels` in a clone, or pip install headrace-kernels=={__version__}; --transport portable does without"
        )
    return module


def _unusable(error: ImportError) -> KernelsUnusable:
    return KernelsUnusable(
        f"headrace-kernels is installed and does not load ({error}): install it again, or use --transport portable"
    )
