"""Matrix product with a weight that does not depend on x."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from gnfast.kernels.layout import is_channels_last
from gnfast.plan.op import Context, Op, ScaledSum, Shape, kept_bias, per_sample
from gnfast.plan.records import records


@dataclass(frozen=True)
class Linear(Op):
    """y = h Wᵀ + b; h (B, ..., in), W (out, in), b (out,) or None.

    Without `adds_bias` a later node adds s·b to the tangent. The forward adds b in any case, before it rounds.
    """

    adds_bias: bool = True
    is_layer: ClassVar[bool] = True
    autocasts: ClassVar[bool] = True
    takes_ones: ClassVar[bool] = True

    def forward(self, ctx: Context, *inputs: Tensor) -> tuple[Tensor, Any]:
        weight, bias = ctx.operands
        return F.linear(inputs[0], weight, bias), None

    def pullback(self, ctx: Context, cotangent: Tensor | None) -> Sequence[Tensor]:
        weight = ctx.operands[0]
        return (weight.expand(ctx.shapes[0]) if cotangent is None else cotangent @ weight,)

    def pushforward(self, ctx: Context, *tangents: Tensor) -> Tensor:
        weight, bias = ctx.operands
        y = F.linear(tangents[0], weight)
        if self.adds_bias and bias is not None and ctx.scale is not None:
            y.addcmul_(per_sample(ctx.scale, y), bias)
        return y

    def param_grad(
        self, ctx: Context, cotangent: Tensor | None, tangent: Tensor
    ) -> Sequence[Tensor | ScaledSum | None]:
        weight_grad, bias_grad, total = None, None, ctx.total
        if ctx.needs[0] and cotangent is None:
            weight_grad = tangent.sum(0, keepdim=True)
        elif ctx.needs[0]:
            factors = cotangent.flatten(0, -2).t(), tangent.flatten(0, -2)
            # FLOP counters know no `addmm_`.
            weight_grad = torch.mm(*factors) if total is None else torch.addmm(total, *factors, out=total)
        if ctx.needs[1] and ctx.scale is not None:
            bias_grad = ScaledSum(cotangent, 1 if cotangent is None else cotangent.dim() - 1)
        return weight_grad, bias_grad

    def flops(self, input_shapes: Sequence[Shape], operand_shapes: Sequence[Shape | None], output_shape: Shape) -> int:
        return 2 * torch.Size(output_shape).numel() * torch.Size(operand_shapes[0][1:]).numel()


@dataclass(frozen=True)
class MapLinear(Linear):
    """y = Σ W h + b; maps h (B, C, H, W), W (out, C, H, W), b (out,) or None.

    A `Linear` of the maps as rows, which are read and written in W's memory order.
    """

    prefers_channels_last: ClassVar[bool] = True

    def forward(self, ctx: Context, *inputs: Tensor) -> tuple[Tensor, Any]:
        return super().forward(_of_rows(ctx), _rows(inputs[0], ctx.operands[0]))

    def pullback(self, ctx: Context, cotangent: Tensor | None) -> Sequence[Tensor]:
        if cotangent is None:
            return super().pullback(ctx, None)
        (rows,) = super().pullback(_of_rows(ctx), cotangent)
        return (_maps(rows, ctx.operands[0]),)

    def pushforward(self, ctx: Context, *tangents: Tensor) -> Tensor:
        return super().pushforward(_of_rows(ctx), _rows(tangents[0], ctx.operands[0]))

    def param_grad(
        self, ctx: Context, cotangent: Tensor | None, tangent: Tensor
    ) -> Sequence[Tensor | ScaledSum | None]:
        weight = ctx.operands[0]
        rows = _rows(tangent, weight) if ctx.needs[0] else tangent
        weight_grad, bias_grad = super().param_grad(ctx._replace(total=None), cotangent, rows)
        return None if weight_grad is None else _maps(weight_grad, weight), bias_grad

    def label(self) -> str:
        return "linear of a map"


def _of_rows(ctx: Context) -> Context:
    weight, bias = ctx.operands
    return ctx._replace(operands=[_rows(weight, weight), bias])


def _rows(maps: Tensor, weight: Tensor) -> Tensor:
    """(B, C·H·W) in the weight's memory order."""
    return (maps.permute(0, 2, 3, 1) if is_channels_last(weight) else maps).flatten(1)


def _maps(rows: Tensor, weight: Tensor) -> Tensor:
    """(B, C, H, W) of rows in the weight's memory order."""
    _, channels, height, width = weight.shape
    if is_channels_last(weight):
        return rows.unflatten(1, (height, width, channels)).permute(0, 3, 1, 2)
    return rows.unflatten(1, (channels, height, width))


@records(F.linear)
def _linear(trace, input, weight, bias=None):
    if input.dim() < 2 and weight.dim() > 1:
        return F.linear(input.unsqueeze(0), weight, bias).squeeze(0)
    if not trace.depends_on_x(weight) and weight.dim() == 1:
        product = input @ weight
        return product if bias is None else product + bias
    if trace.depends_on_x(weight):
        product = input @ weight.t()
        return product if bias is None else product + bias
    if trace.depends_on_x(bias) or (bias is not None and bias.dim() != 1):
        return trace.emit(Linear(), [input], [weight, None]) + bias
    return trace.emit(Linear(), [input], [weight, kept_bias(bias)])
