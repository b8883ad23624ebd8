"""What the Triton kernels of several operations share. Imported when one is chosen, as Triton may be missing."""

import torch
import triton
import triton.language as tl

from gnfast.kernels.layout import accumulator


def acc_type(dtype: torch.dtype) -> tl.dtype:
    """Triton's name for the dtype of sums."""
    return tl.float64 if accumulator(dtype) == torch.float64 else tl.float32


@triton.jit
def rectified(s, positive, SLOPE: tl.constexpr):
    """s where positive, else slope · s. Slope 0 passes NaN on, as torch.relu does, and makes 0 of -inf, not NaN."""
    return tl.where(positive, s, tl.where(s != s, s, 0.0) if SLOPE == 0 else s * SLOPE)


@triton.jit
def masked(value, positive, SLOPE: tl.constexpr):
    """value where positive, else slope · value. Slope 0 selects, so that inf and NaN become 0."""
    return tl.where(positive, value, tl.zeros_like(value) if SLOPE == 0 else value * SLOPE)


@triton.jit
def chosen(pointers, item, COUNT: tl.constexpr):
    """One of a tuple of pointers to the same type, which Triton indexes by constants alone."""
    place = pointers[0].to(tl.int64)
    for k in tl.static_range(1, COUNT):
        place = tl.where(item == k, pointers[k].to(tl.int64), place)
    return place.to(tl.pointer_type(pointers[0].dtype.element_ty))
