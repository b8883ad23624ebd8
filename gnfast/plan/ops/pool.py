"""Average pooling."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gnfast.plan.op import Context, LinearCall, LinearMap, Op, Shape, frozen, is_channels_last, records, stand_in
from gnfast.plan.ops.conv import Sizes, sizes

aten = torch.ops.aten


@dataclass(frozen=True)
class AvgPool2d(LinearMap):
    """Mean over windows of h (B, C, H, W)."""

    kernel: Sizes
    stride: Sizes
    padding: Sizes
    ceil_mode: bool
    count_include_pad: bool
    divisor: int | None

    def pullback(self, ctx: Context, cotangent: Tensor) -> Sequence[Tensor]:
        shape = ctx.shapes[0]
        if is_channels_last(cotangent) and self._tiles(shape, cotangent.shape):
            # Every pixel lies in one window: its cotangent is that of the window, shared evenly. One write instead of
            # the zeros and the sums of avg_pool2d_backward; in the contiguous layout the CPU's upsampling is slow.
            area = self.divisor or self.kernel[0] * self.kernel[1]
            return (aten.upsample_nearest2d(cotangent / area, shape[2:]),)
        return (aten.avg_pool2d_backward(cotangent, stand_in(cotangent, shape), *self._arguments()),)

    def pushforward(self, ctx: Context, *tangents: Tensor) -> Tensor:
        return aten.avg_pool2d(tangents[0], *self._arguments())

    def label(self) -> str:
        return f"avg_pool2d {self.kernel[0] if self.kernel[0] == self.kernel[1] else self.kernel}"

    def _tiles(self, input_shape: Shape, output_shape: Shape) -> bool:
        covered = all(k * o == i for k, o, i in zip(self.kernel, output_shape[2:], input_shape[2:], strict=True))
        return covered and self.kernel == self.stride and self.padding == (0, 0)

    def _arguments(self) -> tuple[Any, ...]:
        return self.kernel, self.stride, self.padding, self.ceil_mode, self.count_include_pad, self.divisor


def adaptive_sizes(output_size: int | Sequence[int | None] | None, input: Tensor) -> Sizes:
    """The extents that an adaptive pooling gives: the input's own for None."""
    own = tuple(input.shape[2:])
    wanted = own if output_size is None else sizes(output_size, len(own))
    wanted = tuple(o if w is None else w for w, o in zip(wanted, own, strict=True))
    if 0 in wanted:
        raise ValueError(f"output_size: got {output_size}, of which PyTorch has no gradient")
    return wanted


def across(extents: Sizes, lead: int = 1) -> Sizes:
    """One axis of space gets a second one before it, where `lead` is for an axis of extent 1."""
    return (lead, *extents) if len(extents) == 1 else extents


def emit_across(trace: Any, op: Op, input: Tensor) -> Tensor:
    """Records an op on images, also for a tensor that has one axis of space less."""
    return trace.emit(op, [input]) if input.dim() > 3 else trace.emit(op, [input.unsqueeze(2)]).squeeze(2)


@records(F.avg_pool1d, F.avg_pool2d, told=True)
def _avg_pool(
    function, trace, input, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True,
    divisor_override=None,
):  # fmt: skip
    dims = 1 if function is F.avg_pool1d else 2
    trace.require_batched(input, dims=dims + 2)
    kernel, padding = sizes(kernel_size, dims), across(sizes(padding, dims), 0)
    stride = across(sizes(stride, dims) if stride else kernel)
    op = AvgPool2d(across(kernel), stride, padding, ceil_mode, count_include_pad, divisor_override)
    return emit_across(trace, op, input)


@records(F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, told=True)
def _adaptive_avg_pool(function, trace, input, output_size):
    dims = 1 if function is F.adaptive_avg_pool1d else 2
    trace.require_batched(input, dims=dims + 2)
    op = LinearCall(F.adaptive_avg_pool2d, (across(adaptive_sizes(output_size, input)),))
    return emit_across(trace, op, input)


@records(F.avg_pool3d, F.adaptive_avg_pool3d, told=True)
def _pool3d(function, trace, input, *args, **kwargs):
    trace.require_batched(input, dims=5)
    return trace.emit(LinearCall(function, frozen(args), frozen(kwargs)), [trace.autocast(function, input, 1)])
