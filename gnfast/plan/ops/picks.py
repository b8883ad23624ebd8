"""Maxima of windows, sorting, order statistics: which entry of the input each one of the output is, is the mask."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from gnfast.plan.op import Context, Op, records
from gnfast.plan.ops.choice import choice_axes, maximum_of
from gnfast.plan.ops.conv import Sizes, sizes
from gnfast.plan.ops.pool import across, adaptive_sizes


class _Picks(Op):
    """Ops whose every output entry is one input entry, found again by its index along some axes.

    Keeps the indices (int64): over all axes of space as one, unless a subclass says otherwise.
    """

    mask_bits: ClassVar[float] = 64
    homogeneous: ClassVar[bool] = True

    def _flattened(self, t: Tensor) -> tuple[Tensor, int]:
        """The tensor with the axes of choice as one, and which axis that is."""
        return t.flatten(2), 2

    def pullback(self, ctx: Context, cotangent: Tensor) -> Sequence[Tensor]:
        picked, dim = self._flattened(cotangent)
        indices, _ = self._flattened(ctx.saved)
        zeros, _ = self._flattened(cotangent.new_zeros(ctx.shapes[0]))
        return (zeros.scatter_add_(dim, indices, picked).view(ctx.shapes[0]),)

    def pushforward(self, ctx: Context, *tangents: Tensor) -> Tensor:
        flat, dim = self._flattened(tangents[0])
        indices, _ = self._flattened(ctx.saved)
        return flat.gather(dim, indices).view(ctx.saved.shape)


@dataclass(frozen=True)
class MaxPool(_Picks):
    """Maximum over windows of h (B, C, *space); the first of equals."""

    kernel: Sizes
    stride: Sizes
    padding: Sizes
    dilation: Sizes
    ceil_mode: bool

    def forward(self, ctx: Context, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        pool = F.max_pool2d_with_indices if len(self.kernel) == 2 else F.max_pool3d_with_indices
        return pool(inputs[0], self.kernel, self.stride, self.padding, self.dilation, self.ceil_mode)

    def label(self) -> str:
        return f"max_pool{len(self.kernel)}d {self.kernel[0] if len(set(self.kernel)) == 1 else self.kernel}"


@dataclass(frozen=True)
class AdaptiveMaxPool(_Picks):
    """Maximum over `size` windows that cover h (B, C, *space); the first of equals."""

    size: Sizes

    def forward(self, ctx: Context, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        pool = F.adaptive_max_pool2d_with_indices if len(self.size) == 2 else F.adaptive_max_pool3d_with_indices
        return pool(inputs[0], self.size)

    def label(self) -> str:
        return f"adaptive_max_pool{len(self.size)}d {self.size[0] if len(set(self.size)) == 1 else self.size}"


@dataclass(frozen=True)
class Pick(_Picks):
    """What a function picks along `dim`: torch.max, min, sort, topk, median, kthvalue with their static arguments."""

    function: Callable[..., Any]
    dim: int
    args: tuple[Any, ...] = ()
    kwargs: tuple[tuple[str, Any], ...] = ()

    def forward(self, ctx: Context, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        keepdim = {} if self.function in (torch.sort, torch.topk) else {"keepdim": True}
        values, indices = self.function(inputs[0], *self.args, dim=self.dim, **dict(self.kwargs), **keepdim)
        return values, indices

    def label(self) -> str:
        return f"{self.function.__name__} over {self.dim}"

    def _flattened(self, t: Tensor) -> tuple[Tensor, int]:
        return t, self.dim


class Indices:
    """Stands for the indices beside a maximum's values: integers that depend on x, and are not recorded."""

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
    if dim is None:
        trace.refuse("a choice along the batch axis mixes samples")
    (dim,) = choice_axes(trace, input, dim)
    values = trace.emit(Pick(function, dim, args, tuple(kwargs.items())), [input])
    result = getattr(torch.return_types, function.__name__)
    return result((values if keepdim else values.squeeze(dim), Indices(trace)))


@records("max", "min", told=True)
def _max(trace, function, input, dim=None, keepdim=False, *, other=None):
    function = getattr(torch, function.__name__)
    if isinstance(dim, Tensor) or other is not None:
        return maximum_of(trace, input, dim if other is None else other, 1 if function is torch.max else -1)
    return _pick(trace, function, input, dim, keepdim=keepdim)


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
    kernel = sizes(kernel_size, dims)
    stride = sizes(stride, dims) if stride else kernel
    return MaxPool(
        *(across(kernel), across(stride), across(sizes(padding, dims), 0), across(sizes(dilation, dims)), ceil_mode)
    )


def _adaptive_windows(dims, input, output_size):
    return AdaptiveMaxPool(across(adaptive_sizes(output_size, input)))


def _records_max_pool(name, dims, op_of):
    """Records a function and its twin that returns the indices as well."""

    def pooled(trace, function, input, *args, return_indices=False, **kwargs):
        trace.require_batched(input, dims=dims + 2)
        op = op_of(dims, input, *args, **kwargs)
        input = trace.autocast(function, input, 1)
        y = trace.emit(op, [input]) if dims > 1 else trace.emit(op, [input.unsqueeze(2)]).squeeze(2)
        return y if function is alone else (y, Indices(trace))

    alone = getattr(F, name)
    records(alone, getattr(F, f"{name}_with_indices"), told=True)(pooled)


for _dims in (1, 2, 3):
    _records_max_pool(f"max_pool{_dims}d", _dims, _windows)
    _records_max_pool(f"adaptive_max_pool{_dims}d", _dims, _adaptive_windows)
