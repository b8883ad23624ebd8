"""Maxima of windows, sorting, order statistics: which entry of the input each one of the output is, is the mask."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from gnfast.plan.op import Context, Op, records
from gnfast.plan.ops.choice import maximum_of
from gnfast.plan.ops.conv import sizes
from gnfast.plan.ops.pool import across, adaptive_sizes, emit_across


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
        return (zeros.scatter_add_(self.dim or 2, indices, picked).view(ctx.shapes[0]),)

    def pushforward(self, ctx: Context, *tangents: Tensor) -> Tensor:
        found = self._flattened(tangents[0]).gather(self.dim or 2, self._flattened(ctx.saved))
        return found.view(ctx.saved.shape)

    def label(self) -> str:
        if self.dim is not None:
            return f"{self.function.__name__} over {self.dim}"
        size = self.args[0]
        return f"{self.function.__name__.split('_with_')[0]} {size[0] if len(set(size)) == 1 else size}"

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
    dim, *_ = trace.axes(input, dim, "a choice")
    kwargs |= {"dim": dim} | ({} if function in (torch.sort, torch.topk) else {"keepdim": True})
    values = trace.emit(Pick(function, args, tuple(kwargs.items()), dim), [input])
    result = getattr(torch.return_types, function.__name__)
    return result((values if keepdim else values.squeeze(dim), Indices(trace)))


@records("max", "min", told=True)
def _max(function, trace, input, dim=None, keepdim=False, *, other=None):
    if isinstance(dim, Tensor) or other is not None:
        return maximum_of(function, trace, input, dim if other is None else other)
    return _pick(trace, getattr(torch, function.__name__), input, dim, keepdim=keepdim)


@records("median")
def _median(trace, input, dim=None, keepdim=False):
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


def _windows(dims, input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False):
    kernel, padding, dilation = (sizes(value, dims) for value in (kernel_size, padding, dilation))
    stride = sizes(stride, dims) if stride else kernel
    return across(kernel), across(stride), across(padding, 0), across(dilation), ceil_mode


def _adaptive_windows(dims, input, output_size):
    return (across(adaptive_sizes(output_size, input)),)


def _records_max_pool(name, dims, arguments):
    """Records a function and its twin that returns the indices as well."""
    alone = getattr(F, f"{name}{dims}d")

    @records(alone, getattr(F, f"{name}{dims}d_with_indices"), told=True)
    def pooled(function, trace, input, *args, return_indices=False, **kwargs):
        trace.require_batched(input, dims=dims + 2)
        op = Pick(getattr(F, f"{name}{max(dims, 2)}d_with_indices"), arguments(dims, input, *args, **kwargs))
        y = emit_across(trace, op, trace.autocast(function, input, 1))
        return y if function is alone else (y, Indices(trace))


for _dims in (1, 2, 3):
    _records_max_pool("max_pool", _dims, _windows)
    _records_max_pool("adaptive_max_pool", _dims, _adaptive_windows)
