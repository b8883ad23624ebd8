"""A convolution and the average pooling that follows it, as one strided convolution (docs/algorithm.md, Rewrites)."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gnfast.plan.op import Op, Operands, Shape
from gnfast.plan.ops.conv import Conv2d, Pair


@dataclass(frozen=True)
class ConvAvgPool2d(Op):
    """y = mean over pool windows of (W * h + b): a convolution with stride `pool` and a kernel larger by `pool` - 1.

    h (B, C_in, H, W), W (C_out, C_in / groups, kH, kW), b (C_out,) or None. The folded kernel is the mean of W at the
    window's shifts, computed in float32 or better.
    """

    padding: Pair
    groups: int
    pool: Pair

    def forward(self, inputs: Sequence[Tensor], operands: Operands, overwrite: bool) -> tuple[Tensor, Tensor]:
        folded = self._folded(operands[0])
        y, _ = self._strided.forward(inputs, (folded, operands[1]), overwrite)
        return y, folded

    def pullback(
        self, cotangent: Tensor, operands: Operands, saved: Tensor, shapes: Sequence[Shape], overwrite: bool
    ) -> Sequence[Tensor]:
        return self._strided.pullback(cotangent, (saved, operands[1]), None, shapes, overwrite)

    def pushforward(
        self, tangents: Sequence[Tensor], operands: Operands, saved: Tensor, scale: Tensor | None, overwrite: bool
    ) -> Tensor:
        return self._strided.pushforward(tangents, (saved, operands[1]), None, scale, overwrite)

    def param_grad(
        self,
        cotangent: Tensor,
        tangents: Sequence[Tensor],
        operands: Operands,
        saved: Tensor,
        scale: Tensor | None,
        needs: Sequence[bool],
    ) -> Sequence[Tensor | None]:
        folded_grad, bias_grad = self._strided.param_grad(cotangent, tangents, (saved, operands[1]), None, scale, needs)
        return None if folded_grad is None else self._unfolded(folded_grad, operands[0]), bias_grad

    def flops(self, operand_shapes: Sequence[Shape | None], output_shape: Shape) -> int:
        out_channels, in_channels, *kernel = operand_shapes[0]
        folded = [k + m - 1 for k, m in zip(kernel, self.pool, strict=True)]
        return self._strided.flops([(out_channels, in_channels, *folded), None], output_shape)

    def label(self) -> str:
        return f"conv2d + avg_pool2d {self.pool[0] if self.pool[0] == self.pool[1] else self.pool}"

    @property
    def _strided(self) -> Conv2d:
        return Conv2d(self.pool, self.padding, (1, 1), self.groups)

    def _folded(self, weight: Tensor) -> Tensor:
        height, width = (k + m - 1 for k, m in zip(weight.shape[2:], self.pool, strict=True))
        wide = torch.promote_types(weight.dtype, torch.float32)
        folded = weight.new_zeros(*weight.shape[:2], height, width, dtype=wide)
        for window in self._shifts(weight):
            folded[window] += weight
        layout = (
            torch.channels_last if weight.is_contiguous(memory_format=torch.channels_last) else torch.preserve_format
        )
        return (folded / (self.pool[0] * self.pool[1])).to(weight.dtype, memory_format=layout)

    def _unfolded(self, folded_grad: Tensor, weight: Tensor) -> Tensor:
        """The transpose of `_folded`."""
        wide = folded_grad.to(torch.promote_types(weight.dtype, torch.float32))
        total = sum(wide[window] for window in self._shifts(weight))
        return torch.empty_like(weight).copy_(total / (self.pool[0] * self.pool[1]))

    def _shifts(self, weight: Tensor) -> list[tuple[slice, ...]]:
        height, width = weight.shape[2:]
        return [
            (slice(None), slice(None), slice(i, i + height), slice(j, j + width))
            for i, j in itertools.product(range(self.pool[0]), range(self.pool[1]))
        ]
