"""Choices between tensors and over axes of which equals share the gradient: maximum, amax, where."""

import functools
import numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from gnfast.plan.op import Combination, Context, Op, axes_of, kept
from gnfast.plan.ops.given import Constant, emit_given
from gnfast.plan.records import records


@dataclass(frozen=True)
class Maximum(Combination):
    """The larger (`sign` 1) or smaller (-1) of two tensors; equals share the gradient evenly.

    Both are x-dependent, or the second is an operand. Keeps one byte per entry: 1 where the first is chosen, -1 where
    the second is, 0 where they are equal.
    """

    sign: int
    fixed: tuple[bool, bool] = (False, False)
    mask_bits: ClassVar[float] = 8

    def forward(self, ctx: Context, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        first, second = *inputs, *ctx.operands
        y = torch.maximum(first, second) if self.sign > 0 else torch.minimum(first, second)
        order = (first > second).to(torch.int8) - (first < second).to(torch.int8)
        return y, order * self.sign

    def combine(self, ctx: Context, *parts: Tensor) -> Tensor:
        (first, second), order = parts, ctx.saved
        # Not a weighted sum: what is not chosen may be infinite.
        return torch.where(order > 0, first, torch.where(order < 0, second, (first + second) / 2))

    def shares(self, ctx: Context, cotangent: Tensor) -> Sequence[Tensor]:
        zero = cotangent.new_zeros(())
        return self.combine(ctx, cotangent, zero), self.combine(ctx, zero, cotangent)

    def label(self) -> str:
        return "maximum" if self.sign > 0 else "minimum"


@dataclass(frozen=True)
class Where(Combination):
    """torch.where(mask, first, second) with a constant mask, the first operand."""

    fixed: tuple[bool, bool]

    def constants(self, operands: Sequence[Tensor]) -> Sequence[Tensor]:
        return operands[1:]

    def combine(self, ctx: Context, *parts: Tensor) -> Tensor:
        return torch.where(ctx.operands[0], *parts)

    def shares(self, ctx: Context, cotangent: Tensor) -> Sequence[Tensor]:
        mask = ctx.operands[0]
        return torch.where(mask, cotangent, 0), torch.where(mask, 0, cotangent)


@dataclass(frozen=True)
class Extremum(Op):
    """torch.amax (`sign` 1) or amin (-1) over `dims`; equals share the gradient evenly. Keeps one byte per entry.

    The median of all entries (0) is PyTorch's third of this kind.
    """

    dims: tuple[int, ...]
    keepdim: bool
    sign: int
    homogeneous: ClassVar[bool] = True
    mask_bits: ClassVar[float] = 8

    def forward(self, ctx: Context, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        if self.sign:
            y = (torch.amax if self.sign > 0 else torch.amin)(inputs[0], self.dims, keepdim=True)
        else:
            y = torch.median(inputs[0]).reshape([1] * inputs[0].dim())
        return y if self.keepdim else y.squeeze(self.dims), inputs[0] == y

    def pullback(self, ctx: Context, cotangent: Tensor) -> Sequence[Tensor]:
        kept_dims = [1 if dim in self.dims else extent for dim, extent in enumerate(ctx.shapes[0])]
        share = cotangent.reshape(kept_dims) / ctx.saved.sum(self.dims, keepdim=True)
        return (torch.where(ctx.saved, share, 0),)

    def pushforward(self, ctx: Context, *tangents: Tensor) -> Tensor:
        # Not a weighted sum: what is not chosen may be infinite.
        total = torch.where(ctx.saved, tangents[0], 0).sum(self.dims, self.keepdim)
        return total / ctx.saved.sum(self.dims, self.keepdim)

    def label(self) -> str:
        return f"{('median', 'amax', 'amin')[self.sign]} over {','.join(map(str, self.dims))}"


@records("maximum", "minimum", told=True)
def maximum_of(function: Callable[..., Any], trace: Any, input: Tensor, other: Tensor) -> Tensor:
    """Records a `Maximum`: the larger or the smaller, as the function's name has it."""
    sign = 1 if "max" in function.__name__ else -1
    first, second = (input, other) if trace.depends_on_x(input) else (other, input)
    if not trace.depends_on_x(second):
        trace.require_tensor(second)
        return trace.emit(Maximum(sign, (False, True)), [first], [second], mixes=second.dim() > first.dim())
    return trace.emit(Maximum(sign), [first, second], mixes=first.dim() != second.dim())


@records(torch.where)
def _where(trace, condition, input, other):
    inputs = [value for value in (input, other) if trace.depends_on_x(value)]
    if not inputs:
        return trace.curved(torch.where, condition, input, other, _as=Constant)
    operands = []
    for value in (input, other):
        if isinstance(value, numbers.Real):
            operands.append(torch.full((), value, dtype=inputs[0].dtype, device=inputs[0].device))
        elif not trace.depends_on_x(value):
            trace.require_tensor(value)
            operands.append(kept(value))
    op = Where((not trace.depends_on_x(input), not trace.depends_on_x(other)))
    if trace.depends_on_x(condition):
        dtypes = {t.dtype for t in (*inputs, *operands) if t.dim()} or {inputs[0].dtype}
        inputs = [trace.cast(t, functools.reduce(torch.promote_types, dtypes)) for t in inputs]
        return emit_given(trace, op, condition, inputs, operands)
    operands = [condition, *operands]
    axes = max(t.dim() for t in (*inputs, *operands))
    return trace.emit(op, inputs, operands, mixes=any(t.dim() != axes for t in inputs))


@records(Tensor.where)
def _where_method(trace, input, condition, other):
    return torch.where(condition, input, other)


@records("masked_fill")
def _masked_fill(trace, input, mask, value):
    return torch.where(mask, value, input)


@records("amax", "amin", told=True)
def _amax(function, trace, input, dim=(), keepdim=False):
    sign, dims = 1 if function.__name__ == "amax" else -1, axes_of(input, dim)
    if dims == (0,) and not keepdim and (parts := trace.stacks.get(input.value)):
        return function(torch.stack(parts, 1), 1)
    return trace.emit(Extremum(dims, keepdim, sign), [input], mixes=0 in dims)
