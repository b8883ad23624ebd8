"""A convolution and what lies between it and the next matrix product, as one operation."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from gnfast.kernels.conv import conv_join_forward, conv_join_pushforward
from gnfast.plan.fused import Contribution, Fused, Pending
from gnfast.plan.op import Context, Shape
from gnfast.plan.ops.conv import Conv
from gnfast.plan.ops.join import Join, Saved


@dataclass(frozen=True)
class ConvJoin(Fused):
    """y = join(conv(h₁), h₂): a `Join` of which the first term is a convolution's output without its bias.

    Inputs are h₁ and the join's other term, if any; operands are those of the convolution, biases those of the join,
    the convolution's own among them.
    """

    conv: Conv
    join: Join
    mask_bits: ClassVar[float] = Join.mask_bits

    @property
    def prefers_channels_last(self) -> bool:
        return self.conv.prefers_channels_last

    @property
    def shares_cotangent(self) -> bool:
        return self.join.shares_cotangent

    def forward(self, ctx: Context, *inputs: Tensor) -> tuple[Sequence[Tensor], Saved]:
        x, *terms = inputs
        given = x, ctx.operands[0], self.conv.arguments(), terms, ctx.biases
        y, total, bits = conv_join_forward(*given, self.join.slope, self.join.keeps_sum)
        return self.join.outputs(y, total), (bits, y.stride())

    def gather(self, saved: Saved, received: Sequence[Sequence[Contribution | Pending]]) -> Contribution:
        return self.join.gather(saved, received)

    def pullback(self, ctx: Context, cotangent: Tensor) -> Sequence[Tensor | Pending]:
        (of_conv,) = self.conv.pullback(ctx, cotangent)
        return of_conv, *[cotangent] * (self.join.terms - 1)

    def pushforward(self, ctx: Context, *tangents: Tensor) -> Sequence[Tensor]:
        x, *terms = tangents
        given = x, ctx.operands[0], self.conv.arguments(), terms, ctx.biases, ctx.scale, *ctx.saved
        return self.join.outputs(*conv_join_pushforward(*given, self.join.slope, self.join.keeps_sum))

    def param_grad(self, ctx: Context, cotangent: Tensor, tangent: Tensor) -> Sequence[Tensor | None]:
        return self.conv.param_grad(ctx, cotangent, tangent)

    def flops(self, input_shapes: Sequence[Shape], operand_shapes: Sequence[Shape | None], output_shape: Shape) -> int:
        return self.conv.flops(input_shapes, operand_shapes, output_shape)

    def label(self) -> str:
        return f"{self.conv.label()} + {self.join.label()}"
