"""Matrix product with a weight that does not depend on x."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from gnfast.plan.op import Op, Operands, Shape, kept_bias, per_sample, records


@dataclass(frozen=True)
class Linear(Op):
    """y = h Wᵀ + b; h (B, ..., in), W (out, in), b (out,) or None.

    Without `adds_bias` a later node adds b, and only b's gradient is taken here.
    """

    adds_bias: bool = True
    autocasts: ClassVar[bool] = True

    def forward(self, inputs: Sequence[Tensor], operands: Operands, overwrite: bool) -> tuple[Tensor, None]:
        weight, bias = operands
        return F.linear(inputs[0], weight, bias if self.adds_bias else None), None

    def pullback(
        self, cotangent: Tensor, operands: Operands, saved: Any, shapes: Sequence[Shape], overwrite: bool
    ) -> Sequence[Tensor]:
        return (cotangent @ operands[0],)

    def pushforward(
        self, tangents: Sequence[Tensor], operands: Operands, saved: Any, scale: Tensor | None, overwrite: bool
    ) -> Tensor:
        weight, bias = operands
        y = F.linear(tangents[0], weight)
        if self.adds_bias and bias is not None and scale is not None:
            y.addcmul_(per_sample(scale, y), bias)
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
            weight_grad = cotangent.flatten(0, -2).t() @ tangents[0].flatten(0, -2)
        if needs[1] and scale is not None:
            bias_grad = (
                scale.to(cotangent.dtype) @ cotangent.flatten(1, -2).sum(1)
                if cotangent.dim() > 2
                else (scale.to(cotangent.dtype) @ cotangent)
            )
        return weight_grad, bias_grad

    def flops(self, input_shapes: Sequence[Shape], operand_shapes: Sequence[Shape | None], output_shape: Shape) -> int:
        return 2 * torch.Size(output_shape).numel() * operand_shapes[0][1]

    def label(self) -> str:
        return "linear"


@records(F.linear)
def _linear(trace, input, weight, bias=None):
    if input.dim() < 2:
        trace.require_batched(input, dims=2)
    if not trace.depends_on_x(weight) and weight.dim() == 1:
        product = input @ weight
        return product if bias is None else product + bias
    if bias is not None and bias.dim() != 1:
        return trace.emit(Linear(), [input], [weight, None]) + bias
    return trace.emit(Linear(), [input], [weight, kept_bias(bias)])
