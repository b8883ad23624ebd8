"""Additions and multiplications by what does not depend on x."""

import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from gnfast.plan.op import LinearMap, Op, Operands, Shape, kept, per_sample, records


@dataclass(frozen=True)
class Add(LinearMap):
    """y = h₁ + alpha · h₂, both x-dependent, broadcast against each other outside the batch axis."""

    alpha: float
    promotes: ClassVar[bool] = True
    shares_cotangent: ClassVar[bool] = True

    def apply(self, *inputs: Tensor) -> Tensor:
        return torch.add(*inputs, alpha=self.alpha)

    def adjoint(self, cotangent: Tensor, shapes: Sequence[Shape]) -> Sequence[Tensor]:
        second = cotangent if self.alpha == 1 else cotangent * self.alpha
        return cotangent.sum_to_size(shapes[0]), second.sum_to_size(shapes[1])

    def label(self) -> str:
        return {1: "add", -1: "subtract"}.get(self.alpha, f"add ×{self.alpha:g}")


@dataclass(frozen=True)
class Shift(Op):
    """y = h + constant, a Python number or a tensor operand."""

    constant: float | None
    promotes: ClassVar[bool] = True
    shares_cotangent: ClassVar[bool] = True

    def forward(self, inputs: Sequence[Tensor], operands: Operands, overwrite: bool) -> tuple[Tensor, None]:
        return inputs[0] + (operands[0] if operands else self.constant), None

    def pullback(
        self, cotangent: Tensor, operands: Operands, saved: Any, shapes: Sequence[Shape], overwrite: bool
    ) -> Sequence[Tensor]:
        return (cotangent.sum_to_size(shapes[0]),)

    def pushforward(
        self, tangents: Sequence[Tensor], operands: Operands, saved: Any, scale: Tensor | None, overwrite: bool
    ) -> Tensor:
        # A zero scale still adds: the constant may widen the shape.
        t = tangents[0]
        scale = t.new_zeros(t.shape[0]) if scale is None else scale
        return t + per_sample(scale, t) * (operands[0] if operands else self.constant)

    def param_grad(
        self,
        cotangent: Tensor,
        tangents: Sequence[Tensor],
        operands: Operands,
        saved: Any,
        scale: Tensor | None,
        needs: Sequence[bool],
    ) -> Sequence[Tensor | None]:
        if not operands:
            return ()
        if not needs[0] or scale is None:
            return (None,)
        return ((per_sample(scale, cotangent) * cotangent).sum_to_size(operands[0].shape),)

    def label(self) -> str:
        return "add constant" if self.constant is None else f"add {self.constant:g}"


@dataclass(frozen=True)
class Scale(Op):
    """y = factor · h, or h / factor where it `divides`; a Python number or a tensor operand.

    The reciprocal of a divisor is rounded, and may overflow.
    """

    factor: float | None
    divides: bool = False
    promotes: ClassVar[bool] = True

    def forward(self, inputs: Sequence[Tensor], operands: Operands, overwrite: bool) -> tuple[Tensor, None]:
        return self._scaled(inputs[0], operands), None

    def pullback(
        self, cotangent: Tensor, operands: Operands, saved: Any, shapes: Sequence[Shape], overwrite: bool
    ) -> Sequence[Tensor]:
        return (self._scaled(cotangent, operands).sum_to_size(shapes[0]),)

    def pushforward(
        self, tangents: Sequence[Tensor], operands: Operands, saved: Any, scale: Tensor | None, overwrite: bool
    ) -> Tensor:
        return self._scaled(tangents[0], operands)

    def param_grad(
        self,
        cotangent: Tensor,
        tangents: Sequence[Tensor],
        operands: Operands,
        saved: Any,
        scale: Tensor | None,
        needs: Sequence[bool],
    ) -> Sequence[Tensor | None]:
        if not operands:
            return ()
        if not needs[0]:
            return (None,)
        t = tangents[0] / operands[0] / -operands[0] if self.divides else tangents[0]
        return ((cotangent * t).sum_to_size(operands[0].shape),)

    def label(self) -> str:
        return f"{'divide' if self.divides else 'multiply'} {'constant' if self.factor is None else f'{self.factor:g}'}"

    def _scaled(self, t: Tensor, operands: Operands) -> Tensor:
        factor = operands[0] if operands else self.factor
        return t / factor if self.divides else t * factor


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real)


def _add(trace, a, b, alpha):
    """a + alpha · b for any mix of x-dependent tensors, tensors and numbers, at least one of them x-dependent."""
    if isinstance(alpha, bool):
        trace.refuse("a truth value for alpha")
    if trace.depends_on_x(a) and trace.depends_on_x(b):
        if a.dim() != b.dim():
            trace.refuse("adding x-dependent tensors with different numbers of axes")
        return trace.emit(Add(alpha), [a, b])
    if not trace.depends_on_x(a):
        a, b, alpha = (b if alpha == 1 else _mul(trace, b, alpha)), a, 1
    if _is_number(b):
        return trace.emit(Shift(float(alpha * b)), [a])
    trace.require_constant_within_sample(b, a)
    return trace.emit(Shift(None), [a], [kept(b) if alpha == 1 else b.to(_product_dtype(a, b)) * alpha])


def _product_dtype(tensor, constant):
    """The dtype in which PyTorch multiplies them; a constant without axes does not widen."""
    return torch.promote_types(tensor.dtype, constant.dtype) if constant.dim() else tensor.dtype


def _mul(trace, a, b):
    if trace.depends_on_x(a) and trace.depends_on_x(b):
        trace.refuse("the product of two x-dependent tensors is not piecewise linear")
    return _scaled(trace, a, b) if trace.depends_on_x(a) else _scaled(trace, b, a)


def _scaled(trace, a, b, divides=False):
    if _is_number(b):
        return trace.emit(Scale(float(b), divides), [a])
    trace.require_constant_within_sample(b, a)
    return trace.emit(Scale(None, divides), [a], [b])


@records(torch.add, torch.Tensor.add)
def _record_add(trace, input, other, *, alpha=1):
    return _add(trace, input, other, alpha)


@records(torch.sub, torch.Tensor.sub, torch.subtract, torch.Tensor.subtract)
def _record_sub(trace, input, other, *, alpha=1):
    if any(isinstance(t, bool) or (isinstance(t, Tensor) and t.dtype == torch.bool) for t in (input, other, alpha)):
        trace.refuse("subtraction with truth values, which PyTorch does not have")
    return _add(trace, input, other, -alpha)


@records(torch.rsub, torch.Tensor.__rsub__)
def _record_rsub(trace, input, other, *, alpha=1):
    return torch.sub(other, input, alpha=alpha)


@records(torch.mul, torch.Tensor.mul, torch.multiply, torch.Tensor.multiply)
def _record_mul(trace, input, other):
    return _mul(trace, input, other)


@records(torch.neg, torch.Tensor.neg)
def _record_neg(trace, input):
    return _mul(trace, input, -1)


@records(torch.div, torch.Tensor.div, torch.true_divide, torch.Tensor.true_divide)
def _record_div(trace, input, other, *, rounding_mode=None):
    if rounding_mode is not None:
        trace.refuse(f"division with rounding_mode={rounding_mode!r}")
    if trace.depends_on_x(other):
        trace.refuse("division by an x-dependent tensor is not piecewise linear")
    return _scaled(trace, input, other, divides=True)


@records(torch.positive, torch.Tensor.positive)
def _record_positive(trace, input):
    return input


@records(torch.lerp, torch.Tensor.lerp)
def _record_lerp(trace, input, end, weight):
    return input * (1 - weight) + end * weight


@records(torch.addcmul, torch.Tensor.addcmul)
def _record_addcmul(trace, input, tensor1, tensor2, *, value=1):
    return input + tensor1 * tensor2 * value
