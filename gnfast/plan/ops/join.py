"""What lies between two matrix products as one operation, alone or with a convolution before it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from gnfast.kernels.conv import conv_join_forward, conv_join_pushforward
from gnfast.kernels.join import join_forward, join_pullback, join_pushforward
from gnfast.plan.fused import Contribution, Fused, Pending, summed
from gnfast.plan.op import Context, ScaledSum, Shape
from gnfast.plan.ops.conv import Conv

Saved = tuple[Tensor, tuple[int, ...]]


@dataclass(frozen=True)
class Join(Fused):
    """s = Σ h_i + Σ b_j and y = s where s > 0, else slope · s; h_i of one shape, b_j along axis `axis`.

    The biases are those of the convolutions or linear layers before it (`adds_bias=False`). Keeps the sign bits and
    s's strides. `gather` puts the cotangent of s together.

    Attributes:
        terms: how many h_i there are, one or two.
        keeps_sum: s is a second output.
        adds_biases: in the forward too; linear layers have done so.
    """

    terms: int
    slope: float
    axis: int
    keeps_sum: bool
    adds_biases: bool = True
    mask_bits: ClassVar[float] = 1
    zeros_below: ClassVar[bool] = True

    @property
    def shares_cotangent(self) -> bool:
        return self.terms > 1

    def forward(self, ctx: Context, *inputs: Tensor) -> tuple[Sequence[Tensor], Saved]:
        biases = ctx.biases if self.adds_biases else ()
        y, total, bits = join_forward(inputs, biases, self.axis, self.slope, self.keeps_sum, ctx.overwrite)
        return self.outputs(y, total), (bits, y.stride())

    def gather(self, saved: Saved, received: Sequence[Sequence[Contribution | Pending]]) -> Contribution:
        of_y, *of_sum = received
        of_sum = of_sum[0] if of_sum else []
        if not of_y:
            # Its readers detach.
            return summed(of_sum)
        pending = next((part for part in of_y if isinstance(part, Pending)), None)
        before, after = [part.tensor for part in of_y if part is not pending], [part.tensor for part in of_sum]
        if pending is not None:
            return Contribution(pending.joined(before, after, *saved, self.slope), True)
        target = next((part.tensor for part in (*of_y, *of_sum) if part.owned), None)
        return Contribution(join_pullback(before, after, *saved, self.slope, target), True)

    def pullback(self, ctx: Context, cotangent: Tensor) -> Sequence[Tensor]:
        return (cotangent,) * self.terms

    def pushforward(self, ctx: Context, *tangents: Tensor) -> Sequence[Tensor]:
        options = self.slope, self.keeps_sum, ctx.overwrite
        return self.outputs(*join_pushforward(tangents, ctx.biases, ctx.scale, self.axis, *ctx.saved, *options))

    def label(self) -> str:
        activation = f"leaky_relu {self.slope:g}" if self.slope else "relu"
        return f"{'add + ' if self.terms > 1 else ''}{activation} (fused)"

    def outputs(self, y: Tensor, total: Tensor | None) -> Sequence[Tensor]:
        """y, and s where it is an output."""
        return (y, total) if self.keeps_sum else (y,)


@dataclass(frozen=True)
class ConvJoin(Fused):
    """y = join(conv(h₁), h₂): a `Join` of which the first term is a convolution's output without its bias.

    Inputs are h₁ and the join's other term, if any; operands are those of the convolution, biases those of the join,
    the convolution's own among them.
    """

    conv: Conv
    join: Join
    mask_bits: ClassVar[float] = Join.mask_bits
    zeros_below: ClassVar[bool] = True

    @property
    def prefers_channels_last(self) -> bool:
        return self.conv.prefers_channels_last

    @property
    def shares_cotangent(self) -> bool:
        return self.join.shares_cotangent

    def forward(self, ctx: Context, *inputs: Tensor) -> tuple[Sequence[Tensor], Saved]:
        x, *terms = inputs
        given = x, ctx.operands[0], self.conv.arguments, terms, ctx.biases
        y, total, bits = conv_join_forward(*given, self.join.slope, self.join.keeps_sum)
        return self.join.outputs(y, total), (bits, y.stride())

    def gather(self, saved: Saved, received: Sequence[Sequence[Contribution | Pending]]) -> Contribution:
        return self.join.gather(saved, received)

    def pullback(self, ctx: Context, cotangent: Tensor) -> Sequence[Tensor | Pending]:
        (of_conv,) = self.conv.pullback(ctx, cotangent)
        return of_conv, *[cotangent] * (self.join.terms - 1)

    def pushforward(self, ctx: Context, *tangents: Tensor) -> Sequence[Tensor]:
        x, *terms = tangents
        given = x, ctx.operands[0], self.conv.arguments, terms, ctx.biases, ctx.scale, *ctx.saved
        return self.join.outputs(*conv_join_pushforward(*given, self.join.slope, self.join.keeps_sum))

    def param_grad(self, ctx: Context, cotangent: Tensor, tangent: Tensor) -> Sequence[Tensor | ScaledSum | None]:
        return self.conv.param_grad(ctx, cotangent, tangent)

    def flops(self, input_shapes: Sequence[Shape], operand_shapes: Sequence[Shape | None], output_shape: Shape) -> int:
        return self.conv.flops(input_shapes, operand_shapes, output_shape)

    def label(self) -> str:
        return f"{self.conv.label()} + {self.join.label()}"
