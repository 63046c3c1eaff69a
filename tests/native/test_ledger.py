from __future__ import annotations

import os
from pathlib import Path

import pytest

from headrace import kernels
from headrace.ledger.records import BATCHES, REQUESTS
from headrace.ledger.ring import HEADER_BYTES, make_ring_file


def test_kernels_refuse_what_is_no_ring_of_theirs(tmp_path: Path) -> None:
    kernel = kernels.load().Kernel()
    descriptors = [make_ring_file(tmp_path / str(n), layout, 8) for n, layout in enumerate((REQUESTS, BATCHES))]
    try:
        with pytest.raises(OSError, match="another size"):
            kernel.share_records(descriptors[1], descriptors[0])
        os.truncate(descriptors[1], HEADER_BYTES - 1)
        with pytest.raises(OSError, match="too short"):
            kernel.share_records(*descriptors)
        with pytest.raises(ValueError, match="below 0"):
            kernel.share_records(-1, descriptors[1])
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
        kernel.close()
