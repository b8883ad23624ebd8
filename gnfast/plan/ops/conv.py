"""Convolutions and transposed convolutions in one, two and three dimensions."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from gnfast.kernels.conv import (
    Arguments,
    conv2d,
    conv2d_input_grad,
    conv2d_input_grad_squares,
    conv2d_weight_grad,
    conv_input_grad_join,
    fuses,
)
from gnfast.kernels.layout import is_channels_last, laid_out
from gnfast.plan.fused import Pending
from gnfast.plan.op import Context, Op, ScaledSum, Shape, kept_bias, per_channel, per_sample, stand_in
from gnfast.plan.ops.factors import TwoFactors
from gnfast.plan.records import records
from gnfast.rewriting.merges import sizes

Sizes = tuple[int, ...]


@dataclass(frozen=True)
class Conv(Op):
    """y = W * h + b; h (B, C_in, *space), b (C_out,) or None.

    W is (C_out, C_in / groups, *kernel), or (C_in, C_out / groups, *kernel) where `transposed`. Each tuple has one
    entry per axis of space; `output_padding` is zero unless `transposed`. Without `adds_bias` a later node adds b, and
    only b's gradient is taken here.
    """

    stride: Sizes
    padding: Sizes
    dilation: Sizes
    groups: int
    transposed: bool = False
    output_padding: Sizes | None = None
    adds_bias: bool = True
    is_layer: ClassVar[bool] = True
    autocasts: ClassVar[bool] = True

    @property
    def prefers_channels_last(self) -> bool:
        return len(self.stride) == 2

    def forward(self, ctx: Context, *inputs: Tensor) -> tuple[Tensor, Any]:
        weight, bias = ctx.operands
        return conv2d(inputs[0], weight, bias if self.adds_bias else None, self.arguments), None

    def pullback(self, ctx: Context, cotangent: Tensor) -> Sequence[Tensor | Pending]:
        weight, arguments, shape = ctx.operands[0], self.arguments, ctx.shapes[0]

        def grad() -> Tensor:
            return conv2d_input_grad(cotangent, stand_in(cotangent, shape), weight, arguments)

        if not fuses(cotangent, shape, weight, arguments):
            return (grad(),)
        given = cotangent, shape, weight, arguments
        return (Pending(grad, partial(conv_input_grad_join, *given), partial(conv2d_input_grad_squares, *given)),)

    def pushforward(self, ctx: Context, *tangents: Tensor) -> Tensor:
        weight, bias = ctx.operands
        y = conv2d(tangents[0], weight, None, self.arguments)
        if self.adds_bias and bias is not None and ctx.scale is not None:
            y.addcmul_(per_sample(ctx.scale, y), per_channel(bias, y))
        return y

    def param_grad(self, ctx: Context, cotangent: Tensor, tangent: Tensor) -> Sequence[Tensor | ScaledSum | None]:
        weight_grad = bias_grad = None
        if ctx.needs[0]:
            weight_grad = conv2d_weight_grad(cotangent, tangent, ctx.operands[0], self.arguments, ctx.total)
        if ctx.needs[1] and ctx.scale is not None:
            bias_grad = ScaledSum(cotangent, 1)
        return weight_grad, bias_grad

    def flops(self, input_shapes: Sequence[Shape], operand_shapes: Sequence[Shape | None], output_shape: Shape) -> int:
        positions = input_shapes[0] if self.transposed else output_shape
        return 2 * torch.Size(positions).numel() * torch.Size(operand_shapes[0][1:]).numel()

    def label(self) -> str:
        text = f"conv_transpose{len(self.stride)}d" if self.transposed else f"conv{len(self.stride)}d"
        for name, default in (("stride", 1), ("padding", 0), ("dilation", 1), ("output_padding", 0)):
            value = getattr(self, name)
            if value and any(entry != default for entry in value):
                text += f" {name[0]}{value[0] if len(set(value)) == 1 else value}"
        return text + (f" g{self.groups}" if self.groups > 1 else "")

    @functools.cached_property
    def arguments(self) -> Arguments:
        """What `torch.convolution` takes after the bias."""
        output_padding = self.output_padding or (0,) * len(self.stride)
        return self.stride, self.padding, self.dilation, self.transposed, output_padding, self.groups


@dataclass(frozen=True)
class ConvByInput(TwoFactors):
    """y = W * h for a kernel W that depends on x, as modulated convolutions have; of `conv` it takes the arguments."""

    conv: Conv
    autocasts: ClassVar[bool] = True

    def product(self, first: Tensor, second: Tensor) -> Tensor:
        return torch.convolution(first, second, None, *self.conv.arguments)

    def by_first(self, cotangent: Tensor, second: Tensor, like: Tensor) -> Tensor:
        return self._backward(cotangent, like, second, 0)

    def by_second(self, cotangent: Tensor, first: Tensor, like: Tensor) -> Tensor:
        return self._backward(cotangent, first, like, 1)

    def flops(self, input_shapes: Sequence[Shape], operand_shapes: Sequence[Shape | None], output_shape: Shape) -> int:
        image, kernel = input_shapes
        return self.conv.flops([image], [(1, *kernel)], output_shape)

    def label(self) -> str:
        return self.conv.label()

    def _backward(self, cotangent: Tensor, image: Tensor, kernel: Tensor, place: int) -> Tensor:
        mask = [place == 0, place == 1, False]
        image = laid_out(image, torch.channels_last if is_channels_last(image) else torch.contiguous_format)
        return torch.ops.aten.convolution_backward(cotangent, image, kernel, None, *self.conv.arguments, mask)[place]


def _emit(trace, op, input, weight, bias):
    if not (trace.depends_on_x(weight) or trace.depends_on_x(bias)):
        return trace.emit(op, [input], [weight, kept_bias(bias)])
    if not trace.depends_on_x(weight):
        y = trace.emit(op, [input], [weight, None])
    elif trace.depends_on_x(input):
        y = trace.emit(ConvByInput(op), [input, weight])
    else:
        y = trace.curved(torch.convolution, input, weight, None, *op.arguments)
    return y if bias is None else y + bias.reshape(-1, *[1] * len(op.stride))


@records(F.conv1d, F.conv2d, F.conv3d)
def _conv(trace, input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    dims = weight.dim() - 2
    if (batched := trace.batched(input, dims + 2)) is not input:
        return _conv(trace, batched, weight, bias, stride, padding, dilation, groups).squeeze(0)
    dilation = sizes(dilation, dims)
    if isinstance(padding, str):
        span = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
        span = span if padding == "same" else [0] * dims
        if any(s % 2 for s in span):
            # PyTorch puts the odd row or column at the end.
            input = F.pad(input, [end for s in reversed(span) for end in (0, s % 2)])
        padding = tuple(s // 2 for s in span)
    op = Conv(sizes(stride, dims), sizes(padding, dims), dilation, groups)
    return _emit(trace, op, input, weight, bias)


@records(F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
def _conv_transpose(trace, input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1):
    dims = weight.dim() - 2
    if (batched := trace.batched(input, dims + 2)) is not input:
        given = weight, bias, stride, padding, output_padding, groups, dilation
        return _conv_transpose(trace, batched, *given).squeeze(0)
    stride, padding, output_padding, dilation = (sizes(v, dims) for v in (stride, padding, output_padding, dilation))
    op = Conv(stride, padding, dilation, groups, True, output_padding)
    return _emit(trace, op, input, weight, bias)
