"""Means of one or two terms of a loss in a single program, and their gradients in one launch.

    mean_k = F_k Σ h_k(S_k x + c_k) / count_k,   ∂/∂x = ∂L/∂mean_k · F_k S_k h_k′(S_k x + c_k) / count_k

with signs S and F. `gnfast.kernels.loss` says which terms. Imported when it is chosen, as Triton may be missing.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from gnfast.kernels.jit import acc_type
from gnfast.kernels.loss import Formula

BLOCK = 1024
NUM_WARPS = 4
REGISTER_BUDGET = {"fp32": 64, "fp64": 128}
KINDS = {"identity": 0, "relu": 1, "softplus": 2, "square": 3, "cos": 4, "exp": 5}

_RELU = tl.constexpr(1)
_SOFTPLUS = tl.constexpr(2)
_SQUARE = tl.constexpr(3)
_COS = tl.constexpr(4)
_EXP = tl.constexpr(5)


@triton.jit
def _value(y, KIND: tl.constexpr):
    """h(y), NaN where y is."""
    if KIND == _RELU:
        h = tl.where(y <= 0, 0.0, y)
    elif KIND == _SOFTPLUS:
        # From 20 on it is y, as in PyTorch. log(w) · u / (w − 1) is log(1 + u) although w, which is 1 + u, was rounded.
        u = tl.exp(-tl.abs(y))
        w = 1 + u
        of_u = tl.where(w == 1, u, tl.log(w) * (u / tl.where(w == 1, 1.0, w - 1)))
        h = tl.where(y > 20, y, tl.where(y > 0, y, 0.0) + of_u)
    elif KIND == _SQUARE:
        h = y * y
    elif KIND == _COS:
        h = tl.cos(y)
    elif KIND == _EXP:
        h = tl.exp(y)
    else:
        h = y
    return h


@triton.jit
def _pulled(above, y, KIND: tl.constexpr):
    """above · h′(y). ReLU selects, so that infinite gradients make no NaN where it is flat."""
    if KIND == _RELU:
        gradient = tl.where(y <= 0, 0.0, above)
    elif KIND == _SOFTPLUS:
        u = tl.exp(-tl.abs(y))
        gradient = tl.where(y > 20, above, above * (tl.where(y > 0, 1.0, u) / (1 + u)))
    elif KIND == _SQUARE:
        gradient = above * (2 * y)
    elif KIND == _COS:
        gradient = above * -tl.sin(y)
    elif KIND == _EXP:
        gradient = above * tl.exp(y)
    else:
        gradient = tl.zeros_like(y) + above
    return gradient


@triton.jit
def _mean(logits, count, TERM: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr):
    """The mean of a term (kind, S, c, F)."""
    sums = tl.zeros((BLOCK,), ACC)
    for start in range(0, count, BLOCK):
        e = start + tl.arange(0, BLOCK)
        y = tl.load(logits + e, mask=e < count, other=0).to(ACC) * TERM[1] + TERM[2]
        sums += tl.where(e < count, _value(y, TERM[0]), 0.0)
    return tl.sum(sums, axis=0) * TERM[3] / count


@triton.jit
def _pull(above, logits, grads, count, TERM: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr):
    """The gradient of a term's mean, a block of it."""
    e = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    y = tl.load(logits + e, mask=e < count, other=0).to(ACC) * TERM[1] + TERM[2]
    gradient = _pulled(tl.load(above).to(ACC) / count * (TERM[1] * TERM[3]), y, TERM[0])
    tl.store(grads + e, gradient.to(grads.dtype.element_ty), mask=e < count)


@triton.jit
def _loss_means_kernel(
    first, second, means, first_count, second_count,
    FIRST: tl.constexpr, SECOND: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Of two terms; of one where SECOND is None."""
    tl.store(means, _mean(first, first_count, FIRST, ACC, BLOCK).to(means.dtype.element_ty))
    if SECOND is not None:
        tl.store(means + 1, _mean(second, second_count, SECOND, ACC, BLOCK).to(means.dtype.element_ty))


@triton.jit
def _loss_pull_kernel(
    upstream, step, first, second, grads, first_count, second_count,
    FIRST: tl.constexpr, SECOND: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradients of both terms, the first's and then the second's; ∂L/∂mean is every `step`-th entry of upstream."""
    _pull(upstream, first, grads, first_count, FIRST, ACC, BLOCK)
    if SECOND is not None:
        _pull(upstream + step, second, grads + first_count, second_count, SECOND, ACC, BLOCK)


def means(formulas: Sequence[Formula], logits: Sequence[Tensor]) -> Tensor:
    """The mean of each term on its logits, (number of terms,), in their dtype.

    Args:
        formulas: of one or two terms.
        logits: of each term, at least one number, of one dtype and device.
    """
    first, second, given = _arguments(formulas, logits)
    result = first.new_empty(len(formulas))
    with torch.cuda.device_of(first):
        _loss_means_kernel[(1,)](first, second, result, first.numel(), second.numel(), **given)
    return result


def pull(formulas: Sequence[Formula], logits: Sequence[Tensor], upstream: Tensor) -> Tensor:
    """The gradients with respect to all logits, one after the other: (their number,).

    Args:
        formulas, logits: as for `means`.
        upstream: ∂L/∂means, any stride.
    """
    first, second, given = _arguments(formulas, logits)
    counts = first.numel(), second.numel()
    grads = first.new_empty(sum(counts[: len(formulas)]))
    with torch.cuda.device_of(first):
        _loss_pull_kernel[(triton.cdiv(max(counts), BLOCK),)](
            upstream, upstream.stride(0), first, second, grads, *counts, **given
        )
    return grads


def _arguments(formulas: Sequence[Formula], logits: Sequence[Tensor]) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """The logits of two terms, one twice if there is no other, as arrays; and what is compiled in."""
    arrays = [t.contiguous() for t in logits]
    terms = [(KINDS[f.kind], 1.0 - 2 * f.mirrored, f.shift, 1.0 - 2 * f.negated) for f in formulas]
    given = {"FIRST": terms[0], "SECOND": terms[1] if len(terms) > 1 else None}
    return arrays[0], arrays[-1], given | {"ACC": acc_type(arrays[0].dtype), "BLOCK": BLOCK, "num_warps": NUM_WARPS}
