"""Two-dimensional convolution."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gnfast.plan.op import Op, Operands, Shape, per_sample, records, stand_in

Pair = tuple[int, int]


@dataclass(frozen=True)
class Conv2d(Op):
    """y = W * h + b; h (B, C_in, H, W), W (C_out, C_in / groups, kH, kW), b (C_out,) or None."""

    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int

    def forward(self, inputs: Sequence[Tensor], operands: Operands, overwrite: bool) -> tuple[Tensor, None]:
        weight, bias = operands
        return F.conv2d(inputs[0], weight, bias, self.stride, self.padding, self.dilation, self.groups), None

    def pullback(
        self, cotangent: Tensor, operands: Operands, saved: Any, shapes: Sequence[Shape], overwrite: bool
    ) -> Sequence[Tensor]:
        return (self._backward(cotangent, stand_in(cotangent, shapes[0]), operands[0], (True, False, False))[0],)

    def pushforward(
        self, tangents: Sequence[Tensor], operands: Operands, saved: Any, scale: Tensor | None, overwrite: bool
    ) -> Tensor:
        weight, bias = operands
        y = F.conv2d(tangents[0], weight, None, self.stride, self.padding, self.dilation, self.groups)
        if bias is not None and scale is not None:
            y.addcmul_(per_sample(scale, y), bias.to(y.dtype).reshape(-1, 1, 1))
        return y

    def param_grad(
        self,
        cotangent: Tensor,
        tangents: Sequence[Tensor],
        operands: Operands,
        saved: Any,
        scale: Tensor | None,
        needs: Sequence[bool],
    ) -> Sequence[Tensor | None]:
        weight_grad = bias_grad = None
        if needs[0]:
            weight_grad = self._backward(cotangent, tangents[0], operands[0], (False, True, False))[1]
        if needs[1] and scale is not None:
            bias_grad = scale.to(cotangent.dtype) @ cotangent.sum((2, 3))
        return weight_grad, bias_grad

    def flops(self, operand_shapes: Sequence[Shape | None], output_shape: Shape) -> int:
        _, *patch = operand_shapes[0]
        return 2 * torch.Size(output_shape).numel() * torch.Size(patch).numel()

    def label(self) -> str:
        text = "conv2d"
        for name, default in (("stride", (1, 1)), ("padding", (0, 0)), ("dilation", (1, 1)), ("groups", 1)):
            value = getattr(self, name)
            if value != default:
                text += f" {name[0]}{value[0] if isinstance(value, tuple) and value[0] == value[1] else value}"
        return text

    def _backward(
        self, cotangent: Tensor, h: Tensor, weight: Tensor, mask: tuple[bool, bool, bool]
    ) -> tuple[Tensor, Tensor, Tensor]:
        return torch.ops.aten.convolution_backward(
            cotangent, h, weight, None, self.stride, self.padding, self.dilation, False, (0, 0), self.groups, mask
        )


def _pair(value: int | Sequence[int]) -> Pair:
    if isinstance(value, int):
        return value, value
    values = tuple(value)
    return values * 2 if len(values) == 1 else values


@records(F.conv2d)
def _conv2d(trace, input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    trace.require_batched(input, dims=4)
    stride, dilation = _pair(stride), _pair(dilation)
    if isinstance(padding, str):
        span = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
        if padding == "same" and any(s % 2 for s in span):
            trace.refuse("padding='same' that pads one side more than the other")
        padding = tuple(s // 2 for s in span) if padding == "same" else (0, 0)
    return trace.emit(Conv2d(stride, _pair(padding), dilation, groups), [input], [weight, bias])
