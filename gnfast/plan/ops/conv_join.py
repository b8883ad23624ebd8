"""A convolution and what lies between it and the next matrix product, as one operation."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from gnfast.kernels.conv import conv_join_forward, conv_join_pushforward
from gnfast.plan.op import Contribution, Op, Operands, Pending, Shape
from gnfast.plan.ops.conv import Conv
from gnfast.plan.ops.join import Join, Saved


@dataclass(frozen=True)
class ConvJoin(Op):
    """y = join(conv(h₁), h₂): a `Join` of which the first term is a convolution's output without its bias.

    Inputs are h₁ and the join's other term, if any; operands are the convolution's weight and bias, of which the
    gradients are taken here, and the biases that the join adds, that one among them.
    """

    conv: Conv
    join: Join
    mask_bits: ClassVar[float] = Join.mask_bits
    own_operands: ClassVar[int | None] = 2
    param_inputs: ClassVar[int | None] = 1

    @property
    def prefers_channels_last(self) -> bool:
        return self.conv.prefers_channels_last

    @property
    def shares_cotangent(self) -> bool:
        return self.join.shares_cotangent

    def forward_all(
        self, inputs: Sequence[Tensor], operands: Operands, overwrite: bool
    ) -> tuple[Sequence[Tensor], Saved]:
        (x, *terms), (weight, _, *biases) = inputs, operands
        options = self.join.slope, self.join.keeps_sum
        y, total, bits = conv_join_forward(x, weight, self.conv.arguments(), terms, biases, *options)
        return self.join.outputs(y, total), (bits, y.stride())

    def gather(self, received: Sequence[Sequence[Contribution | Pending]], saved: Saved) -> Contribution:
        return self.join.gather(received, saved)

    def pullback(
        self, cotangent: Tensor, operands: Operands, saved: Saved, shapes: Sequence[Shape], overwrite: bool
    ) -> Sequence[Tensor | Pending]:
        (of_conv,) = self.conv.pullback(cotangent, operands[:2], None, shapes[:1], False)
        return of_conv, *[cotangent] * (self.join.terms - 1)

    def pushforward_all(
        self, tangents: Sequence[Tensor], operands: Operands, saved: Saved, scale: Tensor | None, overwrite: bool
    ) -> Sequence[Tensor]:
        (x, *terms), (weight, _, *biases) = tangents, operands
        options = self.join.slope, self.join.keeps_sum
        arguments = self.conv.arguments()
        return self.join.outputs(*conv_join_pushforward(x, weight, arguments, terms, biases, scale, *saved, *options))

    def param_grad(
        self,
        cotangent: Tensor,
        tangents: Sequence[Tensor],
        operands: Operands,
        saved: Saved,
        scale: Tensor | None,
        needs: Sequence[bool],
    ) -> Sequence[Tensor | None]:
        grads = self.conv.param_grad(cotangent, tangents[:1], operands[:2], None, scale, needs[:2])
        return *grads, *[None] * (len(operands) - 2)

    def flops(self, input_shapes: Sequence[Shape], operand_shapes: Sequence[Shape | None], output_shape: Shape) -> int:
        return self.conv.flops(input_shapes, operand_shapes, output_shape)

    def label(self) -> str:
        return f"{self.conv.label()} + {self.join.label()}"
