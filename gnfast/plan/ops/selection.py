"""Maxima, minima and sorting: which entries they pick is the mask."""

import numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from gnfast.plan.op import Op, Operands, Shape, kept, per_sample, records
from gnfast.plan.ops.conv import Sizes, sizes
from gnfast.plan.ops.pool import adaptive_sizes


class _Picks(Op):
    """Ops whose every output entry is one input entry, found again by its index along some axes.

    Keeps the indices (int64). A subclass says which axes are flattened into one, at `start`.
    """

    mask_bits: ClassVar[float] = 64

    def _flattened(self, t: Tensor) -> tuple[Tensor, int]:
        """The tensor with the axes of choice as one, and which axis that is."""
        raise NotImplementedError

    def pullback(
        self, cotangent: Tensor, operands: Operands, saved: Tensor, shapes: Sequence[Shape], overwrite: bool
    ) -> Sequence[Tensor]:
        picked, dim = self._flattened(cotangent)
        indices, _ = self._flattened(saved)
        zeros, _ = self._flattened(cotangent.new_zeros(shapes[0]))
        return (zeros.scatter_add_(dim, indices, picked).view(shapes[0]),)

    def pushforward(
        self, tangents: Sequence[Tensor], operands: Operands, saved: Tensor, scale: Tensor | None, overwrite: bool
    ) -> Tensor:
        flat, dim = self._flattened(tangents[0])
        indices, _ = self._flattened(saved)
        return flat.gather(dim, indices).view(saved.shape)


@dataclass(frozen=True)
class MaxPool(_Picks):
    """Maximum over windows of h (B, C, *space); the first of equals."""

    kernel: Sizes
    stride: Sizes
    padding: Sizes
    dilation: Sizes
    ceil_mode: bool

    def forward(self, inputs: Sequence[Tensor], operands: Operands, overwrite: bool) -> tuple[Tensor, Tensor]:
        pool = F.max_pool2d_with_indices if len(self.kernel) == 2 else F.max_pool3d_with_indices
        return pool(inputs[0], self.kernel, self.stride, self.padding, self.dilation, self.ceil_mode)

    def label(self) -> str:
        return f"max_pool{len(self.kernel)}d {self.kernel[0] if len(set(self.kernel)) == 1 else self.kernel}"

    def _flattened(self, t: Tensor) -> tuple[Tensor, int]:
        return t.flatten(2), 2


@dataclass(frozen=True)
class AdaptiveMaxPool(_Picks):
    """Maximum over `size` windows that cover h (B, C, *space); the first of equals."""

    size: Sizes

    def forward(self, inputs: Sequence[Tensor], operands: Operands, overwrite: bool) -> tuple[Tensor, Tensor]:
        pool = F.adaptive_max_pool2d_with_indices if len(self.size) == 2 else F.adaptive_max_pool3d_with_indices
        return pool(inputs[0], self.size)

    def label(self) -> str:
        return f"adaptive_max_pool{len(self.size)}d {self.size[0] if len(set(self.size)) == 1 else self.size}"

    def _flattened(self, t: Tensor) -> tuple[Tensor, int]:
        return t.flatten(2), 2


@dataclass(frozen=True)
class Pick(_Picks):
    """What a function picks along `dim`: torch.max, min, sort, topk, median, kthvalue with their static arguments."""

    function: Callable[..., Any]
    dim: int
    args: tuple[Any, ...] = ()
    kwargs: tuple[tuple[str, Any], ...] = ()

    def forward(self, inputs: Sequence[Tensor], operands: Operands, overwrite: bool) -> tuple[Tensor, Tensor]:
        values, indices = self.function(inputs[0], *self.args, dim=self.dim, **dict(self.kwargs), **self._keepdim)
        return values, indices

    def label(self) -> str:
        return f"{self.function.__name__} over {self.dim}"

    @property
    def _keepdim(self) -> dict[str, bool]:
        return {} if self.function in (torch.sort, torch.topk) else {"keepdim": True}

    def _flattened(self, t: Tensor) -> tuple[Tensor, int]:
        return t, self.dim


@dataclass(frozen=True)
class Maximum(Op):
    """The larger (`sign` 1) or smaller (-1) of two tensors; equals share the gradient evenly.

    Both are x-dependent, or the second is an operand. Keeps one byte per entry: 1 where the first is chosen, -1 where
    the second is, 0 where they are equal.
    """

    sign: int
    promotes: ClassVar[bool] = True
    mask_bits: ClassVar[float] = 8

    def forward(self, inputs: Sequence[Tensor], operands: Operands, overwrite: bool) -> tuple[Tensor, Tensor]:
        first, second = *inputs, *operands
        y = torch.maximum(first, second) if self.sign > 0 else torch.minimum(first, second)
        order = (first > second).to(torch.int8) - (first < second).to(torch.int8)
        return y, order * self.sign

    def pullback(
        self, cotangent: Tensor, operands: Operands, saved: Tensor, shapes: Sequence[Shape], overwrite: bool
    ) -> Sequence[Tensor]:
        zero = cotangent.new_zeros(())
        both = self._chosen(saved, cotangent, zero), self._chosen(saved, zero, cotangent)
        return [share.sum_to_size(shape) for share, shape in zip(both, shapes, strict=False)]

    def pushforward(
        self, tangents: Sequence[Tensor], operands: Operands, saved: Tensor, scale: Tensor | None, overwrite: bool
    ) -> Tensor:
        t = tangents[0]
        scale = t.new_zeros(t.shape[0]) if scale is None else scale
        return self._chosen(saved, *tangents, *(per_sample(scale, t) * k for k in operands))

    def param_grad(
        self,
        cotangent: Tensor,
        tangents: Sequence[Tensor],
        operands: Operands,
        saved: Tensor,
        scale: Tensor | None,
        needs: Sequence[bool],
    ) -> Sequence[Tensor | None]:
        if not any(needs) or scale is None:
            return [None] * len(operands)
        share = self._chosen(saved, cotangent.new_zeros(()), per_sample(scale, cotangent) * cotangent)
        return [share.sum_to_size(operands[0].shape)]

    def label(self) -> str:
        return "maximum" if self.sign > 0 else "minimum"

    @staticmethod
    def _chosen(order: Tensor, first: Tensor, second: Tensor) -> Tensor:
        # Not a weighted sum: what is not chosen may be infinite.
        return torch.where(order > 0, first, torch.where(order < 0, second, (first + second) / 2))


@dataclass(frozen=True)
class Extremum(Op):
    """torch.amax (`sign` 1) or amin (-1) over `dims`; equals share the gradient evenly. Keeps one byte per entry."""

    dims: tuple[int, ...]
    keepdim: bool
    sign: int
    mask_bits: ClassVar[float] = 8

    def forward(self, inputs: Sequence[Tensor], operands: Operands, overwrite: bool) -> tuple[Tensor, Tensor]:
        reduce = torch.amax if self.sign > 0 else torch.amin
        kept = reduce(inputs[0], self.dims, keepdim=True)
        return kept if self.keepdim else self._squeezed(kept), inputs[0] == kept

    def pullback(
        self, cotangent: Tensor, operands: Operands, saved: Tensor, shapes: Sequence[Shape], overwrite: bool
    ) -> Sequence[Tensor]:
        kept = [1 if dim in self.dims else extent for dim, extent in enumerate(shapes[0])]
        share = cotangent.reshape(kept) / saved.sum(self.dims, keepdim=True)
        return (torch.where(saved, share, 0),)

    def pushforward(
        self, tangents: Sequence[Tensor], operands: Operands, saved: Tensor, scale: Tensor | None, overwrite: bool
    ) -> Tensor:
        # Not a weighted sum: what is not chosen may be infinite.
        total = torch.where(saved, tangents[0], 0).sum(self.dims, self.keepdim)
        return total / saved.sum(self.dims, self.keepdim)

    def label(self) -> str:
        return f"{'amax' if self.sign > 0 else 'amin'} over {','.join(map(str, self.dims))}"

    def _squeezed(self, t: Tensor) -> Tensor:
        return t.reshape([extent for dim, extent in enumerate(t.shape) if dim not in self.dims])


@dataclass(frozen=True)
class Where(Op):
    """torch.where(mask, first, second) with a constant mask, the first operand.

    `dependent` tells which of the two are inputs; the others are operands.
    """

    dependent: tuple[bool, bool]
    promotes: ClassVar[bool] = True

    def forward(self, inputs: Sequence[Tensor], operands: Operands, overwrite: bool) -> tuple[Tensor, None]:
        return torch.where(operands[0], *self._merged(inputs, operands[1:])), None

    def pullback(
        self, cotangent: Tensor, operands: Operands, saved: Any, shapes: Sequence[Shape], overwrite: bool
    ) -> Sequence[Tensor]:
        both = self._shares(cotangent, operands[0])
        shares = [share for share, dependent in zip(both, self.dependent, strict=True) if dependent]
        return [share.sum_to_size(shape) for share, shape in zip(shares, shapes, strict=True)]

    def pushforward(
        self, tangents: Sequence[Tensor], operands: Operands, saved: Any, scale: Tensor | None, overwrite: bool
    ) -> Tensor:
        t = tangents[0]
        scale = t.new_zeros(t.shape[0]) if scale is None else scale
        return torch.where(operands[0], *self._merged(tangents, [per_sample(scale, t) * k for k in operands[1:]]))

    def param_grad(
        self,
        cotangent: Tensor,
        tangents: Sequence[Tensor],
        operands: Operands,
        saved: Any,
        scale: Tensor | None,
        needs: Sequence[bool],
    ) -> Sequence[Tensor | None]:
        if not any(needs) or scale is None:
            return [None] * len(operands)
        share = self._shares(per_sample(scale, cotangent) * cotangent, operands[0])[self.dependent.index(False)]
        return [None, share.sum_to_size(operands[1].shape)]

    def label(self) -> str:
        return "where"

    def _merged(self, inputs: Sequence[Tensor], constants: Sequence[Tensor]) -> list[Tensor]:
        inputs, constants = iter(inputs), iter(constants)
        return [next(inputs) if dependent else next(constants) for dependent in self.dependent]

    def _shares(self, cotangent: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return torch.where(mask, cotangent, 0), torch.where(mask, 0, cotangent)


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


def _axes(trace, input, dim):
    axes = range(input.dim())
    dims = axes if dim is None or dim == () else (dim,) if isinstance(dim, int) else dim
    dims = tuple(sorted({axes[d] for d in dims}))
    if 0 in dims:
        trace.refuse("a choice along the batch axis mixes samples")
    return dims


def _pick(trace, function, input, dim, *args, keepdim=True, **kwargs):
    """The named tuple (values, indices) that `function` returns."""
    if dim is None:
        trace.refuse("a choice along the batch axis mixes samples")
    (dim,) = _axes(trace, input, dim)
    values = trace.emit(Pick(function, dim, args, tuple(kwargs.items())), [input])
    result = getattr(torch.return_types, function.__name__)
    return result((values if keepdim else values.squeeze(dim), Indices(trace)))


@records(torch.max, Tensor.max)
def _max(trace, input, dim=None, keepdim=False, *, other=None):
    if isinstance(dim, Tensor) or other is not None:
        return _maximum_of(trace, input, dim if other is None else other, 1)
    return _pick(trace, torch.max, input, dim, keepdim=keepdim)


@records(torch.min, Tensor.min)
def _min(trace, input, dim=None, keepdim=False, *, other=None):
    if isinstance(dim, Tensor) or other is not None:
        return _maximum_of(trace, input, dim if other is None else other, -1)
    return _pick(trace, torch.min, input, dim, keepdim=keepdim)


@records(torch.median, Tensor.median)
def _median(trace, input, dim=None, keepdim=False):
    return _pick(trace, torch.median, input, dim, keepdim=keepdim)


@records(torch.kthvalue, Tensor.kthvalue)
def _kthvalue(trace, input, k, dim=-1, keepdim=False):
    return _pick(trace, torch.kthvalue, input, dim, k, keepdim=keepdim)


@records(torch.sort, Tensor.sort)
def _sort(trace, input, dim=-1, descending=False, *, stable=False):
    return _pick(trace, torch.sort, input, dim, descending=descending, stable=stable)


@records(torch.topk, Tensor.topk)
def _topk(trace, input, k, dim=-1, largest=True, sorted=True):
    return _pick(trace, torch.topk, input, dim, k, largest=largest, sorted=sorted)


def _maximum_of(trace, input, other, sign):
    first, second = (input, other) if trace.depends_on_x(input) else (other, input)
    if not trace.depends_on_x(second):
        trace.require_constant_within_sample(second, first)
        return trace.emit(Maximum(sign), [first], [second])
    if first.dim() != second.dim():
        trace.refuse("x-dependent tensors with different numbers of axes")
    return trace.emit(Maximum(sign), [first, second])


@records(torch.maximum, Tensor.maximum)
def _maximum(trace, input, other):
    return _maximum_of(trace, input, other, 1)


@records(torch.minimum, Tensor.minimum)
def _minimum(trace, input, other):
    return _maximum_of(trace, input, other, -1)


@records(torch.where)
def _where(trace, condition, input, other):
    if trace.depends_on_x(condition):
        trace.refuse("a condition that depends on x")
    dependent = trace.depends_on_x(input), trace.depends_on_x(other)
    inputs = [value for value in (input, other) if trace.depends_on_x(value)]
    if inputs[0].dim() != inputs[-1].dim():
        trace.refuse("x-dependent tensors with different numbers of axes")
    operands = [condition]
    for value in (input, other):
        if isinstance(value, numbers.Real):
            operands.append(torch.full((), value, dtype=inputs[0].dtype, device=inputs[0].device))
        elif not trace.depends_on_x(value):
            operands.append(kept(value))
    for operand in operands:
        trace.require_constant_within_sample(operand, inputs[0])
    return trace.emit(Where(dependent), inputs, operands)


@records(Tensor.where)
def _where_method(trace, input, condition, other):
    return torch.where(condition, input, other)


@records(torch.masked_fill, Tensor.masked_fill)
def _masked_fill(trace, input, mask, value):
    return torch.where(mask, value, input)


@records(torch.amax, Tensor.amax)
def _amax(trace, input, dim=(), keepdim=False):
    return trace.emit(Extremum(_axes(trace, input, dim), keepdim, 1), [input])


@records(torch.amin, Tensor.amin)
def _amin(trace, input, dim=(), keepdim=False):
    return trace.emit(Extremum(_axes(trace, input, dim), keepdim, -1), [input])


def _max_pool_op(dims, input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False):
    kernel = sizes(kernel_size, dims)
    stride = sizes(stride, dims) if stride else kernel
    # One axis of space gets a second one of extent 1 in front.
    lead = 2 - min(dims, 2)
    kernel, stride, dilation = ((1,) * lead + sizes(value, dims) for value in (kernel, stride, dilation))
    return MaxPool(kernel, stride, (0,) * lead + sizes(padding, dims), dilation, ceil_mode)


def _adaptive_max_pool_op(dims, input, output_size):
    return AdaptiveMaxPool((1,) * (2 - min(dims, 2)) + adaptive_sizes(output_size, input))


def _records_max_pool(function, with_indices, dims, op_of):
    def pooled(trace, as_function, input, *args, return_indices=False, **kwargs):
        trace.require_batched(input, dims=dims + 2)
        op = op_of(dims, input, *args, **kwargs)
        input = trace.autocast(as_function, input, 1)
        return trace.emit(op, [input]) if dims > 1 else trace.emit(op, [input.unsqueeze(2)]).squeeze(2)

    @records(function)
    def pooled_alone(trace, *args, **kwargs):
        return pooled(trace, function, *args, **kwargs)

    @records(with_indices)
    def pooled_with_indices(trace, *args, **kwargs):
        return pooled(trace, with_indices, *args, **kwargs), Indices(trace)


_records_max_pool(F.max_pool1d, F.max_pool1d_with_indices, 1, _max_pool_op)
_records_max_pool(F.max_pool2d, F.max_pool2d_with_indices, 2, _max_pool_op)
_records_max_pool(F.max_pool3d, F.max_pool3d_with_indices, 3, _max_pool_op)
_records_max_pool(F.adaptive_max_pool1d, F.adaptive_max_pool1d_with_indices, 1, _adaptive_max_pool_op)
_records_max_pool(F.adaptive_max_pool2d, F.adaptive_max_pool2d_with_indices, 2, _adaptive_max_pool_op)
_records_max_pool(F.adaptive_max_pool3d, F.adaptive_max_pool3d_with_indices, 3, _adaptive_max_pool_op)
