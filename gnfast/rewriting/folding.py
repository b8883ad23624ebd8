"""Convolution kernels folded with the average pooling after them or the nearest upsampling before them.

Functions of the weight, exact up to rounding (docs/algorithm.md, Rewrites) and differentiable any number of times. All
of them speak of a convolution with stride 1, dilation 1 and zero padding p.
"""

import math
from collections.abc import Sequence

from torch import Tensor

from gnfast.kernels.operands import Fold
from gnfast.kernels.operands.plain import folded

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
    return fold_kernel(weight, Fold(pool))


def fold_upsample(weight: Tensor, factor: Pair, groups: int = 1) -> Tensor:
    """The kernel of `conv2d(upsample_nearest(x, factor), weight, padding=p)` as one transposed convolution.

    That is `conv_transpose2d` with stride `factor`, padding k - 1 - p (so p <= k - 1) and the same bias and groups.
    Flipped sums of `weight` at the mH mW shifts, (C_in, C_out / groups, kH + mH - 1, kW + mW - 1), as for
    `fold_avg_pool`.
    """
    return fold_kernel(weight, Fold(factor, mean=False, transposed=groups))


def fold_kernel(weight: Tensor, fold: Fold) -> Tensor:
    """The kernel that `fold` describes, in the dtype and memory format of `weight`."""
    return folded(weight, fold).to(weight.dtype)
