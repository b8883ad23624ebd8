"""Sum and mean over axes other than the batch."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gnfast.plan.op import LinearMap, Shape, autocast_dtype, records


@dataclass(frozen=True)
class Sum(LinearMap):
    """Sum over `dims` (never 0), divided by their size where `mean`."""

    dims: tuple[int, ...]
    keepdim: bool
    mean: bool
    shares_cotangent: ClassVar[bool] = True

    def apply(self, *inputs: Tensor) -> Tensor:
        reduce = torch.mean if self.mean else torch.sum
        return reduce(inputs[0], self.dims, self.keepdim)

    def adjoint(self, cotangent: Tensor, shapes: Sequence[Shape]) -> Sequence[Tensor]:
        if self.mean:
            cotangent = cotangent / math.prod(shapes[0][dim] for dim in self.dims)
        if not self.keepdim:
            for dim in self.dims:
                cotangent = cotangent.unsqueeze(dim)
        return (cotangent.expand(shapes[0]),)

    def label(self) -> str:
        return f"{'mean' if self.mean else 'sum'} over {','.join(map(str, self.dims))}"


def _record(trace, input, dim, keepdim, dtype, mean):
    if dtype is None and not mean and (low := autocast_dtype(input.device.type)):
        dtype = _summed_under_autocast(input.device, input.dtype, low)
    if dtype is not None:
        input = trace.cast(input, dtype)
    if dim is None or dim == ():
        dims = tuple(range(input.dim()))
    else:
        dims = tuple(sorted({d % input.dim() for d in ((dim,) if isinstance(dim, int) else dim)}))
    if 0 in dims:
        trace.refuse("a reduction over the batch axis mixes samples")
    return trace.emit(Sum(dims, keepdim, mean), [input])


@functools.lru_cache
def _summed_under_autocast(device: torch.device, dtype: torch.dtype, low: torch.dtype) -> torch.dtype:
    """The dtype of a sum, which autocast widens on some devices; asked of PyTorch."""
    with torch.autocast(device.type, dtype=low):
        return torch.zeros(1, dtype=dtype, device=device).sum().dtype


@records(torch.sum, torch.Tensor.sum)
def _sum(trace, input, dim=None, keepdim=False, *, axis=None, dtype=None):
    return _record(trace, input, axis if dim is None else dim, keepdim, dtype, mean=False)


@records(torch.mean, torch.Tensor.mean)
def _mean(trace, input, dim=None, keepdim=False, *, axis=None, dtype=None):
    return _record(trace, input, axis if dim is None else dim, keepdim, dtype, mean=True)
