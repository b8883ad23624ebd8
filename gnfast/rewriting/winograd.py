"""Convolutions by Winograd's algorithm inside ordinary autograd.

<g, W * x> is linear in each of g, x and W. Its derivatives are the convolution, its data gradient and its weight
gradient, and every derivative of one of these is another one, so a single Function differentiates any number of times.
A transposed convolution is the data gradient of a convolution.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_legacy_batchedtensor
from torch._prims_common import suggest_memory_format

from gnfast.kernels.winograd import Arguments, conv2d, conv2d_input_grad, conv2d_weight_grad, fits
from gnfast.rewriting.deferred import eager

# The factors of <g, W * x>, in the order of `_Derivative`'s arguments.
COTANGENT, INPUT, WEIGHT = range(3)
# With fewer, copies into channels_last and Python cost more than the products save.
_MIN_POSITIONS = 128


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None, arguments: Arguments) -> Tensor | None:
    """`torch.convolution(x, weight, bias, *arguments)` of ordinary tensors in two dimensions, as often differentiable.

    In the memory format that PyTorch would give it. None where Winograd's algorithm does not serve, where the arguments
    are invalid, and where more than ordinary autograd must see what is stated.
    """
    stride, padding, dilation, transposed, _, groups = arguments
    plain = stride, padding, dilation, False, (0, 0), groups
    if x.dim() != 4 or 0 in stride:
        return None
    shape = output_shape(x, weight, bias, arguments)
    if shape is None:
        return None
    outputs = x.shape[2:] if transposed else shape[2:]
    if x.shape[0] * math.prod(outputs) < _MIN_POSITIONS or not fits(x, weight, plain, outputs):
        return None
    fits_bias = bias is None or bias.dtype == x.dtype
    if not fits_bias or torch.is_autocast_enabled(x.device.type) or not eager():
        return None
    channels_last = torch.channels_last in [suggest_memory_format(t) for t in (x, weight)]
    layout = torch.channels_last if channels_last else torch.contiguous_format
    if not transposed:
        return _Derivative.apply(COTANGENT, plain, layout, None, x, weight, bias)
    return _Derivative.apply(INPUT, plain, layout, x, x.new_empty(()).expand(shape), weight, bias)


def output_shape(x: Tensor, weight: Tensor, bias: Tensor | None, arguments: Arguments) -> tuple[int, ...] | None:
    """That of a two-dimensional convolution with dilation 1; None where PyTorch refuses these arguments."""
    stride, padding, _, transposed, output_padding, groups = arguments
    if not (x.dim() == weight.dim() == 4 and len(stride) == len(padding) == len(output_padding) == 2):
        return None
    if min(*stride, groups) < 1 or min(*padding, *output_padding) < 0 or max(output_padding) >= max(stride):
        return None
    channels = weight.shape[0], weight.shape[1] * groups
    in_channels, out_channels = channels if transposed else channels[::-1]
    if x.shape[1] != in_channels or weight.shape[0] % groups or not (bias is None or bias.shape == (out_channels,)):
        return None
    axes = zip(x.shape[2:], weight.shape[2:], stride, padding, output_padding, strict=True)
    size = [(n - 1) * s - 2 * p + k + o if transposed else (n + 2 * p - k) // s + 1 for n, k, s, p, o in axes]
    return (x.shape[0], out_channels, *size) if min(size) > 0 else None


class _Derivative(torch.autograd.Function):
    """The derivative of <g, W * x> with respect to one factor, of which only the shape is read, plus a bias."""

    @staticmethod
    def forward(
        ctx, factor: int, arguments: Arguments, layout: torch.memory_format, *factors_and_bias: Tensor | None
    ) -> Tensor:
        *factors, bias = factors_and_bias
        ctx.save_for_backward(*(None if i == factor else t for i, t in enumerate(factors)))
        ctx.set_materialize_grads(False)
        ctx.factor, ctx.arguments, ctx.layout = factor, arguments, layout
        cotangent, x, weight = (t if i == factor else _channels_last(t) for i, t in enumerate(factors))
        if factor == COTANGENT:
            result = conv2d(x, weight, bias, arguments)
        elif factor == INPUT:
            result = conv2d_input_grad(cotangent, x, weight, arguments)
            if bias is not None:
                result += bias[:, None, None]
        else:
            result = conv2d_weight_grad(cotangent, x, weight, arguments)
        return result.contiguous(memory_format=layout)

    @staticmethod
    def backward(ctx, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 7
        needs = ctx.needs_input_grad[3:]
        ordinary = not torch.compiler.is_compiling() and eager() and not is_legacy_batchedtensor(grad)
        if ordinary and sum(needs[:3]) > 1:
            # Once for both.
            grad = _channels_last(grad)
        factors = list(ctx.saved_tensors)
        factors[ctx.factor] = grad
        grads: list[Tensor | None] = [None] * 3
        for i, need in enumerate(needs[:3]):
            if need and ordinary:
                others = [t.detach() if i == j else t for j, t in enumerate(factors)]
                grads[i] = _Derivative.apply(i, ctx.arguments, ctx.layout, *others, None)
            elif need:
                grads[i] = _stated(i, factors, ctx.arguments)
        return None, None, None, *grads, grad.sum((0, 2, 3)) if needs[3] else None


def _stated(factor: int, factors: Sequence[Tensor], arguments: Arguments) -> Tensor:
    """The derivative with respect to `factor` by PyTorch's operations."""
    cotangent, x, weight = factors
    if factor == COTANGENT:
        return torch.convolution(x, weight, None, *arguments)
    mask = factor == INPUT, factor == WEIGHT, False
    grads: Any = torch.ops.aten.convolution_backward(cotangent, x, weight, None, *arguments, mask)
    return grads[0] if factor == INPUT else grads[1]


def _channels_last(t: Tensor) -> Tensor:
    return t.contiguous(memory_format=torch.channels_last)
