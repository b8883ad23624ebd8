"""Piecewise-linear activations: what they keep is which piece each entry lies on."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from gnfast.kernels import leaky_relu_mask, leaky_relu_pack
from gnfast.plan.op import Context, Op, per_sample
from gnfast.plan.records import SELF_CHECKED, records


@dataclass(frozen=True)
class LeakyReLU(Op):
    """y = h where h > 0, else slope · h. Keeps the sign bits (in h's memory order) and h's strides."""

    slope: float
    homogeneous: ClassVar[bool] = True
    mask_bits: ClassVar[float] = 1
    cheap: ClassVar[bool] = True
    zeros_below: ClassVar[bool] = True

    def forward(self, ctx: Context, *inputs: Tensor) -> tuple[Tensor, tuple[Tensor, tuple[int, ...]]]:
        h, overwrite = inputs[0], ctx.overwrite
        if not _is_dense(h):
            h, overwrite = h.contiguous(), True
        y, bits = leaky_relu_pack(h, self.slope, inplace=overwrite)
        return y, (bits, y.stride())

    def pullback(self, ctx: Context, cotangent: Tensor) -> Sequence[Tensor]:
        return (self.pushforward(ctx, cotangent),)

    def pushforward(self, ctx: Context, *tangents: Tensor) -> Tensor:
        (bits, strides), t, overwrite = ctx.saved, tangents[0], ctx.overwrite
        if t.stride() != strides:
            t, overwrite = torch.empty_strided(t.shape, strides, dtype=t.dtype, device=t.device).copy_(t), True
        return leaky_relu_mask(t, bits, self.slope, inplace=overwrite)

    def again(self, ctx: Context, *inputs: Tensor) -> Tensor:
        return self.pushforward(ctx, *inputs)

    def label(self) -> str:
        return f"leaky_relu {self.slope:g}" if self.slope else "relu"


@dataclass(frozen=True)
class Piecewise(Op):
    """y = slopes[j] · h + intercepts[j] on piece j. Keeps j, one byte per entry.

    Attributes:
        knots: ascending; (value, closed) starts the next piece at h ≥ value where closed, else at h > value.
        slopes, intercepts: one per piece, that is one more than there are knots.
    """

    name: str
    knots: tuple[tuple[float, bool], ...]
    slopes: tuple[float, ...]
    intercepts: tuple[float, ...]
    mask_bits: ClassVar[float] = 8

    @property
    def homogeneous(self) -> bool:
        return not any(self.intercepts) and all(knot == 0 for knot, _ in self.knots)

    @property
    def zeros_below(self) -> bool:
        return not self.name.startswith("clamp")

    def forward(self, ctx: Context, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        h = inputs[0]
        passed = [h >= value if closed else h > value for value, closed in self.knots]
        piece = sum(flags.to(torch.uint8) for flags in passed)
        # Where the function is constant, an infinite h counts for nothing; NaN is NaN everywhere.
        y = torch.where(h.isnan(), h, self._sloped(h, piece)) if 0 in self.slopes else self._sloped(h, piece)
        return (y + self._lookup(self.intercepts, piece, h.dtype) if any(self.intercepts) else y), piece

    def pullback(self, ctx: Context, cotangent: Tensor) -> Sequence[Tensor]:
        return (self._sloped(cotangent, ctx.saved),)

    def pushforward(self, ctx: Context, *tangents: Tensor) -> Tensor:
        y = self._sloped(tangents[0], ctx.saved)
        if ctx.scale is not None and any(self.intercepts):
            y = y + per_sample(ctx.scale, y) * self._lookup(self.intercepts, ctx.saved, y.dtype)
        return y

    def label(self) -> str:
        return self.name

    def _sloped(self, t: Tensor, piece: Tensor) -> Tensor:
        slope = self._lookup(self.slopes, piece, t.dtype)
        return torch.where(slope == 0, 0, t * slope) if 0 in self.slopes else t * slope

    def _lookup(self, values: Sequence[float], piece: Tensor, dtype: torch.dtype) -> Tensor:
        found = torch.full((), values[0], dtype=dtype, device=piece.device)
        for index, value in enumerate(values[1:]):
            found = torch.where(piece > index, value, found)
        return found


@dataclass(frozen=True)
class PReLU(Op):
    """y = h where h > 0, else w · h; w (C,) or (1,) along axis 1. Keeps where h > 0, one byte per entry."""

    homogeneous: ClassVar[bool] = True
    promotes: ClassVar[bool] = True
    autocasts: ClassVar[bool] = True
    mask_bits: ClassVar[float] = 8
    zeros_below: ClassVar[bool] = True

    def forward(self, ctx: Context, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        return F.prelu(inputs[0], ctx.operands[0]), inputs[0] > 0

    def pullback(self, ctx: Context, cotangent: Tensor) -> Sequence[Tensor]:
        return (self.pushforward(ctx, cotangent),)

    def pushforward(self, ctx: Context, *tangents: Tensor) -> Tensor:
        t = tangents[0]
        return torch.where(ctx.saved, t, t * self._slope(ctx, t))

    def param_grad(self, ctx: Context, cotangent: Tensor, tangent: Tensor) -> Sequence[Tensor | None]:
        if not ctx.needs[0]:
            return (None,)
        product = (cotangent * tangent).masked_fill_(ctx.saved, 0)
        return (product.sum_to_size(self._slope(ctx, product).shape).reshape(ctx.operands[0].shape),)

    def _slope(self, ctx: Context, t: Tensor) -> Tensor:
        return ctx.operands[0].reshape(-1, *[1] * (t.dim() - 2)) if t.dim() > 1 else ctx.operands[0].reshape(())


def _is_dense(t: Tensor) -> bool:
    """Whether the entries fill their memory, in any order of axes."""
    if t.is_contiguous() or (t.dim() == 4 and t.is_contiguous(memory_format=torch.channels_last)):
        return True
    # `preserve_format` keeps the strides of exactly these tensors.
    return torch.empty_like(t, device="meta").stride() == t.stride()


def _clamp(min: Any = None, max: Any = None) -> Piecewise:
    if min is None:
        return Piecewise(f"clamp ≤ {max:g}", ((max, False),), (1, 0), (0, max))
    if max is None:
        return Piecewise(f"clamp ≥ {min:g}", ((min, True),), (0, 1), (min, 0))
    if min > max:
        # As PyTorch defines it: everything is set to max.
        return Piecewise(f"clamp {min:g}…{max:g}", ((max, True),), (0, 0), (max, max))
    return Piecewise(f"clamp {min:g}…{max:g}", ((min, True), (max, False)), (0, 1, 0), (min, 0, max))


def _hardtanh(min_val: float = -1.0, max_val: float = 1.0) -> Piecewise:
    if min_val > max_val:
        # Only hardtanh_ lets this pass.
        return _clamp(min_val, max_val)
    # Unlike clamp's, its derivative at the bounds is 0.
    return Piecewise("hardtanh", ((min_val, False), (max_val, True)), (0, 1, 0), (min_val, 0, max_val))


def _shrink(name: str, lambd: float, intercepts: tuple[float, ...]) -> Piecewise:
    if not lambd >= 0:
        # PyTorch lets this pass for hardshrink alone, which then changes nothing.
        return Piecewise(name, ((0, True),), (1, 1), (0, 0))
    return Piecewise(name, ((-lambd, True), (lambd, False)), (1, 0, 1), intercepts)


# function: the op for its arguments after the input, `inplace` left out.
ACTIVATIONS: dict[Callable[..., Any], Callable[..., Op | None]] = {
    F.relu: lambda: LeakyReLU(0.0),
    torch.relu: lambda: LeakyReLU(0.0),
    F.leaky_relu: lambda negative_slope=0.01: LeakyReLU(float(negative_slope)),
    # None: slopes that are drawn for every entry.
    F.rrelu: lambda lower=1 / 8, upper=1 / 3, training=False: None if training else LeakyReLU((lower + upper) / 2),
    torch.abs: lambda: Piecewise("abs", ((0, True), (0, False)), (-1, 0, 1), (0, 0, 0)),
    torch.clamp: _clamp,
    torch.clamp_min: lambda min: _clamp(min=min),
    torch.clamp_max: lambda max: _clamp(max=max),
    F.hardtanh: _hardtanh,
    F.relu6: lambda: _hardtanh(0.0, 6.0),
    F.threshold: lambda threshold, value: Piecewise("threshold", ((threshold, False),), (0, 1), (value, 0)),
    F.softshrink: lambda lambd=0.5: _shrink("softshrink", lambd, (lambd, 0, -lambd)),
    F.hardshrink: lambda lambd=0.5: _shrink("hardshrink", lambd, (0, 0, 0)),
    F.hardsigmoid: lambda: Piecewise("hardsigmoid", ((-3, False), (3, True)), (0, 1 / 6, 0), (0, 0.5, 1)),
}


def _register(function: Callable[..., Any], op_of: Callable[..., Op | None]) -> None:
    # `inplace` comes last by position, where a function has it.
    positional = len(inspect.signature(op_of).parameters)

    def recorder(trace, input, *args, inplace=False, **kwargs):
        if len(args) > positional:
            *args, inplace = args
        if any(isinstance(value, Tensor) for value in (*args, *kwargs.values())):
            y = trace.curved(function, input, *args, **kwargs)
            return trace.rebind(input, y) if inplace else y
        op = op_of(*args, **kwargs)
        if op is None:
            trace.refuse("slopes that are drawn at random for every entry")
        if inplace and isinstance(op, LeakyReLU) and op.slope < 0:
            trace.refuse("a negative slope in place, of which PyTorch has no gradient")
        y = trace.emit(op, [input])
        return trace.rebind(input, y) if inplace else y

    method = getattr(Tensor, function.__name__, None)
    records(function, *([method] if method is not None else []))(recorder)


for _function, _op_of in ACTIVATIONS.items():
    _register(_function, _op_of)
# PyTorch 2.11 refuses bounds the wrong way without data, and takes them with data.
SELF_CHECKED.add(F.hardtanh_)


@records(F.leaky_relu_)
def _leaky_relu_(trace, input, negative_slope=0.01):
    return F.leaky_relu(input, negative_slope, inplace=True)


@records("prelu")
def _prelu(trace, input, weight):
    return trace.emit(PReLU(), [input], [weight])
