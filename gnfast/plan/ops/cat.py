"""Concatenations and stacks."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor

from gnfast.plan.op import Combination, Context, kept, records


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


@records(torch.cat, torch.concat, torch.concatenate)
def _cat(trace, tensors, dim=0):
    first = next(tensor for tensor in tensors if trace.depends_on_x(tensor))
    dim %= first.dim()
    # PyTorch skips empty vectors whatever the others' shape.
    tensors = [tensor for tensor in tensors if tuple(tensor.shape) != (0,)]
    if dim == 0:
        trace.refuse("a concatenation along the batch axis mixes samples")
    fixed = tuple(not trace.depends_on_x(tensor) for tensor in tensors)
    inputs = [tensor for tensor in tensors if trace.depends_on_x(tensor)]
    constants = [kept(tensor) for tensor in tensors if not trace.depends_on_x(tensor)]
    return trace.emit(Cat(dim, tuple(tensor.shape[dim] for tensor in tensors), fixed), inputs, constants)


@records(torch.hstack, torch.vstack, torch.row_stack, torch.column_stack, torch.dstack, told=True)
def _joined(function, trace, tensors):
    """Concatenations along an axis that tensors with too few axes get at their end."""
    least = min(tensor.dim() for tensor in tensors)
    if function is torch.dstack and least == 1:
        trace.refuse("it moves the batch axis")
    hstack = min(least - 1, 1)
    dim = {torch.hstack: hstack, torch.column_stack: 1, torch.dstack: 2}.get(function, 0)
    return torch.cat([tensor.unsqueeze(dim) if tensor.dim() == dim else tensor for tensor in tensors], dim)


@records(torch.stack)
def _stack(trace, tensors, dim=0):
    dim %= next(tensor for tensor in tensors if trace.depends_on_x(tensor)).dim() + 1
    if dim == 0:
        return Stacked(trace, tensors)
    return torch.cat([tensor.unsqueeze(dim) for tensor in tensors], dim)


class Stacked:
    """Stands for a stack along a new first axis until that axis is reduced: the mean of several critics, say.

    Not a tensor, because the batch of an x-dependent one is its axis 0.
    """

    def __init__(self, trace: Any, tensors: Sequence[Tensor]) -> None:
        self._trace = trace
        # Its own memory: what is written to them later is not written to it.
        self._tensors = tuple(trace.copy(t) if trace.depends_on_x(t) else t.clone() for t in tensors)

    def __getitem__(self, key: Any) -> Tensor:
        return self._tensors[key] if isinstance(key, int) else self._refuse("__getitem__")

    def __getattr__(self, name: str) -> Callable[..., Tensor]:
        if name not in ("mean", "sum", "amax", "amin", "max", "min"):
            self._refuse(name)

        def reduced(dim=None, keepdim=False, *, axis=None, **kwargs):
            if (axis if dim is None else dim) not in (0, (0,), [0]) or keepdim:
                self._refuse(name)
            return getattr(torch.stack(self._tensors, 1), name)(1, **kwargs)

        return reduced

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        stacked = next(a for a in (*args, *(kwargs or {}).values()) if isinstance(a, cls))
        return getattr(stacked, func.__name__)(*args[1:], **(kwargs or {}))

    def _refuse(self, name: str, *_: Any) -> NoReturn:
        self._trace.refuse("a stack along a new first axis moves the batch", operation=f"Tensor.{name}")


for _name in ("add", "sub", "mul", "truediv", "matmul", "neg"):
    for _operator in (f"__{_name}__", f"__r{_name}__"):
        setattr(Stacked, _operator, functools.partialmethod(Stacked._refuse, _name))
