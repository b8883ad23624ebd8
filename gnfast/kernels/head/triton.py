"""A normaliser on top of the passes in two Triton kernels: the norm and the value, then the coefficients and c₀.

    g = Σ terms, m = ‖g − centre‖, f̂ = φ(f, m) and its partial derivatives                           (normalize)
    s = ∂L/∂f = ∂L/∂f̂ · ∂f̂/∂f,   c₀ = s · x + ∂L/∂f̂ · ∂f̂/∂m · (g − centre) / m,   ∂L/∂x = s · g      (pull)

The formulas are those of `gnfast.heads`, which says what holds at m = 0 and f = 0 and calls these functions. Imported
when it is chosen, as Triton may be missing.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from gnfast.kernels.head import Formula
from gnfast.kernels.jit import acc_type
from gnfast.kernels.layout import accumulator, batch_major, filled, with_strides

BLOCK = 2048
NUM_WARPS = 8
REGISTER_BUDGET = {"fp32": 64, "fp64": 96}
KINDS = {"gn": 0, "gn0": 1, "shift": 2, "gran": 3}

_GN = tl.constexpr(0)
_GN0 = tl.constexpr(1)
_SHIFT = tl.constexpr(2)


@triton.jit
def value_and_partials(u, m, KIND: tl.constexpr, TAU: tl.constexpr, EPS: tl.constexpr):
    """φ(u, m) and its partial derivatives."""
    safe = tl.where(m == 0, 1.0, m)
    if KIND == _GN0:
        at_zero = tl.where(u == 0, 0.0, u * float("inf"))
        value = tl.where(m == 0, at_zero, u / safe)
        by_u = tl.where(m == 0, 0.0, 1 / safe)
        by_m = tl.where(m == 0, 0.0, -u / safe / safe)
    elif KIND == _GN:
        total = m + tl.abs(u)
        total = tl.where(total == 0, 1.0, total)
        value = u / total
        by_u = m / total / total
        by_m = -u / total / total
    elif KIND == _SHIFT:
        value = u / (m + EPS) / TAU
        by_u = 1 / (m + EPS) / TAU
        by_m = -u / (m + EPS) / (m + EPS) / TAU
    else:
        inverse = tl.where(m == 0, 0.0, 1 / (safe + EPS / safe))
        value = u * inverse / TAU
        by_u = inverse / TAU
        # From whichever of m²/ε and ε/m² is at most 1.
        root: tl.constexpr = EPS**0.5
        small = tl.where(m > root, 1.0, m / root)
        small = small * small
        large = tl.where(safe < root, 1.0, root / safe)
        large = large * large
        of_small = (1 - small) / ((1 + small) * (1 + small)) / EPS
        of_large = (large - 1) / ((1 + large) * (1 + large)) / safe / safe
        by_m = u / TAU * tl.where(m <= root, of_small, of_large)
    return value, by_u, by_m


@triton.jit
def _head_normalize_kernel(
    f, g, more, total, f_hat, partials, batch, per_sample,
    KIND: tl.constexpr, COMPLEMENT: tl.constexpr, CENTRE: tl.constexpr, TAU: tl.constexpr, EPS: tl.constexpr,
    TERMS: tl.constexpr, SQUARED: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """f̂, ∂f̂/∂f, ∂f̂/∂m and m of one sample; squares are added up in float64, whose range they do not leave.

    Of two TERMS the total, g + more, is written, and m is the norm of what was written, which `pull` divides by it.
    Where SQUARED, g holds sums of squares of (g − centre)."""
    sample = tl.program_id(0).to(tl.int64)
    row = g + sample * per_sample
    squares = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, per_sample, BLOCK):
        e = start + tl.arange(0, BLOCK)
        if SQUARED:
            squares += tl.load(row + e, mask=e < per_sample, other=0)
        else:
            entry = tl.load(row + e, mask=e < per_sample, other=CENTRE).to(ACC)
            if TERMS > 1:
                place = sample * per_sample + e
                entry += tl.load(more + place, mask=e < per_sample, other=0).to(ACC)
                rounded = entry.to(total.dtype.element_ty)
                tl.store(total + place, rounded, mask=e < per_sample)
                entry = rounded.to(ACC)
            entry -= CENTRE
            squares += entry.to(tl.float64) * entry.to(tl.float64)
    m = tl.sqrt(tl.sum(squares, axis=0)).to(ACC)
    u = tl.load(f + sample).to(ACC)
    if COMPLEMENT:
        u = 1 - u
    value, by_u, by_m = value_and_partials(u, m, KIND, TAU, EPS)
    tl.store(f_hat + sample, value.to(f_hat.dtype.element_ty))
    tl.store(partials + sample, -by_u if COMPLEMENT else by_u)
    # g − centre is 0 where m is, and so is the gradient of m.
    tl.store(partials + batch + sample, by_m)
    tl.store(partials + 2 * batch + sample, tl.where(m == 0, 1.0, m))


@triton.jit
def _head_pull_kernel(
    upstream, partials, x, g, scale, start, grad_x, batch, per_sample,
    CENTRE: tl.constexpr, WANTS_START: tl.constexpr, WANTS_GRAD_X: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """s, c₀ and ∂L/∂x of a block of one sample's entries."""
    sample = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    above = tl.load(upstream + sample).to(ACC)
    s = above * tl.load(partials + sample)
    if block == 0:
        tl.store(scale + sample, s)
    e = block * BLOCK + tl.arange(0, BLOCK)
    inside = e < per_sample
    place = sample * per_sample + e
    gradient = tl.load(g + place, mask=inside, other=0).to(ACC)
    if WANTS_START:
        along = above * tl.load(partials + batch + sample)
        # A unit vector first: the coefficient divided by m may leave the range where the product does not.
        direction = (gradient - CENTRE) / tl.load(partials + 2 * batch + sample)
        c = s * tl.load(x + place, mask=inside, other=0).to(ACC) + along * direction
        tl.store(start + place, c.to(start.dtype.element_ty), mask=inside)
    if WANTS_GRAD_X:
        tl.store(grad_x + place, (s * gradient).to(grad_x.dtype.element_ty), mask=inside)


def normalize(
    formula: Formula, f: Tensor, terms: Sequence[Tensor], squares: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """f̂ of f's shape in that dtype, g, and what `pull` needs: (3, B) partial derivatives and m.

    Args:
        terms: g, or two tensors of one dtype that add up to it.
        squares: float64 (B, parts), which add up to ‖g − centre‖² per sample; g, the only term, is not read then.
    """
    f, g, batch = f.contiguous(), terms[0], len(terms[0])
    entries = batch_major(g) if squares is None else squares.contiguous()
    more = [with_strides(t, entries.stride()) for t in terms[1:]]
    g = torch.empty_like(entries) if more else g
    acc = accumulator(g.dtype)
    f_hat = torch.empty_like(f, dtype=dtype)
    partials = g.new_empty((3, batch), dtype=acc)
    if batch:
        with torch.cuda.device_of(g):
            _head_normalize_kernel[(batch,)](
                f, entries, *filled(more, 1, entries), g if more else f_hat, f_hat, partials, batch,
                entries.numel() // batch, KIND=KINDS[formula.kind], COMPLEMENT=formula.complement,
                CENTRE=formula.centre, TAU=formula.tau, EPS=formula.eps, TERMS=len(terms), SQUARED=squares is not None,
                ACC=acc_type(acc), BLOCK=BLOCK, num_warps=NUM_WARPS,
            )  # fmt: skip
    return f_hat, g, partials


def pull(
    formula: Formula,
    partials: Tensor,
    upstream: Tensor,
    x: Tensor,
    g: Tensor,
    wants_start: bool,
    wants_grad_x: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """s (B,), and c₀, in that dtype, and ∂L/∂x of x's shape where they are wanted.

    Args:
        partials: from `normalize`.
        upstream: ∂L/∂f̂, of f's shape.
        x, g: the input and its gradient (B, ...).
    """
    x = batch_major(x)
    g, upstream = with_strides(g, x.stride()), upstream.contiguous()
    batch = len(x)
    scale = partials.new_empty((batch,))
    start = torch.empty_like(x, dtype=dtype) if wants_start else None
    grad_x = torch.empty_like(x) if wants_grad_x else None
    if batch:
        per_sample = x.numel() // batch
        with torch.cuda.device_of(x):
            # A sample without entries has an s as well.
            _head_pull_kernel[(batch, max(1, triton.cdiv(per_sample, BLOCK)))](
                upstream, partials, x, g, scale, x if start is None else start, x if grad_x is None else grad_x,
                batch, per_sample, CENTRE=formula.centre, WANTS_START=wants_start, WANTS_GRAD_X=wants_grad_x,
                ACC=acc_type(partials.dtype), BLOCK=BLOCK, num_warps=NUM_WARPS,
            )  # fmt: skip
    return scale, start, grad_x
