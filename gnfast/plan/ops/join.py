"""What lies between two matrix products, as one operation: biases, a residual sum, the activation."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from gnfast.kernels.join import join_forward, join_pullback, join_pushforward
from gnfast.plan.op import Contribution, Op, Operands, Pending, Shape

Saved = tuple[Tensor, tuple[int, ...]]


@dataclass(frozen=True)
class Join(Op):
    """s = Σ h_i + Σ b_j and y = s where s > 0, else slope · s; h_i of one shape, b_j along axis `axis`.

    The biases are those of the convolutions and linear layers before it (`adds_bias=False`), which take their gradients
    as well. Keeps the sign bits and s's strides. `pullback` takes the cotangent of s, which `gather` puts together.

    Attributes:
        terms: how many h_i there are, one or two.
        keeps_sum: s is a second output.
    """

    terms: int
    slope: float
    axis: int
    keeps_sum: bool
    mask_bits: ClassVar[float] = 1
    own_operands: ClassVar[int | None] = 0

    @property
    def shares_cotangent(self) -> bool:
        return self.terms > 1

    def forward_all(
        self, inputs: Sequence[Tensor], operands: Operands, overwrite: bool
    ) -> tuple[Sequence[Tensor], Saved]:
        y, total, bits = join_forward(inputs, operands, self.axis, self.slope, self.keeps_sum, overwrite)
        return self.outputs(y, total), (bits, y.stride())

    def gather(self, received: Sequence[Sequence[Contribution | Pending]], saved: Saved) -> Contribution:
        of_y, *of_sum = received
        of_sum = of_sum[0] if of_sum else []
        pending = next((part for part in of_y if isinstance(part, Pending)), None)
        if pending is not None:
            before = [part.tensor for part in of_y if part is not pending]
            after = [part.tensor for part in of_sum]
            return Contribution(pending.joined(before, after, *saved, self.slope), True)
        target = next((part.tensor for part in (*of_y, *of_sum) if part.owned), None)
        tensors = ([part.tensor for part in parts] for parts in (of_y, of_sum))
        return Contribution(join_pullback(*tensors, *saved, self.slope, target), True)

    def pullback(
        self, cotangent: Tensor, operands: Operands, saved: Saved, shapes: Sequence[Shape], overwrite: bool
    ) -> Sequence[Tensor]:
        return (cotangent,) * self.terms

    def pushforward_all(
        self, tangents: Sequence[Tensor], operands: Operands, saved: Saved, scale: Tensor | None, overwrite: bool
    ) -> Sequence[Tensor]:
        options = self.slope, self.keeps_sum, overwrite
        return self.outputs(*join_pushforward(tangents, operands, scale, self.axis, *saved, *options))

    def label(self) -> str:
        activation = f"leaky_relu {self.slope:g}" if self.slope else "relu"
        return f"{'add + ' if self.terms > 1 else ''}{activation} (fused)"

    def outputs(self, y: Tensor, total: Tensor | None) -> Sequence[Tensor]:
        """y, and s where it is an output."""
        return (y, total) if self.keeps_sum else (y,)
