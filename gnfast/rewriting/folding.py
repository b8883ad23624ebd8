"""Convolution kernels folded with the average pooling after them or the nearest upsampling before them.

Functions of the weight, exact up to rounding (docs/algorithm.md, Rewrites) and differentiable any number of times. All
of them speak of a convolution with stride 1, dilation 1 and zero padding p.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Pair = tuple[int, int]


def fold_pays(kernel: Sequence[int], factor: Pair) -> bool:
    """Whether a fold by m takes fewer products than a k×k convolution at the larger resolution: (k + m - 1)² < k² m².

    Per pixel of the smaller map and pair of channels. False for 1×1 kernels, which commute with both instead.
    """
    return math.prod(k + m - 1 for k, m in zip(kernel, factor, strict=True)) < math.prod(kernel) * math.prod(factor)


def fold_avg_pool(weight: Tensor, pool: Pair) -> Tensor:
    """The kernel of `avg_pool2d(conv2d(x, weight, padding=p), pool)` as one convolution with stride `pool`, padding p.

    The mean of `weight` (C_out, C_in / groups, kH, kW) at the mH mW shifts: (..., kH + mH - 1, kW + mW - 1), computed
    in float32 or better, in the dtype and memory format of `weight`. The bias stays.
    """
    return _windows(weight, pool, divisor=None)


def fold_upsample(weight: Tensor, factor: Pair, groups: int = 1) -> Tensor:
    """The kernel of `conv2d(upsample_nearest(x, factor), weight, padding=p)` as one transposed convolution.

    That is `conv_transpose2d` with stride `factor`, padding k - 1 - p (so p <= k - 1) and the same bias and groups.
    Flipped sums of `weight` at the mH mW shifts, (C_in, C_out / groups, kH + mH - 1, kW + mW - 1), as for
    `fold_avg_pool`.
    """
    flipped = _windows(weight, factor, divisor=1).flip(2, 3)
    swapped = flipped.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
    return swapped.contiguous(memory_format=_memory_format(weight))


def _windows(weight: Tensor, size: Pair, divisor: int | None) -> Tensor:
    """Sums (divisor 1) or means (None) over all windows that touch the kernel."""
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    height, width = (m - 1 for m in size)
    if max(size) > 2:
        # avg_pool2d itself pads by half a window at most.
        wide = F.pad(wide, (width, width, height, height))
        height = width = 0
    windows = F.avg_pool2d(wide, size, stride=1, padding=(height, width), divisor_override=divisor)
    return windows.to(weight.dtype).contiguous(memory_format=_memory_format(weight))


def _memory_format(weight: Tensor) -> torch.memory_format:
    # A contiguous weight may pass for channels_last as well (one channel, or 1×1 kernels), but not the folded one.
    if weight.is_contiguous() or not weight.is_contiguous(memory_format=torch.channels_last):
        return torch.contiguous_format
    return torch.channels_last
