"""Sum and mean over axes other than the batch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from gnfast.plan.op import Op, Operands, Shape, records


@dataclass(frozen=True)
class Sum(Op):
    """Sum over `dims` (never 0), divided by their size where `mean`."""

    dims: tuple[int, ...]
    keepdim: bool
    mean: bool
    shares_cotangent: ClassVar[bool] = True

    def forward(self, inputs: Sequence[Tensor], operands: Operands, overwrite: bool) -> tuple[Tensor, None]:
        return self._reduce(inputs[0]), None

    def pullback(
        self, cotangent: Tensor, operands: Operands, saved: Any, shapes: Sequence[Shape], overwrite: bool
    ) -> Sequence[Tensor]:
        if self.mean:
            cotangent = cotangent / math.prod(shapes[0][dim] for dim in self.dims)
        if not self.keepdim:
            for dim in self.dims:
                cotangent = cotangent.unsqueeze(dim)
        return (cotangent.expand(shapes[0]),)

    def pushforward(
        self, tangents: Sequence[Tensor], operands: Operands, saved: Any, scale: Tensor | None, overwrite: bool
    ) -> Tensor:
        return self._reduce(tangents[0])

    def label(self) -> str:
        return f"{'mean' if self.mean else 'sum'} over {','.join(map(str, self.dims))}"

    def _reduce(self, h: Tensor) -> Tensor:
        return h.mean(self.dims, self.keepdim) if self.mean else h.sum(self.dims, self.keepdim)


def _record(trace, input, dim, keepdim, dtype, mean):
    if dtype not in (None, input.dtype):
        trace.refuse(f"a reduction that changes the dtype to {dtype}")
    if dim is None or dim == ():
        dims = tuple(range(input.dim()))
    else:
        dims = tuple(sorted({d % input.dim() for d in ((dim,) if isinstance(dim, int) else dim)}))
    if 0 in dims:
        trace.refuse("a reduction over the batch axis mixes samples")
    return trace.emit(Sum(dims, keepdim, mean), [input])


@records(torch.sum, torch.Tensor.sum)
def _sum(trace, input, dim=None, keepdim=False, *, axis=None, dtype=None):
    return _record(trace, input, axis if dim is None else dim, keepdim, dtype, mean=False)


@records(torch.mean, torch.Tensor.mean)
def _mean(trace, input, dim=None, keepdim=False, *, axis=None, dtype=None):
    return _record(trace, input, axis if dim is None else dim, keepdim, dtype, mean=True)
