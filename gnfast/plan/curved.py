"""Operations whose second derivative is not zero: what the passes need of them (docs/algorithm.md, Six passes)."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from gnfast.plan.op import Context, Op

Grads = Sequence[Tensor | None]


class Curved(Op):
    """One operation y = F(h; operands) of any kind, in which samples may depend on each other.

    With J = ∂F/∂h at `ctx.inputs`, the methods compute

    =========== =====================================================
    forward     y
    pullback    Jᵀ δ
    pushforward J t; there is no scale
    second      ∂/∂(h, operands) of ⟨μ, F⟩ + ⟨δ, J t⟩
    =========== =====================================================

    A subclass states `value` in differentiable PyTorch functions, and all else comes from autograd, or it has faster
    methods of its own.
    """

    curved: ClassVar[bool] = True

    def value(self, operands: Sequence[Tensor | None], *inputs: Tensor) -> Tensor:
        """y, as PyTorch's autograd can differentiate it twice."""
        raise NotImplementedError

    def forward(self, ctx: Context, *inputs: Tensor) -> tuple[Tensor, Any]:
        return self.value(ctx.operands, *inputs), None

    def pullback(self, ctx: Context, cotangent: Tensor) -> Sequence[Tensor]:
        with _recorded():
            inputs = [*map(_leaf, ctx.inputs)]
            y = self.value(ctx.operands, *inputs)
            return torch.autograd.grad(y, inputs, cotangent, allow_unused=True, materialize_grads=True)

    def pulled_onto(self, totals: Grads, ctx: Context, cotangent: Tensor) -> Grads:
        """`totals`, None for 0, plus Jᵀ δ, in their memory where that is faster."""
        pulled = self.pullback(ctx, cotangent)
        return [p if total is None else total.add_(p) for total, p in zip(totals, pulled, strict=True)]

    def pushforward(self, ctx: Context, *tangents: Tensor) -> Tensor:
        with _recorded():
            inputs = [*map(_leaf, ctx.inputs)]
            y = self.value(ctx.operands, *inputs)
            # Jᵀ δ is linear in δ, and its derivative along t is J t.
            seed = torch.zeros_like(y, requires_grad=True)
            pairs = _paired(torch.autograd.grad(y, inputs, seed, create_graph=True, allow_unused=True), tangents)
            if not pairs:
                return torch.zeros_like(y)
            return torch.autograd.grad([p for p, _ in pairs], seed, [t for _, t in pairs], materialize_grads=True)[0]

    def pushed_and_bent(self, ctx: Context, cotangent: Tensor, *tangents: Tensor) -> tuple[Tensor, Grads]:
        """`pushforward`, and the gradients of the inputs that `second` gives without μ, for ops with `bends_early`."""
        return self.pushforward(ctx, *tangents), self.second(ctx, cotangent, tangents, None)[0]

    def second(
        self, ctx: Context, cotangent: Tensor, tangents: Sequence[Tensor], adjoint: Tensor | None
    ) -> tuple[Grads, Grads]:
        """The gradients of the inputs, None for 0, and those of the operands where `ctx.needs` is true.

        Args:
            ctx: with `inputs`, `saved`, `operands`, `needs` and `shapes`.
            cotangent: δ, of y.
            tangents: t, of each input.
            adjoint: μ, of y; None for 0.
        """
        with _recorded():
            inputs = [*map(_leaf, ctx.inputs)]
            operands = [_leaf(t) if need else t for t, need in zip(ctx.operands, ctx.needs, strict=True)]
            y = self.value(operands, *inputs)
            pairs = _paired(torch.autograd.grad(y, inputs, cotangent, create_graph=True, allow_unused=True), tangents)
            if adjoint is not None:
                pairs.append((y, adjoint))
            leaves = [*inputs, *(t for t, need in zip(operands, ctx.needs, strict=True) if need)]
            if not pairs:
                return [None] * len(inputs), [None] * len(operands)
            found = torch.autograd.grad([p for p, _ in pairs], leaves, [t for _, t in pairs], allow_unused=True)
        rest = iter(found[len(inputs) :])
        return found[: len(inputs)], [next(rest) if need else None for need in ctx.needs]


@dataclass(frozen=True)
class Place:
    """Stands in a call's arguments for the tensor of this place among the op's inputs and operands."""

    index: int


@dataclass(frozen=True)
class CurvedCall(Curved):
    """A PyTorch function of tensors, its inputs and then its operands, which stand as `Place`s in the arguments."""

    function: Callable[..., Tensor]
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...] = ()
    # As some backward functions of autograd's do.
    shares_cotangent: ClassVar[bool] = True

    def value(self, operands: Sequence[Tensor | None], *inputs: Tensor) -> Tensor:
        tensors = (*inputs, *operands)

        def given(value: Any) -> Any:
            if type(value) is Place:
                return tensors[value.index]
            return tuple(map(given, value)) if type(value) is tuple else value

        return self.function(*map(given, self.args), **{name: given(value) for name, value in self.kwargs})

    def label(self) -> str:
        return self.function.__name__.strip("_")


@contextlib.contextmanager
def _recorded() -> Iterator[None]:
    with torch.inference_mode(False), torch.enable_grad():
        yield


def _leaf(tensor: Tensor) -> Tensor:
    return (tensor.clone() if tensor.is_inference() else tensor.detach()).requires_grad_()


def _paired(pulled: Grads, tangents: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Those of Jᵀ δ that depend on h, δ or an operand, and their tangents."""
    return [(p, t) for p, t in zip(pulled, tangents, strict=True) if p is not None and p.requires_grad]
