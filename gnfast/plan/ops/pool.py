"""Average pooling."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gnfast.kernels.layout import is_channels_last
from gnfast.plan.op import Context, LinearCall, LinearMap, Shape, frozen, stand_in
from gnfast.plan.ops.conv import Sizes
from gnfast.plan.records import records
from gnfast.rewriting.merges import sizes

aten = torch.ops.aten
BY_UPSAMPLING = ("cpu",)
"""Devices on which avg_pool2d_backward adds to zeros; on others it is one kernel."""


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
        tiles = cotangent.device.type in BY_UPSAMPLING and self._tiles(shape, cotangent.shape)
        if tiles and is_channels_last(cotangent):
            # Every pixel lies in one window: its cotangent is that of the window, shared evenly. One write instead of
            # the zeros and the sums of avg_pool2d_backward; in the contiguous layout the CPU's upsampling is slow.
            area = self.divisor or self.kernel[0] * self.kernel[1]
            return (aten.upsample_nearest2d(cotangent / area, shape[2:]),)
        return (aten.avg_pool2d_backward(cotangent, stand_in(cotangent, shape), *self._arguments()),)

    def pushforward(self, ctx: Context, *tangents: Tensor) -> Tensor:
        return F.avg_pool2d(tangents[0], *self._arguments())

    def label(self) -> str:
        return f"avg_pool2d {self.kernel[0] if self.kernel[0] == self.kernel[1] else self.kernel}"

    def _tiles(self, input_shape: Shape, output_shape: Shape) -> bool:
        covered = all(k * o == i for k, o, i in zip(self.kernel, output_shape[2:], input_shape[2:], strict=True))
        return covered and self.kernel == self.stride and self.padding == (0, 0)

    def _arguments(self) -> tuple[Any, ...]:
        return self.kernel, self.stride, self.padding, self.ceil_mode, self.count_include_pad, self.divisor


@records(F.avg_pool2d)
def _avg_pool2d(
    trace, input, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None
):
    batched = trace.batched(input, 4)
    kernel, padding = sizes(kernel_size, 2), sizes(padding, 2)
    stride = sizes(stride, 2) if stride else kernel
    y = trace.emit(AvgPool2d(kernel, stride, padding, ceil_mode, count_include_pad, divisor_override), [batched])
    return y if batched is input else y.squeeze(0)


@records(F.avg_pool1d, F.avg_pool3d, told=True)
def _avg_pool(function, trace, input, *args, **kwargs):
    batched = trace.batched(input, int(function.__name__[-2]) + 2)
    y = trace.emit(LinearCall(function, frozen(args), frozen(kwargs)), [trace.autocast(function, batched, 1)])
    return y if batched is input else y.squeeze(0)


@records(F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d, told=True)
def _adaptive_avg_pool(function, trace, input, output_size):
    count = int(function.__name__[-2])
    if (batched := trace.batched(input, count + 2)) is not input:
        return function(batched, output_size).squeeze(0)
    if sizes(output_size, count) == (1,) * count:
        # As PyTorch does; the cotangent is then expanded instead of written.
        dtype = trace.autocasts_to(function, input, 1)
        return input.mean(tuple(range(2, count + 2)), keepdim=True, dtype=dtype)
    return trace.emit(LinearCall(function, frozen((output_size,))), [trace.autocast(function, input, 1)])
