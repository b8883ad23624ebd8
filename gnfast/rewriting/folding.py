"""Convolution kernels folded with the average pooling after them or the nearest upsampling before them.

Functions of the weight, exact up to rounding (docs/algorithm.md, Rewrites) and differentiable any number of times. All
of them speak of a convolution with stride 1, dilation 1 and zero padding p.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch._C._functorch import is_legacy_batchedtensor

from gnfast.interop.surroundings import autocast_dtype, transform
from gnfast.kernels.backend import choices
from gnfast.kernels.layout import is_channels_last
from gnfast.kernels.operands import Fold, Form, gradients, prepare
from gnfast.kernels.operands.plain import folded, gradient

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
    """The kernel that `fold` describes, in the memory format and dtype of `weight`; on GPUs in autocast's, if on."""
    device = weight.device.type
    if choices("operands", device)[0] == "torch" or torch.compiler.is_compiling() or transform():
        return folded(weight, fold).to(weight.dtype)
    wide = weight.dtype == torch.float64
    dtype = weight.dtype if wide else autocast_dtype(device) or weight.dtype
    return _Folded.apply(weight, Form(dtype, fold, channels_last=is_channels_last(weight)))


class _Folded(torch.autograd.Function):
    """The fold of a kernel in one launch, and its gradient in another; further derivatives by PyTorch's operations."""

    @staticmethod
    def forward(ctx, weight: Tensor, form: Form) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.form = form
        return prepare([weight], [form])[0]

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        (weight,) = ctx.saved_tensors
        if torch.is_grad_enabled() or transform() or is_legacy_batchedtensor(grad):
            return gradient(grad, weight, ctx.form), None
        return gradients([grad], [weight], [ctx.form])[0], None
