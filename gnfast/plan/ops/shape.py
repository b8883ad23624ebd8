"""Rearrangements of a sample's entries: reshapes, permutations, slices, copies, concatenation, casts."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor

from gnfast.plan.op import (
    LinearCall,
    LinearMap,
    Op,
    Operands,
    Shape,
    adjoint,
    is_channels_last,
    kept,
    per_sample,
    records,
)
from gnfast.plan.ops.constant import constant, like


@dataclass(frozen=True)
class Reshape(LinearMap):
    """y = h.reshape(B, *shape)."""

    shape: Shape
    is_view: ClassVar[bool] = True
    shares_cotangent: ClassVar[bool] = True

    def apply(self, *inputs: Tensor) -> Tensor:
        return inputs[0].reshape(inputs[0].shape[0], *self.shape)

    def forward(self, inputs: Sequence[Tensor], operands: Operands, overwrite: bool) -> tuple[Tensor, bool]:
        return self.apply(*inputs), is_channels_last(inputs[0])

    def pullback(
        self, cotangent: Tensor, operands: Operands, saved: bool, shapes: Sequence[Shape], overwrite: bool
    ) -> Sequence[Tensor]:
        grad = cotangent.reshape(shapes[0])
        # Else every convolution below would have to reorder its cotangent.
        return (grad.contiguous(memory_format=torch.channels_last) if saved else grad,)

    def label(self) -> str:
        return "reshape"


@dataclass(frozen=True)
class Permute(LinearMap):
    """y = h.permute(dims); dims[0] is 0."""

    dims: tuple[int, ...]
    is_view: ClassVar[bool] = True
    shares_cotangent: ClassVar[bool] = True

    def apply(self, *inputs: Tensor) -> Tensor:
        return inputs[0].permute(self.dims)

    def adjoint(self, cotangent: Tensor, shapes: Sequence[Shape]) -> Sequence[Tensor]:
        return (cotangent.permute([self.dims.index(dim) for dim in range(len(self.dims))]),)

    def label(self) -> str:
        return f"permute {','.join(map(str, self.dims))}"


@dataclass(frozen=True)
class Cast(LinearMap):
    """y = h in another floating-point dtype."""

    source: torch.dtype
    target: torch.dtype

    def apply(self, *inputs: Tensor) -> Tensor:
        return inputs[0].to(self.target)

    def adjoint(self, cotangent: Tensor, shapes: Sequence[Shape]) -> Sequence[Tensor]:
        return (cotangent.to(self.source),)

    def label(self) -> str:
        return f"to {str(self.target).removeprefix('torch.')}"


@dataclass(frozen=True)
class Cat(Op):
    """Concatenation along `dim`. `constant` tells, in order, which parts are operands instead of inputs."""

    dim: int
    constant: tuple[bool, ...]
    promotes: ClassVar[bool] = True
    shares_cotangent: ClassVar[bool] = True

    def forward(self, inputs: Sequence[Tensor], operands: Operands, overwrite: bool) -> tuple[Tensor, None]:
        return torch.cat(self._merged(inputs, operands), self.dim), None

    def pullback(
        self, cotangent: Tensor, operands: Operands, saved: Any, shapes: Sequence[Shape], overwrite: bool
    ) -> Sequence[Tensor]:
        parts = self._split(cotangent, [shape[self.dim] for shape in shapes], operands)
        return [part for part, constant in zip(parts, self.constant, strict=True) if not constant]

    def pushforward(
        self, tangents: Sequence[Tensor], operands: Operands, saved: Any, scale: Tensor | None, overwrite: bool
    ) -> Tensor:
        t = tangents[0]
        scale = t.new_zeros(t.shape[0]) if scale is None else scale
        return torch.cat(self._merged(tangents, [per_sample(scale, t) * k for k in operands]), self.dim)

    def param_grad(
        self,
        cotangent: Tensor,
        tangents: Sequence[Tensor],
        operands: Operands,
        saved: Any,
        scale: Tensor | None,
        needs: Sequence[bool],
    ) -> Sequence[Tensor | None]:
        if scale is None:
            return [None] * len(operands)
        parts = self._split(cotangent, [t.shape[self.dim] for t in tangents], operands)
        constants = [part for part, constant in zip(parts, self.constant, strict=True) if constant]
        return [
            (part * per_sample(scale, part)).sum_to_size(k.shape) if need else None
            for part, k, need in zip(constants, operands, needs, strict=True)
        ]

    def label(self) -> str:
        return f"cat over {self.dim}"

    def _merged(self, inputs: Sequence[Tensor], operands: Operands) -> list[Tensor]:
        inputs, operands = iter(inputs), iter(operands)
        return [next(operands) if constant else next(inputs) for constant in self.constant]

    def _split(self, cotangent: Tensor, extents: Sequence[int], operands: Operands) -> Sequence[Tensor]:
        extents, constants = iter(extents), iter([k.shape[self.dim] for k in operands])
        lengths = [next(constants) if constant else next(extents) for constant in self.constant]
        return cotangent.split(lengths, self.dim)


def _records_reshape(*functions):
    """Records functions of which PyTorch itself says what shape comes out, with -1 and axis arithmetic resolved."""

    def register(function):
        def recorder(trace, input, *args, **kwargs):
            if not trace.depends_on_x(input):
                return constant(trace, function, input, *args, **kwargs)
            if any(isinstance(value, torch.dtype) for value in args) or "dtype" in kwargs:
                trace.refuse("a view as another dtype")
            args = [tuple(a.shape) if isinstance(a, Tensor) and a.dim() else a for a in args]
            shape = function(torch.empty(input.shape, device="meta"), *args, **kwargs).shape
            if not shape or shape[0] != input.shape[0]:
                trace.refuse(f"a reshape of {tuple(input.shape)} to {tuple(shape)} moves the batch axis")
            return trace.emit_view(Reshape(tuple(shape[1:])), input)

        return recorder

    # A view may be impossible in one memory format and possible in another; reshape gives the same values in all.
    shaped = {Tensor.view: Tensor.reshape, Tensor.view_as: Tensor.reshape, Tensor.reshape_as: Tensor.reshape}
    for function in functions:
        records(function, self_checked=True)(register(shaped.get(function, function)))


_records_reshape(
    Tensor.view,
    Tensor.view_as,
    torch.reshape,
    Tensor.reshape,
    Tensor.reshape_as,
    torch.flatten,
    Tensor.flatten,
    torch.unflatten,
    Tensor.unflatten,
    torch.squeeze,
    Tensor.squeeze,
    torch.unsqueeze,
    Tensor.unsqueeze,
)


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


def _rearranged(trace, function, input, args=(), kwargs=()):
    moves_samples, is_view = _tried(function, args, kwargs, tuple(input.shape))
    if moves_samples:
        trace.refuse("it moves entries between samples")
    op = LinearCall(function, args, kwargs)
    return trace.emit_view(op, input) if is_view else trace.emit(op, [input])


def _static(trace, value):
    """An argument of which PyTorch reads the value: a number, also where it comes as a tensor; hashable."""
    if isinstance(value, (list, tuple)):
        return tuple(_static(trace, entry) for entry in value)
    if not isinstance(value, Tensor):
        return value
    if value.dim() or value.is_floating_point() or trace.depends_on_x(value):
        trace.refuse("an index that is a tensor")
    return int(value)


def _records_rearrange(name, owners):
    def register(function):
        @records(function, self_checked=True)
        def recorder(trace, input, *args, **kwargs):
            kwargs = tuple((name, _static(trace, value)) for name, value in sorted(kwargs.items()))
            return _rearranged(trace, function, input, _static(trace, args), kwargs)

    for owner in owners:
        if hasattr(owner, name):
            register(getattr(owner, name))


for _names in (
    ("narrow", "select", "expand", "broadcast_to", "repeat", "tile", "repeat_interleave"),
    ("flip", "fliplr", "flipud", "roll", "rot90", "diagonal", "unfold"),
):
    for _name in _names:
        _records_rearrange(_name, [torch, Tensor])


@records(Tensor.expand_as, self_checked=True)
def _expand_as(trace, input, other):
    if not trace.depends_on_x(input):
        return constant(trace, Tensor.expand_as, input, other)
    return input.expand(tuple(other.shape))


def _records_permute(*functions):
    """Records functions of which PyTorch itself says in what order the axes come out."""

    def register(function):
        @records(function, self_checked=True)
        def recorder(trace, input, *args, **kwargs):
            # Strides that tell the axes apart.
            probe = torch.empty(0).as_strided([0] * input.dim(), list(range(1, input.dim() + 1)))
            dims = tuple(stride - 1 for stride in function(probe, *args, **kwargs).stride())
            if dims[0] != 0:
                trace.refuse("it moves the batch axis")
            return trace.emit_view(Permute(dims), input)

    for function in functions:
        register(function)


_records_permute(
    torch.permute,
    Tensor.permute,
    torch.transpose,
    Tensor.transpose,
    torch.movedim,
    Tensor.movedim,
    torch.moveaxis,
    Tensor.moveaxis,
    torch.swapaxes,
    Tensor.swapaxes,
    torch.swapdims,
    Tensor.swapdims,
    torch.adjoint,
    Tensor.adjoint,
    Tensor.mT.__get__,
    Tensor.mH.__get__,
    Tensor.T.__get__,
    Tensor.t,
    torch.t,
)


def index(h: Tensor, key: tuple[Any, ...], *indices: Tensor) -> Tensor:
    """h[key], with slices written as ("slice", start, stop, step) and each of the `indices` as "index"."""
    given = iter(indices)
    entries = (next(given) if entry == "index" else entry for entry in key)
    return h[tuple(slice(*entry[1:]) if isinstance(entry, tuple) else entry for entry in entries)]


@dataclass(frozen=True)
class Gather(Op):
    """y = function(h, *args, *indices), linear in h: the indices are operands, integers that do not depend on x."""

    function: Callable[..., Tensor]
    args: tuple[Any, ...]

    def forward(self, inputs: Sequence[Tensor], operands: Operands, overwrite: bool) -> tuple[Tensor, None]:
        return self.function(inputs[0], *self.args, *operands), None

    def pullback(
        self, cotangent: Tensor, operands: Operands, saved: Any, shapes: Sequence[Shape], overwrite: bool
    ) -> Sequence[Tensor]:
        return adjoint(lambda h: self.function(h, *self.args, *operands), cotangent, shapes)

    def pushforward(
        self, tangents: Sequence[Tensor], operands: Operands, saved: Any, scale: Tensor | None, overwrite: bool
    ) -> Tensor:
        return self.function(tangents[0], *self.args, *operands)

    def label(self) -> str:
        return self.function.__name__


def _index_of_zeros(h: Tensor, key: tuple[Any, ...], shapes: Sequence[Shape]) -> Tensor:
    """What has the axes of h[key], and its batch if no index picks among samples."""
    return index(h, key, *(torch.zeros(shape, dtype=torch.int64) for shape in shapes))


@records(Tensor.__getitem__, self_checked=True)
def _getitem(trace, input, key):
    entries, indices = [], []
    for entry in key if isinstance(key, tuple) else (key,):
        if isinstance(entry, slice):
            entries.append(("slice", *(_static(trace, bound) for bound in (entry.start, entry.stop, entry.step))))
        elif entry is None or entry is Ellipsis:
            entries.append(entry)
        elif isinstance(entry, bool):
            trace.refuse("indexing with one truth value")
        elif isinstance(entry, int):
            entries.append(entry)
        else:
            found = _indices(trace, entry, input.device)
            entries += ["index"] * len(found) if isinstance(found, list) else [found]
            indices += found if isinstance(found, list) else []
    key = tuple(entries)
    if not indices:
        return _rearranged(trace, index, input, (key,))
    moves_samples, _ = _tried(_index_of_zeros, (key, tuple(tuple(i.shape) for i in indices)), (), tuple(input.shape))
    if moves_samples:
        trace.refuse("an index along the batch axis, or one that moves it")
    return trace.emit(Gather(index, (key,)), [input], indices)


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


@records(torch.index_select, Tensor.index_select)
def _index_select(trace, input, dim, index):
    return _picked_along(trace, torch.index_select, input, dim, index)


@records(torch.gather, Tensor.gather)
def _gather(trace, input, dim, index, *, sparse_grad=False):
    return _picked_along(trace, torch.gather, input, dim, index)


@records(torch.take_along_dim, Tensor.take_along_dim)
def _take_along_dim(trace, input, indices, dim=None):
    return _picked_along(trace, _taken, input, dim, indices)


def _taken(h, dim, indices):
    return torch.take_along_dim(h, indices, dim)


def _picked_along(trace, function, input, dim, indices):
    if dim is None or range(input.dim())[dim] == 0:
        trace.refuse("an index along the batch axis")
    if trace.depends_on_x(indices) or not isinstance(indices, Tensor):
        trace.refuse("indices that depend on x")
    return trace.emit(Gather(function, (dim,)), [input], [indices])


def _parts(function):
    """Records a function that cuts a tensor along one axis into consecutive parts; PyTorch itself says which."""

    @records(function, self_checked=True)
    def recorder(trace, input, *args, **kwargs):
        parts = function(torch.empty(input.shape, device="meta"), *args, **kwargs)
        dim = kwargs.get("dim", kwargs.get("axis", args[1] if len(args) > 1 else 0)) % input.dim()
        start, cut = 0, []
        for part in parts:
            cut.append(_rearranged(trace, torch.narrow, input, (dim, start, part.shape[dim])))
            start += part.shape[dim]
        return type(parts)(cut)


for _function in (torch.chunk, torch.split, torch.tensor_split, torch.split_with_sizes):
    _parts(_function)
    _parts(getattr(Tensor, _function.__name__))


@records(torch.unbind, Tensor.unbind)
def _unbind(trace, input, dim=0):
    return tuple(input.select(dim, index) for index in range(input.shape[dim]))


@records(torch.cat, torch.concat, torch.concatenate)
def _cat(trace, tensors, dim=0):
    first = next(tensor for tensor in tensors if trace.depends_on_x(tensor))
    dim %= first.dim()
    # PyTorch skips empty vectors whatever the others' shape.
    tensors = [tensor for tensor in tensors if tuple(tensor.shape) != (0,)]
    if dim == 0:
        trace.refuse("a concatenation along the batch axis mixes samples")
    constant = tuple(not trace.depends_on_x(tensor) for tensor in tensors)
    inputs = [tensor for tensor in tensors if trace.depends_on_x(tensor)]
    constants = [kept(tensor) for tensor in tensors if not trace.depends_on_x(tensor)]
    return trace.emit(Cat(dim, constant), inputs, constants)


@records(torch.hstack)
def _hstack(trace, tensors):
    return torch.cat(tensors, min(tensors[0].dim() - 1, 1))


@records(torch.column_stack)
def _column_stack(trace, tensors):
    return torch.cat([tensor.unsqueeze(1) if tensor.dim() == 1 else tensor for tensor in tensors], 1)


@records(torch.vstack, torch.row_stack)
def _vstack(trace, tensors):
    return torch.cat(tensors, 0)


@records(torch.dstack)
def _dstack(trace, tensors):
    if min(tensor.dim() for tensor in tensors) == 1:
        trace.refuse("it moves the batch axis")
    return torch.cat([tensor.unsqueeze(2) if tensor.dim() == 2 else tensor for tensor in tensors], 2)


@records(torch.stack)
def _stack(trace, tensors, dim=0):
    dim %= next(tensor for tensor in tensors if trace.depends_on_x(tensor)).dim() + 1
    if dim == 0:
        return Stacked(trace, tensors)
    return torch.cat([tensor.unsqueeze(dim) for tensor in tensors], dim)


class Stacked:
    """Stands for a stack along a new first axis until that axis is reduced: the mean of several critics, say.

    No tensor, because the batch of an x-dependent one is its axis 0.
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


@records(Tensor.contiguous, self_checked=True)
def _contiguous(trace, input, memory_format=torch.contiguous_format):
    return trace.maybe_copy(input)


@records(Tensor.clone, torch.clone, self_checked=True)
def _clone(trace, input, *, memory_format=torch.preserve_format):
    return trace.copy(input)


def _records_cast(*functions):
    """Records functions that may change dtype or device; PyTorch itself says what comes out."""

    def register(function):
        def recorder(trace, input, *args, **kwargs):
            if not trace.depends_on_x(input):
                return constant(trace, function, input, *args, **kwargs)
            given = [like(trace, value) for value in args]
            probe = torch.empty((0,) * input.dim(), dtype=input.dtype, device=input.device)
            converted = function(probe, *given, **{name: like(trace, value) for name, value in kwargs.items()})
            if not isinstance(converted, Tensor) or not converted.is_floating_point():
                trace.refuse("a change to a dtype that is not floating point")
            if converted.device != input.device:
                trace.refuse(f"a change of device, from {input.device} to {converted.device}")
            if converted.dtype != input.dtype:
                return trace.cast(input, converted.dtype)
            layout = next((v for v in (*args, *kwargs.values()) if isinstance(v, torch.memory_format)), None)
            if layout not in (None, torch.preserve_format):
                return trace.maybe_copy(input)
            return input if converted is probe else trace.copy(input)

        return recorder

    for function in functions:
        records(function, self_checked=True)(register(function))


_records_cast(Tensor.to, Tensor.float, Tensor.double, Tensor.half, Tensor.bfloat16, Tensor.type, Tensor.type_as)
_records_cast(Tensor.cpu, Tensor.cuda)
