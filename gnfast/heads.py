"""Normalisers as data: f̂ = φ(f, n) and its two partial derivatives, with n = ‖∇ₓf‖₂ per sample."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gnfast.once import once_differentiable


@dataclass(frozen=True)
class Head:
    """f̂ = value(f, n) with partials(f, n) = (∂f̂/∂f, ∂f̂/∂n); all (B,), float32 or float64."""

    name: str
    value: Callable[[Tensor, Tensor], Tensor]
    partials: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def _gn_total(f: Tensor, n: Tensor) -> Tensor:
    total = n + f.abs()
    return torch.where(total == 0, 1, total)


def _gn_partials(f: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
    # Two divisions: the square of a small float32 total would underflow.
    total = _gn_total(f, n)
    return n / total / total, -f / total / total


GN = Head("gn", value=lambda f, n: f / _gn_total(f, n), partials=_gn_partials)
"""f̂ = f / (n + |f|) (GN-GAN, Wu et al., ICCV 2021, eq. 9): sign(f) where n = 0, and 0 where f is 0 as well."""


def grad_norm(g: Tensor) -> Tensor:
    """‖g‖₂ per sample (B,), accumulated in float32 or better; its own gradient at 0 is 0."""
    return torch.linalg.vector_norm(g, dim=tuple(range(1, g.dim())), dtype=_accumulator(g.dtype))


def apply_head(head: Head, f: Tensor, g: Tensor) -> Tensor:
    """f̂ of f's shape and dtype, differentiable once with respect to f and g.

    Args:
        f: one logit per sample, any shape with B entries.
        g: (B, ...) input gradient.
    """
    return _ApplyHead.apply(head, f, g)


class _ApplyHead(torch.autograd.Function):
    @staticmethod
    def forward(ctx, head: Head, f: Tensor, g: Tensor) -> Tensor:
        n = grad_norm(g)
        logit = f.reshape(-1).to(n.dtype)
        ctx.head = head
        ctx.save_for_backward(logit, n, g)
        return head.value(logit, n).reshape(f.shape).to(f.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[None, Tensor, Tensor]:
        logit, n, g = ctx.saved_tensors
        by_f, by_n = ctx.head.partials(logit, n)
        upstream = grad.reshape(-1).to(n.dtype)
        # ∂n/∂g = g / n, and 0 at n = 0.
        along_g = upstream * by_n / torch.where(n == 0, 1, n)
        grad_f = (upstream * by_f).reshape(grad.shape).to(grad.dtype)
        return None, grad_f, g * along_g.reshape(-1, *[1] * (g.dim() - 1)).to(g.dtype)


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
