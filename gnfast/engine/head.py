"""A normaliser as data: f̂ = φ(f, m) with its two partial derivatives, where m is a norm of the input gradient.

And how it is applied: with a graph, or by its partial derivatives in the passes. The papers' are in `heads.py`.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from gnfast.engine import passes
from gnfast.engine.once_differentiable import once_differentiable
from gnfast.errors import InputError
from gnfast.kernels.backend import implementation
from gnfast.kernels.head import Formula
from gnfast.kernels.layout import accumulator
from gnfast.plan.fused import Contribution, Pending, summed

Value = Callable[[Tensor, Tensor], Tensor]
Partials = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Head:
    """A normaliser f̂ = value(f, m), m = ‖∇ₓf − centre‖₂ per sample over all its entries.

    `value` is elementwise in two tensors that broadcast, float32 or float64: f of the critic's output shape, m with one
    entry per sample.

    Attributes:
        name: what messages call it.
        value: f̂.
        partials: (∂f̂/∂f, ∂f̂/∂m), with the same arguments; autograd differentiates `value` where it is None.
        centre: every entry of the gradient from which m measures the distance; 0 for the plain norm n.
        takes_gradient: `value` takes the input gradient (B, ...) itself in place of m.
        formula: what the fused kernels know it by, where they do.
    """

    name: str
    value: Value
    partials: Partials | None = None
    centre: float = 0.0
    takes_gradient: bool = False
    formula: Formula | None = None


def safe_divisor(total: Tensor) -> Tensor:
    """As a divisor, a total that is not negative gives 0 where it is 0, and a gradient of 0. NaN stays NaN."""
    return torch.threshold(total, 0.0, math.inf)


def grad_norm(g: Tensor, centre: float = 0.0) -> Tensor:
    """‖g − centre‖₂ per sample (B,), in float32 or better; its own gradient at 0 is 0."""
    wide = g.to(accumulator(g.dtype))
    # Squares of float32 numbers leave its range where the numbers do not: they are added up in float64.
    return torch.linalg.vector_norm(
        wide - centre if centre else wide, dim=tuple(range(1, g.dim())), dtype=torch.float64
    ).to(wide.dtype)


def require_rows(f: Tensor, g: Tensor) -> None:
    """Raises InputError where f does not have a row for each sample; a batch of one may be squeezed to a number."""
    if (len(f) if f.dim() else 1) != len(g):
        shapes = f"got {tuple(f.shape) or 'a number'} from the network for x of {tuple(g.shape)}"
        raise InputError(f"net: {shapes}, wanted a row for each sample, such as one logit")


def apply_head(head: Head, f: Tensor, g: Tensor) -> Tensor:
    """f̂ of f's shape, in the wider of the two dtypes, from the critic's output f (B, ...) and its input gradient g.

    Differentiable with respect to f and g: once where the head has partial derivatives of its own, as often as they and
    the head are otherwise.
    """
    require_rows(f, g)
    if head.partials is not None and f.dim() and f.numel() == f.shape[0]:
        return _ApplyHead.apply(head, f, g)
    return _plain(head, f, g)


def normalize(
    head: Head, f: Tensor, parts: Sequence[Contribution | Pending], dtype: torch.dtype
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """As `apply_head` by partial derivatives, without a graph, for one logit per sample; g; and what `pull` needs.

    Args:
        parts: of g, one or two.
        dtype: that of x; f̂ has the wider of this and f's.
    """
    wider, kernels = torch.promote_types(f.dtype, dtype), _kernels(head, f)
    if kernels and len(parts) == 2 and parts[0].tensor.dtype == parts[1].tensor.dtype:
        terms, squares = [part.tensor for part in parts], None
    else:
        g, squares = (parts[0] if len(parts) == 1 else summed(parts)).with_squares(head.centre)
        terms = [g]
    if kernels:
        f_hat, g, partials = kernels.normalize(head.formula, f, terms, squares, wider)
        return f_hat, g, (partials,)
    f_hat, saved = _normalize(head, f, g, squares, wider)
    return f_hat, g, saved


def pull(
    head: Head,
    saved: Sequence[Tensor],
    upstream: Tensor,
    x: Tensor,
    g: Tensor,
    wants_start: bool,
    wants_grad_x: bool,
    entry: torch.dtype | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """As `passes.merged`, for ∂L/∂f̂ (of f's shape) of a head; `saved` is from `normalize`."""
    if kernels := _kernels(head, g):
        return kernels.pull(head.formula, *saved, upstream, x, g, wants_start, wants_grad_x, entry or x.dtype)
    return passes.merged(*_pullback(head, *saved, g, upstream, wants_start), x, g, wants_start, wants_grad_x, entry)


def _kernels(head: Head, g: Tensor) -> ModuleType | None:
    return None if head.formula is None else implementation("head", g.device.type)


def normalized_grad_norm(head: Head, f: Tensor, g: Tensor) -> Tensor:
    """‖∇ₓf̂‖₂ (B,) = |∂f̂/∂f| n, for one logit per sample: a piecewise linear critic's n does not depend on x."""
    # Tensors that were made in inference mode cannot take part in autograd.
    with torch.inference_mode(False), torch.enable_grad():
        f, g = (t.clone() if t.is_inference() else t for t in (f, g))
        logit, m = f.reshape(-1).to(accumulator(f.dtype)), _measure(head, g)
        if head.partials is not None:
            by_f = head.partials(logit, m)[0]
        else:
            logit = logit if logit.requires_grad else logit.detach().requires_grad_()
            (by_f,) = torch.autograd.grad(head.value(logit, m).sum(), logit, create_graph=True)
    norm = by_f.abs() * grad_norm(g)
    return norm if torch.is_grad_enabled() else norm.detach()


def plain(head: Head) -> Head:
    """The head without partial derivatives of its own, so that it is differentiable any number of times."""
    return dataclasses.replace(head, partials=None, formula=None)


def _measure(head: Head, g: Tensor) -> Tensor:
    """What `head.value` takes after f: m (B,) or the gradient itself."""
    return g.to(accumulator(g.dtype)) if head.takes_gradient else grad_norm(g, head.centre)


def _plain(head: Head, f: Tensor, g: Tensor) -> Tensor:
    measure = _measure(head, g)
    if not head.takes_gradient:
        # A network may squeeze the last batch of an epoch, of one sample, to a number.
        measure = measure.reshape(-1, *[1] * (f.dim() - 1)) if f.dim() else measure.reshape(())
    f_hat = head.value(f.to(accumulator(f.dtype)), measure)
    if f_hat.shape != f.shape:
        raise InputError(
            f"method: {head.name} returned shape {tuple(f_hat.shape)} for f of shape {tuple(f.shape)}; wanted f's"
        )
    return f_hat.to(torch.promote_types(f.dtype, g.dtype))


class _ApplyHead(torch.autograd.Function):
    @staticmethod
    def forward(ctx, head: Head, f: Tensor, g: Tensor) -> Tensor:
        f_hat, measured = _normalize(head, f, g, None, torch.promote_types(f.dtype, g.dtype))
        ctx.head = head
        ctx.save_for_backward(f, g, *measured)
        return f_hat

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream: Tensor) -> tuple[None, Tensor, Tensor]:
        f, g, *measured = ctx.saved_tensors
        grad_f, grad_g = _pullback(ctx.head, *measured, g, upstream)
        return None, grad_f.reshape(f.shape).to(f.dtype), grad_g.to(g.dtype)


def _normalize(
    head: Head, f: Tensor, g: Tensor, squares: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """`normalize` in plain PyTorch, f̂ in that dtype; what `_pullback` needs is f and m, both (B,)."""
    m = grad_norm(g, head.centre) if squares is None else squares.sum(1).sqrt().to(accumulator(g.dtype))
    logit = f.reshape(-1).to(m.dtype)
    return head.value(logit, m).reshape(f.shape).to(dtype), (logit, m)


def _pullback(
    head: Head, logit: Tensor, m: Tensor, g: Tensor, upstream: Tensor, wants_grad_g: bool = True
) -> tuple[Tensor, Tensor | None]:
    """∂L/∂f (B,) and, where it is wanted, ∂L/∂g (B, ...), in m's dtype, given ∂L/∂f̂ of f's shape."""
    by_f, by_m = head.partials(logit, m)
    upstream = upstream.reshape(-1).to(m.dtype)
    grad_g = None
    if wants_grad_g:
        # ∂m/∂g = (g − centre) / m, a unit vector, and 0 at m = 0.
        wide = g.to(m.dtype)
        direction = (wide - head.centre if head.centre else wide) / _per_sample(safe_divisor(m), g)
        grad_g = direction * _per_sample(upstream * by_m, g)
    return upstream * by_f, grad_g


def _per_sample(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (like.dim() - 1))
