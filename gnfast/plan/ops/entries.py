"""Some of a sample's entries, or all in another order or several times: slices, indices, repetitions."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gnfast.plan.op import LinearCall, Shape, frozen, records
from gnfast.plan.ops.constant import constant


@functools.lru_cache(maxsize=4096)
def _tried(function: Callable[..., Tensor], args: Any, kwargs: Any, shape: Shape) -> tuple[bool, bool]:
    """Whether some entry of `function`'s output comes from another sample, and whether it is a view.

    Tried on entries that name their sample.
    """
    names = torch.arange(shape[0]).reshape(-1, *[1] * (len(shape) - 1)).expand(shape)
    output = function(names, *args, **dict(kwargs))
    is_view = output.untyped_storage().data_ptr() == names.untyped_storage().data_ptr()
    if output.dim() == 0 or output.shape[0] != shape[0]:
        return True, is_view
    own = torch.arange(shape[0]).reshape(-1, *[1] * (output.dim() - 1)).expand_as(output)
    return not torch.equal(output, own), is_view


def _static(trace, value):
    """An argument of which PyTorch reads the value: a number, also where it comes as a tensor; hashable."""
    if isinstance(value, (list, tuple)):
        return tuple(_static(trace, entry) for entry in value)
    if not isinstance(value, Tensor):
        return value
    if value.dim() or value.is_floating_point() or trace.depends_on_x(value):
        trace.refuse("an index that is a tensor")
    return int(value)


@records("narrow", "select", "expand", "broadcast_to", "repeat", "tile", self_checked=True, told=True)
@records("repeat_interleave", "flip", "fliplr", "flipud", "roll", "rot90", self_checked=True, told=True)
@records("diagonal", Tensor.unfold, self_checked=True, told=True)
def _rearranged(function, trace, input, *args, **kwargs):
    args, kwargs = _static(trace, args), frozen({name: _static(trace, value) for name, value in kwargs.items()})
    moves_samples, is_view = _tried(function, args, kwargs, tuple(input.shape))
    if moves_samples:
        trace.refuse("it moves entries between samples")
    op = LinearCall(function, args, kwargs)
    return trace.emit_view(op, input) if is_view else trace.emit(op, [input])


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


def index(h: Tensor, key: tuple[Any, ...], *indices: Tensor) -> Tensor:
    """h[key], with slices written as ("slice", start, stop, step) and each of the `indices` as "index"."""
    given = iter(indices)
    entries = (next(given) if entry == "index" else entry for entry in key)
    return h[tuple(slice(*entry[1:]) if isinstance(entry, tuple) else entry for entry in entries)]


def _index_of_zeros(h: Tensor, key: tuple[Any, ...], shapes: Sequence[Shape]) -> Tensor:
    """What has the axes of h[key], and its batch if no index picks among samples."""
    return index(h, key, *(torch.zeros(shape, dtype=torch.int64) for shape in shapes))


@records(Tensor.__getitem__, self_checked=True)
def _getitem(trace, input, key):
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
    key = tuple(entries)
    if not indices:
        return _rearranged(index, trace, input, key)
    moves_samples, _ = _tried(_index_of_zeros, (key, tuple(tuple(i.shape) for i in indices)), (), tuple(input.shape))
    if moves_samples:
        trace.refuse("an index along the batch axis, or one that moves it")
    return trace.emit(LinearCall(index, (key,)), [input], indices)


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
    if dim is None or range(input.dim())[dim] == 0:
        trace.refuse("an index along the batch axis")
    if trace.depends_on_x(index) or not isinstance(index, Tensor):
        trace.refuse("indices that depend on x")
    return trace.emit(LinearCall(function, (dim,)), [input], [index])


@records("take_along_dim")
def _take_along_dim(trace, input, indices, dim=None):
    return _picked_along(_taken, trace, input, dim, indices)


def _taken(h, dim, indices):
    return torch.take_along_dim(h, indices, dim)
