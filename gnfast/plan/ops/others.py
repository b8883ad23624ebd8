"""Functions that nobody need know better: linear ones (cumulative sums, diagonals), and those left to autograd."""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gnfast.plan.op import LinearCall, Shape, frozen
from gnfast.plan.records import records


@functools.lru_cache(maxsize=4096)
def _mixes(function: Callable[..., Tensor], args: Any, kwargs: Any, shape: Shape) -> bool:
    """Whether a sample of y depends on others than its own: if not, weights of samples come out as they go in."""
    generator = torch.Generator().manual_seed(0)
    h = torch.rand(shape, dtype=torch.float64, generator=generator)
    weights = torch.rand(shape[:1], dtype=torch.float64, generator=generator) + 0.5

    def weighted(t: Tensor) -> Tensor:
        return t * weights.view(-1, *[1] * (t.dim() - 1))

    y = function(h, *args, **dict(kwargs)) if shape else h[None]
    if y.shape[:1] != h.shape[:1]:
        return True
    return not torch.allclose(function(weighted(h), *args, **dict(kwargs)), weighted(y), rtol=1e-12, atol=1e-12)


@records("cumsum", "diff", "trace", "tril", "triu", "diag", "diagflat", "diag_embed", F.fold, told=True)
def _linear_call(function, trace, input, *args, **kwargs):
    if any(isinstance(value, Tensor) for value in (*args, *kwargs.values())):
        trace.refuse("further arguments that are tensors")
    args, kwargs = frozen(args), frozen(kwargs)
    mixes = _mixes(function, args, kwargs, tuple(input.shape))
    return trace.emit(LinearCall(function, args, kwargs), [input], mixes=mixes)


@records("take")
def _take(trace, input, index):
    return input.reshape(-1)[index.reshape(-1)].reshape(index.shape)


_BY_AUTOGRAD = (
    *("index_add", "index_copy", "index_fill", "index_put", "scatter", "scatter_add", "masked_scatter", "nan_to_num"),
    *("addmv", "addr", "addbmm", "tensordot", "kron", "cross", "remainder", "fmod", "frac", "fmax", "fmin"),
    *("logcumsumexp", "nanmean", "nansum", "renorm", F.affine_grid, torch.linalg.cross),
)


@records(*_BY_AUTOGRAD, told=True)
def _by_autograd(function, trace, *args, **kwargs):
    return trace.curved(function, *args, **kwargs)
