"""What merges with what. `RULES` has, for each function, what to do instead.

Convolutions, nearest upsamplings and sums of such are put off, and those who can, merge with them:

    conv k×k, then avg_pool m×m             one convolution with stride m (folding.py)
    conv 1×1, then avg_pool m×m             the pooling first
    sum of such, then avg_pool m×m          the sum of the pooled terms
    upsample m×m, then conv k×k             one transposed convolution with stride m (folding.py)
    upsample m×m, then conv 1×1             the convolution first

What is computed in the end is Winograd's algorithm where that serves (products.py).

A rule has the signature of its function. It returns a tensor, a `Deferred` that states one, or NotImplemented where the
arguments give no reason to do anything but what is stated.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gnfast.rewriting.deferred import Deferred, defer, real
from gnfast.rewriting.folding import Pair, fold_avg_pool, fold_pays, fold_upsample
from gnfast.rewriting.winograd import convolution


@dataclass(frozen=True)
class Conv:
    """x (B, C_in, H, W), weight, bias ↦ their convolution with stride 1."""

    padding: Pair
    groups: int

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _convolve(x, weight, bias, (1, 1), self.padding, self.groups)


@dataclass(frozen=True)
class Upsample:
    """x (B, C, H, W) ↦ (B, C, mH H, mW W), each pixel repeated, in `dtype` whatever autocast prefers."""

    factor: Pair
    dtype: torch.dtype

    def __call__(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=[float(m) for m in self.factor]).to(self.dtype)


@dataclass(frozen=True)
class Sum:
    """a, b ↦ a + b, of equal shape and dtype."""

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        return a + b


def _conv2d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    upsampled = input if _is_stated(input, Upsample) else None
    x = real(input) if upsampled is None else upsampled.parts[0]
    operands = [x, weight] if bias is None else [x, weight, bias]
    if not _plain(*operands) or x.dim() != 4 or weight.dim() != 4:
        return NotImplemented
    if _pair(stride) + _pair(dilation) != (1, 1, 1, 1):
        return _unmerged(real(input), weight, bias, stride, padding, dilation, groups)
    kernel = tuple(weight.shape[2:])
    if padding == "same" and all(k % 2 for k in kernel):
        padding = tuple(k // 2 for k in kernel)
    elif padding == "valid":
        padding = 0
    if isinstance(padding, str):
        return NotImplemented
    padding, dtypes = _pair(padding), {t.dtype for t in operands}
    if torch.is_autocast_enabled(x.device.type) and torch.float64 not in dtypes:
        dtypes = {torch.get_autocast_dtype(x.device.type)}
    full = (x if upsampled is None else upsampled).shape[2:]
    size = [n + 2 * p - k + 1 for n, p, k in zip(full, padding, kernel, strict=True)]
    fits = groups > 0 and x.shape[1] == weight.shape[1] * groups and weight.shape[0] % groups == 0
    fits = fits and (bias is None or bias.shape == weight.shape[:1]) and min(padding) >= 0 and min(size) > 0
    if not fits or len(dtypes) > 1:
        # PyTorch has its own words for what is wrong.
        return NotImplemented
    shape, (dtype,) = (x.shape[0], weight.shape[0], *size), dtypes
    if upsampled is not None and kernel == (1, 1) and padding == (0, 0):
        y = F.conv2d(*upsampled.claim(), weight, bias, groups=groups)
        return defer(Upsample(upsampled.recipe.factor, dtype), [y], shape, dtype)
    cropping = [k - 1 - p for k, p in zip(kernel, padding, strict=True)]
    if upsampled is not None and min(cropping) >= 0 and fold_pays(kernel, upsampled.recipe.factor):
        factor = upsampled.recipe.factor
        folded = fold_upsample(weight, factor, groups)
        return _convolve(*upsampled.claim(), folded, bias, factor, cropping, groups, transposed=True)
    return defer(Conv(padding, groups), [real(input), weight, bias], shape, dtype)


def _conv_transpose2d(input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1):
    x = real(input)
    if not _plain(x, weight, *([] if bias is None else [bias])):
        return NotImplemented
    return _unmerged(x, weight, bias, stride, padding, dilation, groups, True, output_padding)


def _interpolate(input, size=None, scale_factor=None, mode="nearest", align_corners=None, **rest):
    x = real(input)
    if not _plain(x) or x.dim() != 4 or 0 in x.shape or mode != "nearest":
        return NotImplemented
    if (size is None) == (scale_factor is None) or align_corners is not None or rest.get("antialias"):
        return NotImplemented
    factor = _pair(scale_factor) if size is None else [o / n for o, n in zip(_pair(size), x.shape[2:], strict=True)]
    # From 41 on, dividing by the factor in float32 can shift a pixel.
    if max(factor) == 1 or not all(m == int(m) and 1 <= m <= 40 for m in factor):
        return NotImplemented
    height, width = map(int, factor)
    dtype = x.dtype
    if torch.is_autocast_enabled(x.device.type):
        # On some devices it computes this in float32.
        dtype = F.interpolate(x.new_empty(1, 1, 1, 1), scale_factor=1).dtype
    shape = (*x.shape[:2], height * x.shape[2], width * x.shape[3])
    return defer(Upsample((height, width), dtype), [x], shape, dtype)


def _avg_pool2d(
    input, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None
):
    pool = _pair(kernel_size)
    if (stride and _pair(stride) != pool) or _pair(padding) != (0, 0) or ceil_mode or divisor_override is not None:
        return NotImplemented
    pooled = _pooled(input, pool)
    return NotImplemented if pooled is None else pooled


def _pooled(term: Tensor, pool: Pair) -> Tensor | None:
    """The average pooling of `term` by a merge; None where there is none."""
    if _is_stated(term, Conv):
        padding, groups = term.recipe.padding, term.recipe.groups
        kernel = tuple(term.parts[1].shape[2:])
        if kernel == (1, 1) and padding == (0, 0):
            x, weight, bias = term.claim()
            return F.conv2d(F.avg_pool2d(x, pool), weight, bias, groups=groups)
        if fold_pays(kernel, pool):
            x, weight, bias = term.claim()
            return _convolve(x, fold_avg_pool(weight, pool), bias, pool, padding, groups)
    if _is_stated(term, Sum):
        pooled = [_pooled(part, pool) for part in term.parts]
        if any(part is not None for part in pooled):
            a, b = (F.avg_pool2d(real(t), pool) if p is None else p for p, t in zip(pooled, term.claim(), strict=True))
            return a + b
    return None


def _add(input, other, *rest, alpha=1, out=None):
    if rest or out is not None or alpha != 1 or not (_is_stated(input, Conv, Sum) or _is_stated(other, Conv, Sum)):
        return NotImplemented
    a, b = (t if _is_stated(t, Conv, Sum, Upsample) else real(t) for t in (input, other))
    if not all(isinstance(t, Deferred) or _plain(t) for t in (a, b)):
        return NotImplemented
    if (a.shape, a.dtype, a.device) != (b.shape, b.dtype, b.device):
        return NotImplemented
    return defer(Sum(), [a, b], a.shape, a.dtype)


RULES: dict[Callable[..., Any], Callable[..., Any]] = {
    F.conv2d: _conv2d,
    F.conv_transpose2d: _conv_transpose2d,
    F.interpolate: _interpolate,
    F.avg_pool2d: _avg_pool2d,
    **dict.fromkeys((torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__), _add),
}


def _unmerged(x, weight, bias, stride, padding, dilation, groups, transposed=False, output_padding=0):
    """The convolution that these arguments state, where Winograd's algorithm serves."""
    sizes = stride, padding, dilation, output_padding
    if isinstance(padding, str) or any(len(_pair(size)) != 2 for size in sizes):
        return NotImplemented
    stride, padding, dilation, output_padding = map(_pair, sizes)
    y = convolution(x, weight, bias, (stride, padding, dilation, transposed, output_padding, groups))
    return NotImplemented if y is None else y


def _convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair, groups: int, transposed: bool = False
) -> Tensor:
    """A convolution, or a transposed one, that is there to be computed."""
    y = convolution(x, weight, bias, (stride, padding, (1, 1), transposed, (0, 0), groups))
    if y is not None:
        return y
    function = F.conv_transpose2d if transposed else F.conv2d
    return function(x, weight, bias, stride, padding, groups=groups)


def _is_stated(tensor: Any, *recipes: type) -> bool:
    return isinstance(tensor, Deferred) and isinstance(tensor.recipe, recipes) and tensor.can_merge()


def _plain(*tensors: Any) -> bool:
    """Whether all are ordinary floating-point tensors on one device."""
    return all(
        type(t) in (Tensor, nn.Parameter)
        and t.is_floating_point()
        and t.layout is torch.strided
        and t.device == tensors[0].device
        and torch.amp.is_autocast_available(t.device.type)
        for t in tensors
    )


def _pair(value: Any) -> tuple[Any, ...]:
    values = (value,) if isinstance(value, int | float) else tuple(value)
    return values * 2 if len(values) == 1 else values
