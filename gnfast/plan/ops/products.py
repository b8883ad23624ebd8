"""Products of x-dependent tensors, entry by entry."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gnfast.plan.curved import Curved, Grads
from gnfast.plan.op import Context


@dataclass(frozen=True)
class Product(Curved):
    """y = h₁ · h₂, broadcast against each other."""

    promotes: ClassVar[bool] = True

    def value(self, operands: Sequence[Tensor | None], *inputs: Tensor) -> Tensor:
        return torch.mul(*inputs)

    def pullback(self, ctx: Context, cotangent: Tensor) -> Sequence[Tensor]:
        first, second = ctx.inputs
        return (cotangent * second).sum_to_size(first.shape), (cotangent * first).sum_to_size(second.shape)

    def pushforward(self, ctx: Context, *tangents: Tensor) -> Tensor:
        (first, second), (of_first, of_second) = ctx.inputs, tangents
        return torch.addcmul(of_first * second, first, of_second)

    def second(
        self, ctx: Context, cotangent: Tensor, tangents: Sequence[Tensor], adjoint: Tensor | None
    ) -> tuple[Grads, Grads]:
        (first, second), (of_first, of_second) = ctx.inputs, tangents
        by_first, by_second = cotangent * of_second, cotangent * of_first
        if adjoint is not None:
            by_first, by_second = by_first.addcmul_(adjoint, second), by_second.addcmul_(adjoint, first)
        return (by_first.sum_to_size(first.shape), by_second.sum_to_size(second.shape)), ()
