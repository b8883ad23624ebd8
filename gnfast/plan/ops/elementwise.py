"""Additions and multiplications by what does not depend on x."""

import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from gnfast.plan.op import Combination, Context, LinearMap, kept
from gnfast.plan.ops.given import emit_given
from gnfast.plan.ops.products import Product
from gnfast.plan.records import records


@dataclass(frozen=True)
class Add(LinearMap):
    """y = h₁ + alpha · h₂, both x-dependent, broadcast against each other outside the batch axis."""

    alpha: float
    promotes: ClassVar[bool] = True
    shares_cotangent: ClassVar[bool] = True

    def pullback(self, ctx: Context, cotangent: Tensor) -> Sequence[Tensor]:
        second = cotangent if self.alpha == 1 else cotangent * self.alpha
        return cotangent.sum_to_size(ctx.shapes[0]), second.sum_to_size(ctx.shapes[1])

    def pushforward(self, ctx: Context, *tangents: Tensor) -> Tensor:
        return torch.add(*tangents, alpha=self.alpha)

    def label(self) -> str:
        return {1: "add", -1: "subtract"}.get(self.alpha, f"add ×{self.alpha:g}")


@dataclass(frozen=True)
class Shift(Combination):
    """y = h + constant, a Python number or a tensor operand."""

    constant: float | None
    fixed: ClassVar[tuple[bool, ...]] = (False, True)
    shares_cotangent: ClassVar[bool] = True

    def combine(self, ctx: Context, *parts: Tensor) -> Tensor:
        h, constant = parts
        return h + constant

    def shares(self, ctx: Context, cotangent: Tensor) -> Sequence[Tensor]:
        return cotangent, cotangent

    def constants(self, operands: Sequence[Tensor]) -> Sequence[Tensor | float]:
        return operands or (self.constant,)

    def label(self) -> str:
        return "add constant" if self.constant is None else f"add {self.constant:g}"


@dataclass(frozen=True)
class Scale(LinearMap):
    """y = factor · h, or h / factor where it `divides`; a Python number or a tensor operand.

    The reciprocal of a divisor is rounded, and may overflow.
    """

    factor: float | None
    divides: bool = False
    promotes: ClassVar[bool] = True

    def pullback(self, ctx: Context, cotangent: Tensor) -> Sequence[Tensor]:
        return (self.pushforward(ctx, cotangent).sum_to_size(ctx.shapes[0]),)

    def pushforward(self, ctx: Context, *tangents: Tensor) -> Tensor:
        factor = ctx.operands[0] if ctx.operands else self.factor
        return tangents[0] / factor if self.divides else tangents[0] * factor

    def param_grad(self, ctx: Context, cotangent: Tensor, tangent: Tensor) -> Sequence[Tensor | None]:
        if not any(ctx.needs):
            return [None] * len(ctx.operands)
        (factor,) = ctx.operands
        t = tangent / factor / -factor if self.divides else tangent
        return ((cotangent * t).sum_to_size(factor.shape),)

    def label(self) -> str:
        return f"{'divide' if self.divides else 'multiply'} {'constant' if self.factor is None else f'{self.factor:g}'}"


@records("add")
def _add(trace, input, other, *, alpha=1):
    """Of any mix of x-dependent tensors, tensors and numbers, at least one of them x-dependent."""
    a, b = input, other
    # A number now, whatever is written to the tensor before the backward.
    alpha = alpha.item() if isinstance(alpha, Tensor) else alpha
    if isinstance(alpha, bool):
        trace.refuse("a truth value for alpha")
    if trace.depends_on_x(a) and trace.depends_on_x(b):
        return trace.emit(Add(alpha), [a, b], mixes=a.dim() != b.dim())
    if not trace.depends_on_x(a):
        a, b, alpha = (b if alpha == 1 else _mul(trace, b, alpha)), a, 1
    if isinstance(b, numbers.Real):
        return trace.emit(Shift(float(alpha * b)), [a])
    trace.require_tensor(b)
    if alpha == 1:
        return trace.emit(Shift(None), [a], [kept(b)], mixes=b.dim() > a.dim())
    # As PyTorch multiplies them: a constant without axes does not widen.
    dtype = torch.promote_types(a.dtype, b.dtype) if b.dim() else a.dtype
    return trace.emit(Shift(None), [a], [b.to(dtype) * alpha], mixes=b.dim() > a.dim())


def _scaled(trace, a, b, divides=False):
    if isinstance(b, numbers.Real):
        if divides and b == 0 and str(b).startswith("-"):
            # It is equal to 0.0, and so would be their Plans.
            trace.refuse("division by -0.0")
        return trace.emit(Scale(float(b), divides), [a])
    trace.require_tensor(b)
    return trace.emit(Scale(None, divides), [a], [b], mixes=b.dim() > a.dim())


@records("sub")
def _record_sub(trace, input, other, *, alpha=1):
    if any(isinstance(t, bool) or (isinstance(t, Tensor) and t.dtype == torch.bool) for t in (input, other, alpha)):
        trace.refuse("subtraction with truth values, which PyTorch does not have")
    return _add(trace, input, other, alpha=-alpha)


@records("rsub", "__rsub__")
def _record_rsub(trace, input, other, *, alpha=1):
    return torch.sub(other, input, alpha=alpha)


@records("mul")
def _mul(trace, input, other):
    if trace.depends_on_x(input) and trace.depends_on_x(other):
        return _product(trace, input, other)
    return _scaled(trace, input, other) if trace.depends_on_x(input) else _scaled(trace, other, input)


def _product(trace, a, b, divides=False):
    """Of two x-dependent tensors, one of which may be a constant for derivatives."""
    # A mask is no number for derivatives.
    if not divides and (a.scalar == torch.bool or not a.tracked):
        a, b = b, a
    if not b.tracked:
        dtype = torch.promote_types(a.scalar, b.scalar)
        return emit_given(trace, Scale(None, divides), b, [trace.cast(a, dtype)])
    return trace.curved(torch.div, a, b) if divides else trace.emit(Product(), [a, b])


@records("neg")
def _record_neg(trace, input):
    return _scaled(trace, input, -1)


@records("div")
def _record_div(trace, input, other, *, rounding_mode=None):
    if rounding_mode is not None:
        trace.refuse(f"division with rounding_mode={rounding_mode!r}")
    if trace.depends_on_x(input) and trace.depends_on_x(other):
        return _product(trace, input, other, divides=True)
    if trace.depends_on_x(other):
        return trace.curved(torch.div, input, other)
    return _scaled(trace, input, other, divides=True)


@records(F.glu)
def _record_glu(trace, input, dim=-1):
    h, gate = input.chunk(2, dim)
    return h * gate.sigmoid()


@records("__rdiv__", "__rtruediv__")
def _record_rdiv(trace, input, other):
    return torch.reciprocal(input) * other


@records("positive", "conj", "conj_physical", "resolve_conj", "resolve_neg", torch.real, Tensor.real.__get__)
def _record_positive(trace, input):
    """Of real numbers, as everywhere here."""
    return input


@records("lerp")
def _record_lerp(trace, input, end, weight):
    return input * (1 - weight) + end * weight


@records("addcmul")
def _record_addcmul(trace, input, tensor1, tensor2, *, value=1):
    return input + tensor1 * tensor2 * value


@records("addcdiv")
def _record_addcdiv(trace, input, tensor1, tensor2, *, value=1):
    return input + tensor1 / tensor2 * value
