"""Average pooling."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gnfast.plan.op import Op, Operands, Shape, is_channels_last, records, stand_in
from gnfast.plan.ops.conv import Pair, _pair

aten = torch.ops.aten


@dataclass(frozen=True)
class AvgPool2d(Op):
    """Mean over windows of h (B, C, H, W)."""

    kernel: Pair
    stride: Pair
    padding: Pair
    ceil_mode: bool
    count_include_pad: bool
    divisor: int | None

    def forward(self, inputs: Sequence[Tensor], operands: Operands, overwrite: bool) -> tuple[Tensor, None]:
        return aten.avg_pool2d(inputs[0], *self._arguments()), None

    def pullback(
        self, cotangent: Tensor, operands: Operands, saved: Any, shapes: Sequence[Shape], overwrite: bool
    ) -> Sequence[Tensor]:
        if is_channels_last(cotangent) and self._tiles(shapes[0], cotangent.shape):
            # Every pixel lies in one window: its cotangent is that of the window, shared evenly. One write instead of
            # the zeros and the sums of avg_pool2d_backward; in the contiguous layout the CPU's upsampling is slow.
            area = self.divisor or self.kernel[0] * self.kernel[1]
            return (aten.upsample_nearest2d(cotangent / area, shapes[0][2:]),)
        return (aten.avg_pool2d_backward(cotangent, stand_in(cotangent, shapes[0]), *self._arguments()),)

    def pushforward(
        self, tangents: Sequence[Tensor], operands: Operands, saved: Any, scale: Tensor | None, overwrite: bool
    ) -> Tensor:
        return aten.avg_pool2d(tangents[0], *self._arguments())

    def label(self) -> str:
        return f"avg_pool2d {self.kernel[0] if self.kernel[0] == self.kernel[1] else self.kernel}"

    def _tiles(self, input_shape: Shape, output_shape: Shape) -> bool:
        covered = all(k * o == i for k, o, i in zip(self.kernel, output_shape[2:], input_shape[2:], strict=True))
        return covered and self.kernel == self.stride and self.padding == (0, 0)

    def _arguments(self) -> tuple[Any, ...]:
        return self.kernel, self.stride, self.padding, self.ceil_mode, self.count_include_pad, self.divisor


@dataclass(frozen=True)
class AdaptiveAvgPool2d(Op):
    """Mean over `size` windows that cover h (B, C, H, W)."""

    size: Pair

    def forward(self, inputs: Sequence[Tensor], operands: Operands, overwrite: bool) -> tuple[Tensor, None]:
        return F.adaptive_avg_pool2d(inputs[0], self.size), None

    def pullback(
        self, cotangent: Tensor, operands: Operands, saved: Any, shapes: Sequence[Shape], overwrite: bool
    ) -> Sequence[Tensor]:
        return (aten._adaptive_avg_pool2d_backward(cotangent, stand_in(cotangent, shapes[0])),)

    def pushforward(
        self, tangents: Sequence[Tensor], operands: Operands, saved: Any, scale: Tensor | None, overwrite: bool
    ) -> Tensor:
        return F.adaptive_avg_pool2d(tangents[0], self.size)

    def label(self) -> str:
        return f"adaptive_avg_pool2d {self.size[0]}×{self.size[1]}"


@records(F.avg_pool2d)
def _avg_pool2d(
    trace,
    input,
    kernel_size,
    stride=None,
    padding=0,
    ceil_mode=False,
    count_include_pad=True,
    divisor_override=None,
):
    trace.require_batched(input, dims=4)
    kernel = _pair(kernel_size)
    op = AvgPool2d(
        kernel, _pair(stride) if stride else kernel, _pair(padding), ceil_mode, count_include_pad, divisor_override
    )
    return trace.emit(op, [input])


@records(F.adaptive_avg_pool2d)
def _adaptive_avg_pool2d(trace, input, output_size):
    trace.require_batched(input, dims=4)
    sizes = (output_size, output_size) if output_size is None or isinstance(output_size, int) else output_size
    size = tuple(int(given or own) for given, own in zip(sizes, input.shape[2:], strict=True))
    return trace.emit(AdaptiveAvgPool2d(size), [input])
