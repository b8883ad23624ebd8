"""Concatenations and stacks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gnfast.plan.op import Combination, Context, kept
from gnfast.plan.records import records


@dataclass(frozen=True)
class Cat(Combination):
    """Concatenation along `dim` of parts of these lengths, of which `fixed` tells which are operands."""

    dim: int
    lengths: tuple[int, ...]
    fixed: tuple[bool, ...]
    shares_cotangent: ClassVar[bool] = True

    def combine(self, ctx: Context, *parts: Tensor) -> Tensor:
        return torch.cat(parts, self.dim)

    def shares(self, ctx: Context, cotangent: Tensor) -> Sequence[Tensor]:
        return cotangent.split(self.lengths, self.dim)

    def label(self) -> str:
        return f"cat over {self.dim}"


@records(torch.cat)
def _cat(trace, tensors, dim=0):
    first = next(tensor for tensor in tensors if trace.depends_on_x(tensor))
    dim %= first.dim()
    # PyTorch skips empty vectors whatever the others' shape.
    tensors = [tensor for tensor in tensors if tuple(tensor.shape) != (0,)]
    fixed = tuple(not trace.depends_on_x(tensor) for tensor in tensors)
    inputs = [tensor for tensor in tensors if trace.depends_on_x(tensor)]
    constants = [kept(tensor) for tensor in tensors if not trace.depends_on_x(tensor)]
    op = Cat(dim, tuple(tensor.shape[dim] for tensor in tensors), fixed)
    return trace.emit(op, inputs, constants, mixes=dim == 0)


@records(torch.hstack, torch.vstack, torch.column_stack, torch.dstack, told=True)
def _joined(function, trace, tensors):
    """Concatenations along an axis, of tensors that get axes where they have too few."""
    dim = {torch.hstack: 1, torch.column_stack: 1, torch.dstack: 2}.get(function, 0)
    if function is torch.column_stack:
        tensors = [tensor.reshape(-1, 1) if tensor.dim() < 2 else tensor for tensor in tensors]
    else:
        least = {0: torch.atleast_2d, 1: torch.atleast_1d, 2: torch.atleast_3d}[dim]
        tensors = [least(tensor) for tensor in tensors]
        dim = min(dim, tensors[0].dim() - 1)
    return torch.cat(tensors, dim)


@records(torch.atleast_1d, torch.atleast_2d, torch.atleast_3d, told=True)
def _at_least(function, trace, *tensors):
    if len(tensors) == 1 and not isinstance(tensors[0], torch.Tensor):
        (tensors,) = tensors
    shapes = [function(torch.empty(t.shape, device="meta")).shape for t in tensors]
    found = [t if t.shape == shape else t.reshape(shape) for t, shape in zip(tensors, shapes, strict=True)]
    return found[0] if len(found) == 1 else tuple(found)


@records(torch.stack)
def _stack(trace, tensors, dim=0):
    dim %= next(tensor for tensor in tensors if trace.depends_on_x(tensor)).dim() + 1
    stack = torch.cat([tensor.unsqueeze(dim) for tensor in tensors], dim)
    if dim == 0:
        # Their own memory: what is written to them later is not written to the stack.
        trace.stacks[stack.value] = [trace.copy(t) if trace.depends_on_x(t) else t.clone() for t in tensors]
    return stack
