"""A normaliser on top of the passes by the compiled library, and what torch.compile is told of its operators.

`normalize` and `pull` do what those of `triton.py` do. Partial derivatives and m are float64.
"""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from gnfast.kernels.fakes import fake_of
from gnfast.kernels.head import Formula
from gnfast.kernels.layout import accumulator, batch_major

_operators = torch.ops.gnfast
_normalize, _pull = _operators.head_normalize.default, _operators.head_pull.default


def normalize(
    formula: Formula, f: Tensor, terms: Sequence[Tensor], squares: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    g = functools.reduce(torch.add, terms)
    f_hat, partials = _normalize(f, g, squares, dtype, *formula)
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
    return _pull(partials, upstream, x, g, formula.centre, wants_start, wants_grad_x, dtype)


@fake_of(_normalize)
def _(f, g, squares, dtype, *formula):
    return f.new_empty(f.shape, dtype=dtype), g.new_empty((3, len(g)), dtype=torch.float64)


@fake_of(_pull)
def _(partials, upstream, x, g, centre, wants_start, wants_grad_x, dtype):
    x = batch_major(x)
    start = torch.empty_like(x, dtype=dtype) if wants_start else None
    return g.new_empty((len(x),), dtype=accumulator(g.dtype)), start, torch.empty_like(x) if wants_grad_x else None
