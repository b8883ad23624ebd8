"""Softmax and its logarithm, whose derivatives are functions of the result."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from gnfast.plan.curved import Curved, Grads
from gnfast.plan.op import Context
from gnfast.plan.records import records

aten = torch.ops.aten


@dataclass(frozen=True)
class Softmax(Curved):
    """y = exp(h) / Σ exp(h) along `dim`, or its logarithm; with p = exp(h) / Σ exp(h),

    J t = p (t - Σ p t)      ∂⟨δ, J t⟩/∂h = J (δ t - δ Σ p t - t Σ p δ)
    J t = t - Σ p t          ∂⟨δ, J t⟩/∂h = -Σ δ · p (t - Σ p t)       of the logarithm.
    """

    dim: int
    log: bool = False
    saves_output: ClassVar[bool] = True

    def forward(self, ctx: Context, *inputs: Tensor) -> tuple[Tensor, Any]:
        y = (torch.log_softmax if self.log else torch.softmax)(*inputs, self.dim)
        return y, y

    def pullback(self, ctx: Context, cotangent: Tensor) -> Sequence[Tensor]:
        backward = aten._log_softmax_backward_data if self.log else aten._softmax_backward_data
        return (backward(cotangent, ctx.saved, self.dim, ctx.saved.dtype),)

    def pushforward(self, ctx: Context, *tangents: Tensor) -> Tensor:
        (t,), y = tangents, ctx.saved
        if not self.log:
            return aten._softmax_backward_data(t, y, self.dim, y.dtype)
        return t - (y.exp().mul_(t)).sum(self.dim, keepdim=True)

    def second(
        self, ctx: Context, cotangent: Tensor, tangents: Sequence[Tensor], adjoint: Tensor | None
    ) -> tuple[Grads, Grads]:
        (t,), y = tangents, ctx.saved
        if self.log:
            moved = aten._softmax_backward_data(t, y.exp(), self.dim, y.dtype)
            grad = moved.mul_(-cotangent.sum(self.dim, keepdim=True))
            return (grad if adjoint is None else grad.add_(*self.pullback(ctx, adjoint)),), ()
        along_t, along_cotangent = ((y * u).sum(self.dim, keepdim=True) for u in (t, cotangent))
        total = (t - along_t).mul_(cotangent).addcmul_(t, along_cotangent, value=-1)
        return self.pullback(ctx, total if adjoint is None else total.add_(adjoint)), ()

    def label(self) -> str:
        return f"{'log_' * self.log}softmax over {self.dim}"


@records("softmax", F.softmax, "log_softmax", F.log_softmax, told=True)
def _softmax(function, trace, input, dim=None, dtype=None, _stacklevel=3):
    # Without an axis PyTorch takes one, and warns.
    dim = F._get_softmax_dim(function.__name__, input.dim(), _stacklevel) if dim is None else dim
    input = trace.cast(input, dtype) if dtype else trace.autocast(function, input, 0)
    return trace.emit(Softmax(range(input.dim())[dim], function.__name__ == "log_softmax"), [input])


@records(F.softmin)
def _softmin(trace, input, dim=None, _stacklevel=3, dtype=None):
    return F.softmax(-input, dim, _stacklevel, dtype)
