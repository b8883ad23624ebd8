"""Some of the entries, or all in another order or several times: slices, indices, repetitions."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from gnfast.plan.op import Combination, Context, LinearCall, Shape, frozen, kept, per_sample
from gnfast.plan.ops.constant import constant
from gnfast.plan.ops.given import Given
from gnfast.plan.records import records
from gnfast.plan.state import capturing


@functools.lru_cache(maxsize=4096)
def _tried(function: Callable[..., Tensor], args: Any, kwargs: Any, shape: Shape) -> tuple[bool, bool]:
    """Whether some entry of `function`'s output comes from another sample, and whether it is a view.

    Tried on entries that name their sample.
    """
    names = _names(shape)
    output = function(names, *args, **dict(kwargs))
    return not _is_own(output, names), output.untyped_storage().data_ptr() == names.untyped_storage().data_ptr()


def _names(shape: Shape) -> Tensor:
    """The sample of each entry."""
    return torch.arange(*shape[:1] or (1,)).reshape([-1, *[1] * (len(shape) - 1)][: len(shape)]).expand(shape)


def _is_own(output: Tensor, names: Tensor) -> bool:
    """Whether every entry comes from its own sample."""
    return output.shape[:1] == names.shape[:1] and torch.equal(output, _names(tuple(output.shape)))


def _static(trace, value):
    """An argument of which PyTorch reads the value: a number, also where it comes as a tensor; hashable."""
    if isinstance(value, (list, tuple)):
        return tuple(_static(trace, entry) for entry in value)
    if not isinstance(value, Tensor):
        return value
    if value.dim() or value.is_floating_point() or trace.depends_on_x(value):
        trace.refuse("an index that is a tensor")
    return int(value)


@records("narrow", "expand", "broadcast_to", "repeat", "tile", self_checked=True, told=True)
@records("repeat_interleave", "flip", "fliplr", "flipud", "roll", "rot90", self_checked=True, told=True)
@records("diagonal", torch.linalg.diagonal, Tensor.unfold, self_checked=True, told=True)
def _rearranged(function, trace, input, *args, **kwargs):
    args, kwargs = _static(trace, args), frozen({name: _static(trace, value) for name, value in kwargs.items()})
    moves_samples, is_view = _tried(function, args, kwargs, tuple(input.shape))
    op = LinearCall(function, args, kwargs)
    if is_view:
        return trace.emit_view(op, input, mixes=moves_samples)
    return trace.emit(op, [input], mixes=moves_samples)


@records(Tensor.expand_as, self_checked=True)
def _expand_as(trace, input, other):
    if not trace.depends_on_x(input):
        return constant(Tensor.expand_as, trace, input, other)
    return input.expand(tuple(other.shape))


@records("chunk", "split", "tensor_split", "split_with_sizes", self_checked=True, told=True)
def _parts(function, trace, input, *args, **kwargs):
    """Consecutive parts along one axis; PyTorch itself says which."""
    parts = function(torch.empty(input.shape, device="meta"), *args, **kwargs)
    dim = kwargs.get("dim", kwargs.get("axis", args[1] if len(args) > 1 else 0)) % input.dim()
    start, cut = 0, []
    for part in parts:
        cut.append(_rearranged(torch.narrow, trace, input, dim, start, part.shape[dim]))
        start += part.shape[dim]
    return type(parts)(cut)


@records("unbind")
def _unbind(trace, input, dim=0):
    return tuple(input.select(dim, index) for index in range(input.shape[dim]))


@records("select", self_checked=True)
def _select(trace, input, dim, index):
    parts = trace.stacks.get(input.value)
    if parts and dim == 0 and isinstance(index, int) and trace.depends_on_x(part := parts[index]):
        return input.shares_memory_with(trace.copy(part))
    return _rearranged(torch.select, trace, input, dim, index)


def index(h: Tensor, key: tuple[Any, ...], *indices: Tensor) -> Tensor:
    """h[key], with slices written as ("slice", start, stop, step) and each of the `indices` as "index"."""
    return h[_pytorchs(key, indices)]


def _pytorchs(key: tuple[Any, ...], indices: Sequence[Tensor]) -> tuple[Any, ...]:
    given = iter(indices)
    entries = (next(given) if entry == "index" else entry for entry in key)
    return tuple(slice(*entry[1:]) if isinstance(entry, tuple) else entry for entry in entries)


@records(Tensor.__getitem__, self_checked=True)
def _getitem(trace, input, key):
    if type(key) is int and input.value in trace.stacks:
        return input.select(0, key)
    key, indices = _key(trace, input, key)
    if not indices:
        return _rearranged(index, trace, input, key)
    return trace.emit(LinearCall(index, (key,)), [input], indices, mixes=_moves_samples(input, key, indices))


def _key(trace, input, key):
    """The key of `index` that stands for one of PyTorch's, and its indices."""
    entries, indices = [], []
    for entry in key if isinstance(key, tuple) else (key,):
        if isinstance(entry, slice):
            entries.append(("slice", *_static(trace, (entry.start, entry.stop, entry.step))))
        elif isinstance(entry, bool):
            trace.refuse("indexing with one truth value")
        elif entry is None or entry is Ellipsis or isinstance(entry, int):
            entries.append(entry)
        else:
            found = _indices(trace, entry, input.device)
            entries += ["index"] * len(found) if isinstance(found, list) else [found]
            indices += found if isinstance(found, list) else []
    return tuple(entries), indices


def _moves_samples(input: Tensor, key: tuple[Any, ...], indices: Sequence[Tensor]) -> bool:
    """Whether indices pick, or may pick, among samples; only h[torch.arange(B), …] and the like does not."""
    shapes = tuple(tuple(i.shape) for i in indices)
    if key[0] != "index":
        return _tried(_index_of_zeros, (key, shapes), (), tuple(input.shape))[0]
    # A graph that is captured cannot wait for what is in them.
    if capturing() or indices[0].dtype == torch.uint8 or indices[0].numel() != len(input):
        return True
    names, zeros = _names(tuple(input.shape)), [torch.zeros(shape, dtype=torch.int64) for shape in shapes[1:]]
    return not _is_own(index(names, key, indices[0].cpu(), *zeros), names)


def _index_of_zeros(h: Tensor, key: tuple[Any, ...], shapes: Sequence[Shape]) -> Tensor:
    """What has the axes of h[key], and its batch if no index picks among samples."""
    return index(h, key, *(torch.zeros(shape, dtype=torch.int64) for shape in shapes))


def _indices(trace, entry, device):
    """What a tensor, list or array in a key stands for: one integer, or tensors of them for an axis each."""
    if trace.depends_on_x(entry):
        trace.refuse("an index that depends on x")
    tensor = torch.as_tensor(entry, device=device)
    is_mask = tensor.dtype in (torch.bool, torch.uint8)
    if tensor.is_floating_point() or tensor.is_complex() or (is_mask and tensor.dim() == 0):
        trace.refuse(f"indexing with a {type(entry).__name__} of {tensor.dtype}")
    if tensor.dim() == 0:
        return int(tensor)
    return list(tensor.nonzero(as_tuple=True)) if is_mask else [tensor]


@records("index_select", "gather", told=True)
def _picked_along(function, trace, input, dim, index, *, sparse_grad=False):
    if not trace.depends_on_x(input):
        trace.refuse("constants picked by indices that depend on x")
    mixes = dim is None or not input.dim() or range(input.dim())[dim] == 0
    if trace.depends_on_x(index):
        return trace.emit(Given(LinearCall(function, (dim,))), [index, input], mixes=mixes)
    return trace.emit(LinearCall(function, (dim,)), [input], [index], mixes=mixes)


@records("take_along_dim")
def _take_along_dim(trace, input, indices, dim=None):
    return _picked_along(_taken, trace, input, dim, indices)


def _taken(h, dim, indices):
    return torch.take_along_dim(h, indices, dim)


@dataclass(frozen=True)
class Write(Combination):
    """h with a value in place of h[key], as `index` has it; the indices come before the operands that are parts."""

    key: tuple[Any, ...]
    fixed: tuple[bool, bool]
    promotes: ClassVar[bool] = False

    def constants(self, operands: Sequence[Tensor]) -> Sequence[Tensor]:
        return operands[self.key.count("index") :]

    def combine(self, ctx: Context, *parts: Tensor) -> Tensor:
        y = parts[0].clone()
        y[_pytorchs(self.key, ctx.operands)] = parts[1]
        return y

    def shares(self, ctx: Context, cotangent: Tensor) -> Sequence[Tensor]:
        key = _pytorchs(self.key, ctx.operands)
        rest = cotangent.clone()
        rest[key] = 0
        return rest, cotangent[key]

    def pushforward(self, ctx: Context, *tangents: Tensor) -> Tensor:
        if len(tangents) > 1:
            return self.combine(ctx, *tangents)
        if ctx.scale is None:
            return self.combine(ctx, tangents[0], tangents[0].new_zeros(()))
        # The constant has the shape of what is written, in which the batch may lie anywhere.
        scales = per_sample(ctx.scale, tangents[0]).expand_as(tangents[0])[_pytorchs(self.key, ctx.operands)]
        return self.combine(ctx, tangents[0], scales * self.constants(ctx.operands)[0])

    def label(self) -> str:
        return "write"


@records(Tensor.__setitem__, self_checked=True)
def _setitem(trace, input, key, value):
    if not trace.depends_on_x(input):
        trace.refuse("it writes an x-dependent value into a tensor that does not depend on x")
    if trace.depends_on_x(key) and key.dtype == torch.bool and key.shape == input.shape:
        trace.rebind(input, input.masked_fill(key, value))
        return
    key, indices = _key(trace, input, key)
    place = torch.empty(input.shape, device="meta")
    place = index(place, key, *(torch.empty(i.shape, dtype=i.dtype, device="meta") for i in indices))
    if indices:
        mixes = _moves_samples(input, key, indices)
    else:
        mixes, _ = _tried(index, (key,), (), tuple(input.shape))
    if trace.depends_on_x(value):
        value, operands = trace.cast(value, input.dtype), []
        inputs, fixed, mixes = [input, value], False, mixes or value.dim() != place.dim()
    else:
        value = torch.as_tensor(value, dtype=input.dtype, device=input.device)
        inputs, operands, fixed = [input], [kept(value)], True
        mixes = value.dim() > place.dim()
    trace.rebind(input, trace.emit(Write(key, (False, fixed)), inputs, [*indices, *operands], mixes=mixes))
