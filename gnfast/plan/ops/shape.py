"""Rearrangements of a sample's entries: reshapes, permutations, slices, copies, concatenation, casts."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from gnfast.plan.op import LinearCall, LinearMap, Op, Operands, Shape, frozen, is_channels_last, per_sample, records
from gnfast.plan.ops.constant import constant


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
            args = [tuple(a.shape) if isinstance(a, Tensor) else a for a in args]
            shape = function(torch.empty(input.shape, device="meta"), *args, **kwargs).shape
            if not shape or shape[0] != input.shape[0]:
                trace.refuse(f"a reshape of {tuple(input.shape)} to {tuple(shape)} moves the batch axis")
            return trace.emit_view(Reshape(tuple(shape[1:])), input)

        return recorder

    # A view may be impossible in one memory format and possible in another; reshape gives the same values in all.
    shaped = {Tensor.view: Tensor.reshape, Tensor.view_as: Tensor.reshape, Tensor.reshape_as: Tensor.reshape}
    for function in functions:
        records(function)(register(shaped.get(function, function)))


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
def _moves_samples(function: Callable[..., Tensor], args: Any, kwargs: Any, shape: Shape) -> bool:
    """Whether some entry of `function`'s output comes from another sample: tried on entries that name their sample."""
    names = torch.arange(shape[0]).reshape(-1, *[1] * (len(shape) - 1)).expand(shape)
    output = function(names, *args, **dict(kwargs))
    if output.dim() == 0 or output.shape[0] != shape[0]:
        return True
    return not torch.equal(
        output, names.new_tensor(range(shape[0])).reshape(-1, *[1] * (output.dim() - 1)).expand_as(output)
    )


def _rearranged(trace, function, input, args=(), kwargs=()):
    if _moves_samples(function, args, kwargs, tuple(input.shape)):
        trace.refuse("it moves entries between samples")
    return trace.emit_view(LinearCall(function, args, kwargs), input)


def _records_rearrange(name, owners):
    def register(function):
        @records(function)
        def recorder(trace, input, *args, **kwargs):
            if any(isinstance(value, Tensor) for value in (*args, *kwargs.values())):
                trace.refuse("an index that is a tensor")
            kwargs = tuple((name, frozen(value)) for name, value in sorted(kwargs.items()))
            return _rearranged(trace, function, input, frozen(args), kwargs)

    for owner in owners:
        if hasattr(owner, name):
            register(getattr(owner, name))


for _names in (
    ("narrow", "select", "expand", "broadcast_to", "repeat", "tile", "repeat_interleave"),
    ("flip", "fliplr", "flipud", "roll", "rot90", "diagonal", "unfold"),
):
    for _name in _names:
        _records_rearrange(_name, [torch, Tensor])


@records(Tensor.expand_as)
def _expand_as(trace, input, other):
    if not trace.depends_on_x(input):
        return constant(trace, Tensor.expand_as, input, other)
    return input.expand(tuple(other.shape))


def _records_permute(*functions):
    """Records functions of which PyTorch itself says in what order the axes come out."""

    def register(function):
        @records(function)
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
    Tensor.mT.__get__,
    Tensor.T.__get__,
    Tensor.t,
    torch.t,
)


def index(h: Tensor, key: tuple[Any, ...]) -> Tensor:
    """h[key], with slices written as ("slice", start, stop, step)."""
    return h[tuple(slice(*entry[1:]) if isinstance(entry, tuple) else entry for entry in key)]


@records(Tensor.__getitem__)
def _getitem(trace, input, key):
    entries = []
    for entry in key if isinstance(key, tuple) else (key,):
        if isinstance(entry, slice):
            entries.append(("slice", entry.start, entry.stop, entry.step))
        elif entry is None or entry is Ellipsis or (isinstance(entry, int) and not isinstance(entry, bool)):
            entries.append(entry)
        else:
            trace.refuse(f"indexing with a {type(entry).__name__}")
    return _rearranged(trace, index, input, (tuple(entries),))


def _parts(function):
    """Records a function that cuts a tensor along one axis into consecutive parts; PyTorch itself says which."""

    @records(function)
    def recorder(trace, input, *args, **kwargs):
        parts = function(torch.empty(input.shape, device="meta"), *args, **kwargs)
        dim = kwargs.get("dim", args[1] if len(args) > 1 else 0) % input.dim()
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
def _cat(trace, tensors, dim=0, *, axis=None):
    dim = dim if axis is None else axis
    first = next(tensor for tensor in tensors if trace.depends_on_x(tensor))
    dim %= first.dim()
    # PyTorch skips empty vectors whatever the others' shape.
    tensors = [tensor for tensor in tensors if tuple(tensor.shape) != (0,)]
    if dim == 0:
        trace.refuse("a concatenation along the batch axis mixes samples")
    constant = tuple(not trace.depends_on_x(tensor) for tensor in tensors)
    inputs = [tensor for tensor in tensors if trace.depends_on_x(tensor)]
    return trace.emit(Cat(dim, constant), inputs, [tensor for tensor in tensors if not trace.depends_on_x(tensor)])


@records(torch.stack)
def _stack(trace, tensors, dim=0):
    dim %= next(tensor for tensor in tensors if trace.depends_on_x(tensor)).dim() + 1
    return torch.cat([tensor.unsqueeze(dim) for tensor in tensors], dim)


@records(Tensor.contiguous)
def _contiguous(trace, input, memory_format=torch.contiguous_format):
    return trace.maybe_copy(input)


@records(Tensor.clone, torch.clone)
def _clone(trace, input, *, memory_format=torch.preserve_format):
    return trace.copy(input)


def _records_cast(*functions):
    """Records functions that may change dtype or device; PyTorch itself says which dtype comes out."""

    def register(function):
        def recorder(trace, input, *args, **kwargs):
            if not trace.depends_on_x(input):
                return constant(trace, function, input, *args, **kwargs)
            args = [a for a in args if not _is_device_of(a, input)]
            kwargs = {k: v for k, v in kwargs.items() if not _is_device_of(v, input)}
            converted = function(torch.empty(0, dtype=input.dtype, device="meta"), *args, **kwargs)
            if not isinstance(converted, Tensor) or not converted.is_floating_point():
                trace.refuse("a change to a dtype that is not floating point")
            if converted.dtype != input.dtype:
                return trace.cast(input, converted.dtype)
            if kwargs.get("copy") or True in args:
                return trace.copy(input)
            return input if kwargs.get("memory_format") is None else trace.maybe_copy(input)

        return recorder

    for function in functions:
        records(function)(register(function))


def _is_device_of(value, tensor):
    return isinstance(value, (str, torch.device)) and torch.empty(0, device=value).device == tensor.device


_records_cast(Tensor.to, Tensor.float, Tensor.double, Tensor.half, Tensor.bfloat16, Tensor.type, Tensor.type_as)
