"""Values of x that no derivative follows: comparisons, signs, integers; and operations that take them as constants."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from gnfast.plan.op import Context, Op, ScaledSum, Shape, per_sample
from gnfast.plan.records import records


@dataclass(frozen=True)
class Constant(Op):
    """y = op(h), of which every derivative is zero or not to be followed; of any dtype."""

    op: Op
    mask_bits: ClassVar[float] = 32
    detaches: ClassVar[bool] = True

    @property
    def is_view(self) -> bool:
        return self.op.is_view

    def forward(self, ctx: Context, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        y, _ = self.op.forward(ctx._replace(overwrite=False), *inputs)
        return y, y

    def pushforward(self, ctx: Context, *tangents: Tensor) -> Tensor | None:
        y = ctx.saved
        if not y.is_floating_point():
            return None
        return torch.zeros_like(y) if ctx.scale is None else y * per_sample(ctx.scale, y)

    def label(self) -> str:
        return self.op.label()


@dataclass(frozen=True)
class Given(Op):
    """y = op(h) with its first input as the op's first operand, which no derivative follows. Keeps that value."""

    op: Op
    given: ClassVar[int] = 1

    @property
    def shares_cotangent(self) -> bool:
        return self.op.shares_cotangent

    def forward(self, ctx: Context, *inputs: Tensor) -> tuple[Tensor, tuple[Tensor, Any]]:
        value, *rest = inputs
        y, saved = self.op.forward(ctx._replace(operands=[value, *ctx.operands], overwrite=False), *rest)
        return y, (value, saved)

    def pullback(self, ctx: Context, cotangent: Tensor) -> Sequence[Tensor | None]:
        return None, *self.op.pullback(self._inner(ctx)._replace(shapes=ctx.shapes[1:]), cotangent)

    def pushforward(self, ctx: Context, *tangents: Tensor) -> Tensor:
        return self.op.pushforward(self._inner(ctx), *tangents[1:])

    def param_grad(self, ctx: Context, cotangent: Tensor, tangent: Tensor) -> Sequence[Tensor | ScaledSum | None]:
        return self.op.param_grad(self._inner(ctx), cotangent, tangent)[1:]

    def flops(self, input_shapes: Sequence[Shape], operand_shapes: Sequence[Shape | None], output_shape: Shape) -> int:
        return self.op.flops(input_shapes[1:], [input_shapes[0], *operand_shapes], output_shape)

    def label(self) -> str:
        return f"{self.op.label()} by x"

    def _inner(self, ctx: Context) -> Context:
        value, saved = ctx.saved
        operands, needs = [value, *ctx.operands], (False, *ctx.needs)
        return ctx._replace(operands=operands, saved=saved, needs=needs, overwrite=False)


def emit_given(trace: Any, op: Op, value: Tensor, inputs: Sequence[Tensor], operands: Sequence[Tensor] = ()) -> Tensor:
    """Records `Given(op)` of the value and the inputs, between which PyTorch broadcasts."""
    axes = max(t.dim() for t in (value, *inputs, *operands))
    return trace.emit(Given(op), [value, *inputs], operands, mixes=any(t.dim() != axes for t in inputs))


_FLAT = (
    *("eq", "ne", "lt", "le", "gt", "ge", "less", "less_equal", "greater", "greater_equal", "not_equal", "isclose"),
    *(getattr(Tensor, f"__{name}__") for name in ("eq", "and", "or", "xor", "invert")),
    *("logical_and", "logical_or", "logical_xor", "logical_not", "bitwise_and", "bitwise_or", "bitwise_xor"),
    *("bitwise_not", "isnan", "isinf", "isfinite", "signbit", "any", "all", "count_nonzero"),
    *("argmax", "argmin", "argsort", "sign", "sgn", "floor", "ceil", "round", "trunc", "fix"),
)


@records(*_FLAT, told=True)
def _flat(function, trace, *args, **kwargs):
    return trace.curved(function, *args, **kwargs, _as=Constant)
