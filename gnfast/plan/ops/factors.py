"""Sums of products of two tensors that both depend on x."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gnfast.plan.curved import Curved, Grads
from gnfast.plan.op import Context, Shape


@dataclass(frozen=True)
class TwoFactors(Curved):
    """y = A(h₁, h₂), linear in each: a subclass states A and its two adjoints, all in fresh memory."""

    products: ClassVar[tuple[float, ...]] = (1, 2, 2, 4, 0)

    def product(self, first: Tensor, second: Tensor) -> Tensor:
        """A(h₁, h₂)."""
        raise NotImplementedError

    def by_first(self, cotangent: Tensor, second: Tensor, like: Tensor) -> Tensor:
        """The cotangent of h₁, of the shape of `like`."""
        raise NotImplementedError

    def by_second(self, cotangent: Tensor, first: Tensor, like: Tensor) -> Tensor:
        """The cotangent of h₂, of the shape of `like`."""
        raise NotImplementedError

    def value(self, operands: Sequence[Tensor | None], *inputs: Tensor) -> Tensor:
        return self.product(*inputs)

    def pullback(self, ctx: Context, cotangent: Tensor) -> Sequence[Tensor]:
        first, second = ctx.inputs
        return self.by_first(cotangent, second, first), self.by_second(cotangent, first, second)

    def pushforward(self, ctx: Context, *tangents: Tensor) -> Tensor:
        (first, second), (of_first, of_second) = ctx.inputs, tangents
        return self.product(of_first, second).add_(self.product(first, of_second))

    def second(
        self, ctx: Context, cotangent: Tensor, tangents: Sequence[Tensor], adjoint: Tensor | None
    ) -> tuple[Grads, Grads]:
        (first, second), (of_first, of_second) = ctx.inputs, tangents
        by_first = self.by_first(cotangent, of_second, first)
        by_second = self.by_second(cotangent, of_first, second)
        if adjoint is not None:
            by_first = by_first + self.by_first(adjoint, second, first)
            by_second = by_second + self.by_second(adjoint, first, second)
        return (by_first, by_second), ()


@dataclass(frozen=True)
class Contraction(TwoFactors):
    """y = einsum of two tensors: a string of axis labels for each and one for y. None is summed alone.

    Attributes:
        autocasts: whether autocast runs it in low precision.
    """

    terms: tuple[str, str]
    output: str
    autocasts: bool = True
    promotes: ClassVar[bool] = True

    def product(self, first: Tensor, second: Tensor) -> Tensor:
        return torch.einsum(f"{','.join(self.terms)}->{self.output}", first, second)

    def by_first(self, cotangent: Tensor, second: Tensor, like: Tensor) -> Tensor:
        return torch.einsum(f"{self.output},{self.terms[1]}->{self.terms[0]}", cotangent, second)

    def by_second(self, cotangent: Tensor, first: Tensor, like: Tensor) -> Tensor:
        return torch.einsum(f"{self.output},{self.terms[0]}->{self.terms[1]}", cotangent, first)

    def flops(self, input_shapes: Sequence[Shape], operand_shapes: Sequence[Shape | None], output_shape: Shape) -> int:
        # The batch's axis has no size here.
        pairs = zip(self.terms, input_shapes, strict=True)
        extents = {label: n for term, shape in pairs for label, n in zip(term[1:], shape, strict=True)}
        return 2 * math.prod(extents.values())

    def label(self) -> str:
        return f"einsum {','.join(self.terms)}->{self.output}"
