"""What becomes a tensor."""

from __future__ import annotations

from headrace.tensor import BytesTensor, as_tensor


def test_bytes_of_lists_are_kept_to_the_last_zero() -> None:
    """Numpy's own bytes would end at the last that is not zero."""
    tensor = as_tensor([[b"a\0\0"], [b"\0"]])
    assert isinstance(tensor, BytesTensor)
    assert tensor.objects().tolist() == [[b"a\0\0"], [b"\0"]]
