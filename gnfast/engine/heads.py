"""Normalisers as data: f̂ = φ(f, m) with its two partial derivatives, where m is a norm of the input gradient.

Adding one begins with an entry of `METHODS`; the recipe in CONTRIBUTING.md has the rest.
"""

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Literal

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


def _safe(total: Tensor) -> Tensor:
    """As a divisor, a total that is not negative gives 0 where it is 0, and a gradient of 0. NaN stays NaN."""
    return torch.threshold(total, 0.0, math.inf)


def _gn_partials(f: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
    # Two divisions: the square of a small float32 total would underflow.
    total = _safe(n + f.abs())
    return n / total / total, -f / total / total


GN = Head("gn", lambda f, n: f / _safe(n + f.abs()), _gn_partials, formula=Formula("gn"))
"""f̂ = f / (n + |f|) (GN-GAN, Wu et al., ICCV 2021, eq. 11): sign(f) where n = 0, and 0 where f is 0 as well."""


def _gn0_partials(f: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
    alive, safe = n != 0, _safe(n)
    return alive / safe, -(alive * f) / safe / safe


def _gn0(f: Tensor, n: Tensor) -> Tensor:
    at_zero = torch.where(f == 0, 0, f.detach() * torch.inf)
    return torch.where(n == 0, at_zero, f / _safe(n))


GN0 = Head("gn0", _gn0, _gn0_partials, formula=Formula("gn0"))
"""f̂ = f / n (GN-GAN's ablation ζ = 0): ±∞ with zero gradient where n = 0, and 0 where f is 0 as well."""


def _check_positive(**options: float) -> None:
    for name, given in options.items():
        if not given > 0:
            raise InputError(f"{name}: got {given!r}, wanted a positive number")


@functools.lru_cache
def gran(tau: float = 1.0, eps: float = 0.1) -> Head:
    """f̂ = f n / (τ (n² + ε)) (GraN-GAN, Bhaskara et al., WACV 2022, eq. 20): Lipschitz constant ≤ 1/τ; 0 at n = 0.

    Args:
        tau: positive; the paper writes K = 1/τ and uses K = 0.83 on CIFAR-10.
        eps: positive; the smoothing of small gradients.
    """
    _check_positive(tau=tau, eps=eps)

    # 1 / (n + ε/n) is n / (n² + ε) without n², which overflows and underflows where n does not.
    def inverse(n: Tensor) -> Tensor:
        safe = _safe(n)
        return 1 / (safe + eps / safe)

    def partials(f: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
        # ∂/∂n of n / (n² + ε), from whichever of n²/ε and ε/n² is at most 1.
        small, large = (n / eps**0.5).clamp(max=1).square(), (eps**0.5 / _safe(n)).clamp(max=1).square()
        of_small = (1 - small) / (1 + small).square() / eps
        of_large = (large - 1) / (1 + large).square() / _safe(n) / _safe(n)
        by_n = torch.where(n <= eps**0.5, of_small, of_large)
        return inverse(n) / tau, f / tau * by_n

    formula = Formula("gran", tau=float(tau), eps=float(eps))
    return Head("gran", lambda f, n: f * inverse(n) / tau, partials, formula=formula)


@functools.lru_cache
def gran_shift(tau: float = 1.0, eps: float = 0.1) -> Head:
    """f̂ = f / (τ (n + ε)) (GraN-GAN, after eq. 16: R(n) = 1 / (n + ε)): Lipschitz constant < 1/τ; f / (τ ε) at n = 0.

    Args:
        tau, eps: positive, as in `gran`.
    """
    _check_positive(tau=tau, eps=eps)

    def partials(f: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
        return 1 / (n + eps) / tau, -f / (n + eps) / (n + eps) / tau

    formula = Formula("shift", tau=float(tau), eps=float(eps))
    return Head("gran-shift", lambda f, n: f / (n + eps) / tau, partials, formula=formula)


GN1 = dataclasses.replace(gran_shift(tau=1.0, eps=1.0), name="gn1")
"""f̂ = f / (n + 1) (GN-GAN's ablation ζ = 1)."""


def _of_complement(head: Head, name: str, centre: float) -> Head:
    """The head of 1 − f."""

    def partials(f: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
        by_f, by_m = head.partials(1 - f, m)
        return -by_f, by_m

    formula = head.formula._replace(complement=True, centre=centre)
    return Head(name, lambda f, m: head.value(1 - f, m), partials, centre, formula=formula)


PGN = _of_complement(GN, "pgn", centre=1.0)
"""f̂ = (1 − f) / (‖1 − ∇f‖ + |1 − f|), 1 an image of ones (PGN-GAN, Xia 2023: its code and Algorithm 1)."""

PGN_TABLE = _of_complement(GN, "pgn-table", centre=0.0)
"""f̂ = (1 − f) / (‖∇f‖ + |1 − f|) (PGN-GAN, Xia 2023: Table I and eqs. 11–14)."""

METHODS: dict[str, Callable[..., Head]] = {
    "gn": lambda: GN,
    "gn0": lambda: GN0,
    "gn1": lambda: GN1,
    "gran": gran,
    "gran-shift": gran_shift,
    "pgn": lambda: PGN,
    "pgn-table": lambda: PGN_TABLE,
}
"""Name of a method: the head for the options that it takes."""

Name = Literal["gn", "gn0", "gn1", "gran", "gran-shift", "pgn", "pgn-table"]
"""The keys of `METHODS`, for type checkers."""

Method = Name | Head | Value


def find(method: Method, **options: float | None) -> Head:
    """The head that `method` names, is, or computes; options that are None are left at the method's default.

    Raises:
        InputError: an unknown name, or an option that the method does not take.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if isinstance(method, str):
        if method not in METHODS:
            raise InputError(f"method: got {method!r}, wanted one of {', '.join(METHODS)}, a gnfast.Head or a function")
        if given and (unknown := sorted(given.keys() - inspect.signature(METHODS[method]).parameters.keys())):
            raise InputError(f"{unknown[0]}: method {method!r} does not take it")
        return METHODS[method](**given)
    if given:
        raise InputError(f"{next(iter(given))}: only named methods take options")
    if isinstance(method, Head):
        return method
    if callable(method):
        return Head(getattr(method, "__name__", type(method).__name__), method)
    raise InputError(f"method: got a {type(method).__name__}, wanted a name, a gnfast.Head or a function of (f, n)")


def grad_norm(g: Tensor, centre: float = 0.0) -> Tensor:
    """‖g − centre‖₂ per sample (B,), in float32 or better; its own gradient at 0 is 0."""
    wide = g.to(accumulator(g.dtype))
    # Squares of float32 numbers leave its range where the numbers do not: they are added up in float64.
    return torch.linalg.vector_norm(
        wide - centre if centre else wide, dim=tuple(range(1, g.dim())), dtype=torch.float64
    ).to(wide.dtype)


def apply_head(head: Head, f: Tensor, g: Tensor) -> Tensor:
    """f̂ of f's shape, in the wider of the two dtypes, from the critic's output f (B, ...) and its input gradient g.

    Differentiable with respect to f and g: once where the head has partial derivatives of its own, as often as they and
    the head are otherwise.
    """
    if f.dim() and len(f) != len(g):
        raise InputError(f"net: got {tuple(f.shape)} from the network for x of {tuple(g.shape)}, wanted a row a sample")
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
    if not f.dim() and len(g) != 1:
        raise InputError(f"net: got a number from the network for a batch of {len(g)}, wanted one logit per sample")
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
        direction = (wide - head.centre if head.centre else wide) / _per_sample(_safe(m), g)
        grad_g = direction * _per_sample(upstream * by_m, g)
    return upstream * by_f, grad_g


def _per_sample(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (like.dim() - 1))
