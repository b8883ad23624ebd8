"""Batch norm in training of several batches in one tensor, then a gain, an offset and ReLU, and its gradients.

    mean, 1/σ   of each group of samples and channel, of x or of a sum that is made and written there;
                running averages go on, group after group                                           (statistics)
    x̂ = (x - mean)/σ,   y = max(x̂ · weight + bias, 0), or without the max                           (normalise)
    g = dy where y > 0,   dx = (weight · g - <weight · g> - x̂ · <weight · g · x̂>)/σ,
    d_weight = Σ g · x̂,   d_bias = Σ g                                                              (gradients)

with <> the mean over what shares its statistics. Of the forward only x, the means and 1/σ need be kept: the sign of y
comes from x again. Sums and what lies between reading and writing are float32, or float64 for float64.

x is (B, C, ...), groups · B' = B; weight and bias are None, (C,), or (B, C): one for each sample (class-conditional).
These functions are building blocks for autograd Functions and are not differentiable themselves.
"""

import functools
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from gnfast.errors import InputError
from gnfast.kernels.backend import implementation
from gnfast.kernels.layout import is_channels_last


class Running(NamedTuple):
    """Running averages, which `statistics` writes to."""

    mean: Tensor
    """(C,)"""
    var: Tensor
    """(C,), of the unbiased variance."""
    momentum: float
    """The weight of the first group's."""
    cumulative: bool = False
    """Whether `momentum` is 1/t, and 1/(t + 1) follows for the next group, so that all count the same."""


def fuses(device_type: str) -> bool:
    """Whether this is fewer kernels there than PyTorch's operations."""
    return implementation("batch_norm", device_type).FUSES


def statistics(
    x: Tensor,
    groups: int,
    eps: float,
    running: Running | None = None,
    more: Tensor | None = None,
    factor: tuple[int, int] = (1, 1),
) -> tuple[Tensor, Tensor, Tensor]:
    """x, the means, and 1/√(variance + eps), (groups, C) in the dtype of sums.

    Args:
        x: (B, C, ...)
        groups: how many equal parts of the batch have their own statistics.
        eps: what is added to variances.
        running: the averages that go on.
        more: what is added to x before; then that sum is returned, in x's dtype and the memory format of `normalise`.
        factor: how often each pixel of `more` is repeated, (B, C, H, W) then; (1, 1) where it has x's shape.

    Raises:
        InputError: x is no (B, C, ...) with B a multiple of `groups` and two values or more for each group and channel,
            or `more` does not fit it.
    """
    if x.dim() < 2 or len(x) % groups or x.numel() < 2 * groups * x.shape[1]:
        raise InputError(f"x: got {tuple(x.shape)}, wanted (B, C, ...) with {groups} equal parts of 2 values or more")
    if more is not None:
        repeats = (1, 1, *factor) if factor != (1, 1) else (1,) * more.dim()
        if more.dim() != len(repeats) or tuple(n * m for n, m in zip(more.shape, repeats, strict=True)) != x.shape:
            raise InputError(f"more: got {tuple(more.shape)} with factor {factor}, wanted {tuple(x.shape)} after that")
        x = _dense(x)
    results = implementation("batch_norm", x.device.type).statistics(x, groups, eps, running, more, factor)
    if running is not None:
        # Triton's writes are not counted by themselves.
        increment_version([t for t in running[:2] if not t.is_inference()])
    return results


def normalise(x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor | None, bias: Tensor | None, relu: bool) -> Tensor:
    """y, of `dtype_of` and the memory format of x (contiguous where that is neither contiguous nor channels_last)."""
    kernels, dtype = implementation("batch_norm", x.device.type), dtype_of(x, weight, bias)
    return kernels.normalise(_dense(x), mean, rstd, weight, bias, relu, dtype)


def dtype_of(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> torch.dtype:
    """Of y: that of x, or the wider one of a weight or bias for each sample, as PyTorch multiplies and adds those."""
    by_sample = (t.dtype for t in (weight, bias) if t is not None and t.dim() == 2)
    return functools.reduce(torch.promote_types, by_sample, x.dtype)


def gradients(
    dy: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor | None, bias: Tensor | None, relu: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """dx, d_weight and d_bias, in the dtypes and shapes of x, weight and bias, and dx in y's memory format.

    Args:
        dy: the gradient of y, in any memory format.
        x, mean, rstd, weight, bias, relu: those of `normalise`.
    """
    return implementation("batch_norm", x.device.type).gradients(dy, _dense(x), mean, rstd, weight, bias, relu)


def by_place(t: Tensor) -> Tensor:
    """(B, C, ...) as (B, C, places); a view of what is contiguous or channels_last."""
    return t.flatten(2) if t.dim() > 2 else t.unsqueeze(2)


def _dense(t: Tensor) -> Tensor:
    return t if is_channels_last(t) else t.contiguous()
