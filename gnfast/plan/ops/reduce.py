"""Sum and mean over some axes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gnfast.plan.op import Context, LinearMap, axes_of
from gnfast.plan.records import records


@dataclass(frozen=True)
class Sum(LinearMap):
    """Sum over `dims`, divided by their size where `mean`.

    With `dtypes`, those of h and y: a conversion first, which is no pass of its own.
    """

    dims: tuple[int, ...]
    keepdim: bool
    mean: bool
    dtypes: tuple[torch.dtype, torch.dtype] | None = None
    shares_cotangent: ClassVar[bool] = True

    def pullback(self, ctx: Context, cotangent: Tensor) -> Sequence[Tensor]:
        shape = ctx.shapes[0]
        if self.mean:
            cotangent = cotangent / math.prod(shape[dim] for dim in self.dims)
        if self.dtypes:
            cotangent = cotangent.to(self.dtypes[0])
        if not self.keepdim:
            for dim in self.dims:
                cotangent = cotangent.unsqueeze(dim)
        return (cotangent.expand(shape),)

    def pushforward(self, ctx: Context, *tangents: Tensor) -> Tensor:
        reduce = torch.mean if self.mean else torch.sum
        return reduce(tangents[0], self.dims, self.keepdim, dtype=self.dtypes and self.dtypes[1])

    def label(self) -> str:
        return f"{'mean' if self.mean else 'sum'} over {','.join(map(str, self.dims))}"


@records("sum", "mean", told=True)
def _sum(function, trace, input, dim=None, keepdim=False, *, dtype=None):
    mean, own = function.__name__ == "mean", input.dtype
    target = dtype or (own if mean else trace.autocasts_to(torch.sum, input))
    dtypes = None if target == own else (own, target)
    dims = axes_of(input, dim)
    if dims == (0,) and not keepdim and (parts := trace.stacks.get(input.value)):
        return function(torch.stack(parts, 1), 1, dtype=dtype)
    return trace.emit(Sum(dims, keepdim, mean, dtypes), [input], mixes=0 in dims)


@records(torch.linalg.vector_norm)
def _vector_norm(trace, input, ord=2, dim=None, keepdim=False, *, dtype=None):
    if isinstance(ord, str):
        trace.refuse("a norm of matrices")
    if ord not in (1, math.inf, -math.inf):
        return trace.curved(torch.linalg.vector_norm, input, ord, dim, keepdim, dtype=dtype)
    size = (trace.cast(input, dtype) if dtype else trace.autocast(torch.linalg.vector_norm, input)).abs()
    if ord == 1:
        return size.sum(dim, keepdim, dtype=size.dtype)
    dim = () if dim is None else dim
    return size.amax(dim, keepdim) if ord > 0 else size.amin(dim, keepdim)


@records(torch.linalg.norm)
def _linalg_norm(trace, A, ord=None, dim=None, keepdim=False, *, dtype=None):
    axes = A.dim() if dim is None else 1 if isinstance(dim, int) else len(dim)
    if ord is not None and axes > 1:
        trace.refuse("a norm of matrices")
    return torch.linalg.vector_norm(A, 2 if ord is None else ord, dim, keepdim, dtype=dtype)


@records("norm")
def _norm(trace, input, p="fro", dim=None, keepdim=False, out=None, dtype=None):
    if out is not None:
        trace.refuse("a tensor to write the result to")
    return torch.linalg.vector_norm(input, 2 if p is None or p == "fro" else p, dim, keepdim, dtype=dtype)
