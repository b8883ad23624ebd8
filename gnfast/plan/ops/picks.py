"""Maxima of windows, sorting, order statistics: which entry of the input each one of the output is, is the mask."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from gnfast.plan.op import Context, Op, axes_of, frozen
from gnfast.plan.ops.choice import Extremum, maximum_of
from gnfast.plan.records import records


@dataclass(frozen=True)
class Pick(Op):
    """The entries that function(h, *args, **kwargs) picks along `dim`, or in windows of space where that is None.

    The function returns values and indices, as torch.max and F.max_pool2d_with_indices do. Keeps the indices (int64).
    """

    function: Callable[..., Any]
    args: tuple[Any, ...] = ()
    kwargs: tuple[tuple[str, Any], ...] = ()
    dim: int | None = None
    homogeneous: ClassVar[bool] = True
    mask_bits: ClassVar[float] = 64

    def forward(self, ctx: Context, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        values, indices = self.function(inputs[0], *self.args, **dict(self.kwargs))
        return values, indices

    def pullback(self, ctx: Context, cotangent: Tensor) -> Sequence[Tensor]:
        zeros = self._flattened(cotangent.new_zeros(ctx.shapes[0]))
        picked, indices = self._flattened(cotangent), self._flattened(ctx.saved)
        return (zeros.scatter_add_(self._axis, indices, picked).view(ctx.shapes[0]),)

    def pushforward(self, ctx: Context, *tangents: Tensor) -> Tensor:
        found = self._flattened(tangents[0]).gather(self._axis, self._flattened(ctx.saved))
        return found.view(ctx.saved.shape)

    def label(self) -> str:
        if self.dim is not None:
            return f"{self.function.__name__} over {self.dim}"
        return f"{self.function.__name__.removesuffix('_with_indices')} {self.args[0]}"

    @property
    def zeros_below(self) -> bool:
        return self.dim is None

    @property
    def _axis(self) -> int:
        return 2 if self.dim is None else self.dim

    def _flattened(self, t: Tensor) -> Tensor:
        """The tensor with the axes of choice as one."""
        return t.flatten(2) if self.dim is None else t


class Indices:
    """Stands for the indices that come with a maximum's values: integers that depend on x, and are not recorded."""

    def __init__(self, trace: Any) -> None:
        self._trace = trace

    def __getattr__(self, name: str) -> Any:
        self._trace.refuse("the indices of a maximum depend on x")

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        found = next(a for a in (*args, *(kwargs or {}).values()) if isinstance(a, cls))
        found._trace.refuse("the indices of a maximum depend on x", operation=func.__name__)


def _pick(trace, function, input, dim, *args, keepdim=True, **kwargs):
    """The named tuple (values, indices) that `function` returns."""
    if not input.dim():
        trace.refuse("a choice among the axes of what has none")
    (dim,) = axes_of(input, dim)
    if dim == 0 and not keepdim and (parts := trace.stacks.get(input.value)):
        return _pick(trace, function, torch.stack(parts, 1), 1, *args, keepdim=False, **kwargs)
    kwargs |= {"dim": dim} | ({} if function in (torch.sort, torch.topk) else {"keepdim": True})
    values = trace.emit(Pick(function, args, tuple(kwargs.items()), dim), [input], mixes=dim == 0)
    result = getattr(torch.return_types, function.__name__)
    return result((values if keepdim else values.squeeze(dim), Indices(trace)))


@records("max", "min", told=True)
def _max(function, trace, input, dim=None, keepdim=False, *, other=None):
    if isinstance(dim, Tensor) or other is not None:
        return maximum_of(function, trace, input, dim if other is None else other)
    if dim is None:
        return input.amax() if function.__name__ == "max" else input.amin()
    return _pick(trace, getattr(torch, function.__name__), input, dim, keepdim=keepdim)


@records("median")
def _median(trace, input, dim=None, keepdim=False):
    if dim is None:
        return trace.emit(Extremum(tuple(range(input.dim())), False, 0), [input], mixes=True)
    return _pick(trace, torch.median, input, dim, keepdim=keepdim)


@records("kthvalue")
def _kthvalue(trace, input, k, dim=-1, keepdim=False):
    return _pick(trace, torch.kthvalue, input, dim, k, keepdim=keepdim)


@records("sort")
def _sort(trace, input, dim=-1, descending=False, *, stable=False):
    return _pick(trace, torch.sort, input, dim, descending=descending, stable=stable)


@records("topk")
def _topk(trace, input, k, dim=-1, largest=True, sorted=True):
    return _pick(trace, torch.topk, input, dim, k, largest=largest, sorted=sorted)


_POOLINGS = [f"{name}{dims}d" for name in ("max_pool", "adaptive_max_pool") for dims in (1, 2, 3)]


@records(*(getattr(F, name + suffix) for name in _POOLINGS for suffix in ("", "_with_indices")), told=True)
def _max_pool(function, trace, input, *args, return_indices=False, **kwargs):
    name = function.__name__.removesuffix("_with_indices")
    op = Pick(getattr(F, f"{name}_with_indices"), frozen(args), frozen(kwargs))
    batched = trace.batched(input, int(name[-2]) + 2)
    y = trace.emit(op, [trace.autocast(function, batched, 1)])
    y = y if batched is input else y.squeeze(0)
    return y if function is getattr(F, name) else (y, Indices(trace))
