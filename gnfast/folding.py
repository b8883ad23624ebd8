"""Convolution kernels that do the work of a convolution and of its neighbour (docs/algorithm.md, Rewrites)."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Pair = tuple[int, int]


def fold_avg_pool(weight: Tensor, pool: Pair) -> Tensor:
    """The kernel of a convolution with stride `pool` that equals a convolution followed by average pooling.

    Args:
        weight: (C_out, C_in / groups, kH, kW) of a convolution with stride 1 and dilation 1.
        pool: (mH, mW), kernel and stride of the pooling.

    Returns:
        (C_out, C_in / groups, kH + mH - 1, kW + mW - 1): the mean of the kernel at the window's shifts, computed in
        float32 or better. The padding stays what it was.
    """
    return _window_sums(weight, pool, pool[0] * pool[1])


def fold_upsample(weight: Tensor, factor: Pair, groups: int = 1) -> Tensor:
    """The kernel of a transposed convolution with stride `factor` that equals nearest upsampling and a convolution.

    Args:
        weight: (C_out, C_in / groups, kH, kW) of a convolution with stride 1, dilation 1 and padding p ≤ k - 1.
        factor: (mH, mW) of the upsampling.
        groups: of the convolution, and of the transposed one.

    Returns:
        (C_in, C_out / groups, kH + mH - 1, kW + mW - 1): the flipped sums of the kernel at the window's shifts,
        computed in float32 or better. The padding becomes k - 1 - p.
    """
    sums = _window_sums(weight, factor, 1).flip(2, 3)
    out_channels, in_channels, height, width = sums.shape
    per_group = sums.reshape(groups, out_channels // groups, in_channels, height, width)
    return per_group.transpose(1, 2).reshape(groups * in_channels, out_channels // groups, height, width)


def fold_pays(kernel: Sequence[int], factor: Sequence[int]) -> bool:
    """Whether the folded convolution takes fewer products per pixel than the two operations."""
    return math.prod(k + m - 1 for k, m in zip(kernel, factor, strict=True)) < math.prod(kernel) * math.prod(factor)


def _window_sums(weight: Tensor, window: Pair, divisor: int) -> Tensor:
    """Sums over all windows that touch the kernel, over `divisor`."""
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    (height, width) = (extent - 1 for extent in window)
    padded = F.pad(wide, (width, width, height, height))
    return F.avg_pool2d(padded, window, stride=1, divisor_override=divisor).to(weight.dtype)
