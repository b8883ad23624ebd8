"""Functions with curvature, entry by entry: those of critics as data, the others by autograd."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from gnfast.kernels import curves
from gnfast.kernels.curves.plain import CURVES, Curve
from gnfast.plan.curved import Curved, Grads
from gnfast.plan.op import Context
from gnfast.plan.records import records


@dataclass(frozen=True)
class Elementwise(Curved):
    """y = φ(h) of the row of CURVES that has the function's name, with these arguments."""

    name: str
    args: tuple[float | str, ...] = ()
    cheap: ClassVar[bool] = True
    bends_early: ClassVar[bool] = True

    @functools.cached_property
    def curve(self) -> Curve:
        return CURVES[self.name](*self.args)

    def value(self, operands: Sequence[Tensor | None], *inputs: Tensor) -> Tensor:
        return self.curve.value(*inputs)

    def pullback(self, ctx: Context, cotangent: Tensor) -> Sequence[Tensor]:
        return (curves.sloped(self.curve, cotangent, *ctx.inputs),)

    def pulled_onto(self, totals: Grads, ctx: Context, cotangent: Tensor) -> Grads:
        return (curves.sloped(self.curve, cotangent, *ctx.inputs, *totals),)

    def pushforward(self, ctx: Context, *tangents: Tensor) -> Tensor:
        return curves.sloped(self.curve, *tangents, *ctx.inputs)

    def pushed_and_bent(self, ctx: Context, cotangent: Tensor, *tangents: Tensor) -> tuple[Tensor, Grads]:
        pushed, bent = curves.both(self.curve, *ctx.inputs, *tangents, cotangent)
        return pushed, (bent,)

    def second(
        self, ctx: Context, cotangent: Tensor, tangents: Sequence[Tensor], adjoint: Tensor | None
    ) -> tuple[Grads, Grads]:
        total = curves.bent(self.curve, *ctx.inputs, *tangents, cotangent)
        return ((total,) if adjoint is None else self.pulled_onto((total,), ctx, adjoint)), ()

    def label(self) -> str:
        return " ".join([self.name, *(f"{a:g}" if isinstance(a, float) else str(a) for a in self.args)])


_BY_AUTOGRAD = (
    *("exp2", "expm1", "log", "log2", "log10", "log1p", "sqrt", "rsqrt", "reciprocal", "pow", "hypot", "atan2"),
    *("tan", "sinh", "cosh", "asin", "acos", "atan", "asinh", "acosh", "atanh", "erf", "sinc", "logaddexp"),
    *(Tensor.__pow__, Tensor.__rpow__, F.hardswish, F.tanhshrink),
    *(F.mse_loss, F.smooth_l1_loss, F.huber_loss, F.soft_margin_loss),
    *("logsumexp", "cumprod", "prod", "cosine_similarity"),
)


@records(*_BY_AUTOGRAD, told=True)
def _curved(function, trace, *args, inplace=False, **kwargs):
    y = trace.curved(function, *args, **kwargs)
    return trace.rebind(args[0], y) if inplace else y


def _register(name: str) -> None:
    # `inplace` comes last by position, where a function has it.
    positional = CURVES[name].__code__.co_argcount

    def recorder(trace: Any, input: Tensor, *args: Any, inplace: bool = False, **kwargs: Any) -> Tensor:
        if len(args) > positional:
            *args, inplace = args
        if any(isinstance(value, Tensor) for value in (*args, *kwargs.values())):
            trace.refuse("an argument that is a tensor")
        names = CURVES[name].__code__.co_varnames[len(args) : positional]
        defaults = CURVES[name].__defaults__ or ()
        rest = [kwargs.pop(n, d) for n, d in zip(names, defaults[len(args) :], strict=True)]
        op = Elementwise(name, tuple(a if isinstance(a, str) else float(a) for a in (*args, *rest)))
        if inplace:
            return trace.rebind(input, trace.emit(op, [input]))
        return trace.emit(op, [trace.autocast(function or getattr(torch, name), input)])

    function = getattr(F, name, None)
    records(name, *([] if function is None else [function]))(recorder)


for _name in CURVES:
    _register(_name)
