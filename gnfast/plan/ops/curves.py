"""Functions with curvature, entry by entry: those of critics as data, the others by autograd."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gnfast.kernels.layout import accumulator
from gnfast.plan.curved import Curved, Grads
from gnfast.plan.op import Context, records

aten = torch.ops.aten


class Curve(NamedTuple):
    """A function φ of one number, as functions of tensors."""

    value: Callable[[Tensor], Tensor]
    sloped: Callable[[Tensor, Tensor], Tensor]
    """(u, h) ↦ φ'(h) u."""
    bend: Callable[[Tensor], Tensor]
    """h ↦ φ''(h), which h in float32 at least is given."""


@dataclass(frozen=True)
class Elementwise(Curved):
    """y = φ(h) of the row of CURVES that has the function's name, with these arguments."""

    name: str
    args: tuple[float | str, ...] = ()
    cheap: ClassVar[bool] = True
    bends_early: ClassVar[bool] = True

    @property
    def curve(self) -> Curve:
        return CURVES[self.name](*self.args)

    def value(self, operands: Sequence[Tensor | None], *inputs: Tensor) -> Tensor:
        return self.curve.value(*inputs)

    def pullback(self, ctx: Context, cotangent: Tensor) -> Sequence[Tensor]:
        return (self.curve.sloped(cotangent, *ctx.inputs),)

    def pushforward(self, ctx: Context, *tangents: Tensor) -> Tensor:
        return self.curve.sloped(*tangents, *ctx.inputs)

    def second(
        self, ctx: Context, cotangent: Tensor, tangents: Sequence[Tensor], adjoint: Tensor | None
    ) -> tuple[Grads, Grads]:
        (h,), (t,) = ctx.inputs, tangents
        wide = accumulator(h.dtype)
        grad = self.curve.bend(h.to(wide)).mul_(t).mul_(cotangent)
        if adjoint is not None:
            grad += self.curve.sloped(adjoint, h)
        return (grad.to(h.dtype),), ()

    def label(self) -> str:
        return " ".join([self.name, *(f"{a:g}" if isinstance(a, float) else str(a) for a in self.args)])


def _sigmoid() -> Curve:
    def bend(h: Tensor) -> Tensor:
        s = h.sigmoid()
        return s * (1 - s) * (1 - 2 * s)

    return Curve(torch.sigmoid, lambda u, h: aten.sigmoid_backward(u, h.sigmoid()), bend)


def _tanh() -> Curve:
    def bend(h: Tensor) -> Tensor:
        y = h.tanh()
        return -2 * y * (1 - y * y)

    return Curve(torch.tanh, lambda u, h: aten.tanh_backward(u, h.tanh()), bend)


def _softplus(beta: float = 1.0, threshold: float = 20.0) -> Curve:
    def bend(h: Tensor) -> Tensor:
        s = (beta * h).sigmoid()
        return (beta * s * (1 - s)).masked_fill_(beta * h > threshold, 0)

    return Curve(
        lambda h: F.softplus(h, beta, threshold), lambda u, h: aten.softplus_backward(u, h, beta, threshold), bend
    )


def _exponential_unit(alpha: float = 1.0, scale: float = 1.0, rate: float = 1.0) -> Curve:
    """scale · h for h > 0, else scale · alpha (exp(rate · h) − 1)."""
    options = alpha, scale, rate

    def bend(h: Tensor) -> Tensor:
        below = (rate * h.clamp(max=0)).exp_().mul_(scale * alpha * rate * rate)
        return below.masked_fill_(h > 0, 0)

    return Curve(lambda h: aten.elu(h, *options), lambda u, h: aten.elu_backward(u, *options, False, h), bend)


def _silu() -> Curve:
    def bend(h: Tensor) -> Tensor:
        s = h.sigmoid()
        return (2 + h * (1 - 2 * s)).mul_(s).mul_(1 - s)

    return Curve(F.silu, aten.silu_backward, bend)


def _mish() -> Curve:
    def bend(h: Tensor) -> Tensor:
        s, w = h.sigmoid(), F.softplus(h).tanh()
        slope = (1 - w * w) * s
        return 2 * slope + h * slope * (1 - s - 2 * w * s)

    return Curve(F.mish, aten.mish_backward, bend)


def _gelu(approximate: str = "none") -> Curve:
    def exact(h: Tensor) -> Tensor:
        square = h * h
        return (square / -2).exp_().mul_(2 - square).div_(math.sqrt(2 * math.pi))

    def by_tanh(h: Tensor) -> Tensor:
        k, c = math.sqrt(2 / math.pi), 0.044715
        square = h * h
        y, slope = torch.tanh(k * h * (1 + c * square)), k * (1 + 3 * c * square)
        return (1 - y * y) * (slope + h * (3 * k * c * h - y * slope * slope))

    return Curve(
        lambda h: F.gelu(h, approximate=approximate),
        lambda u, h: aten.gelu_backward(u, h, approximate=approximate),
        exact if approximate == "none" else by_tanh,
    )


def _logsigmoid() -> Curve:
    def bend(h: Tensor) -> Tensor:
        s = h.sigmoid()
        return s * (s - 1)

    return Curve(F.logsigmoid, lambda u, h: u * (-h).sigmoid(), bend)


def _softsign() -> Curve:
    return Curve(F.softsign, lambda u, h: u / (1 + h.abs()).square(), lambda h: -2 * h.sign() / (1 + h.abs()).pow(3))


def _exp() -> Curve:
    return Curve(torch.exp, lambda u, h: u * h.exp(), torch.exp)


def _square() -> Curve:
    return Curve(torch.square, lambda u, h: 2 * h * u, lambda h: torch.full_like(h, 2.0))


def _sin() -> Curve:
    return Curve(torch.sin, lambda u, h: u * h.cos(), lambda h: -h.sin())


def _cos() -> Curve:
    return Curve(torch.cos, lambda u, h: -u * h.sin(), lambda h: -h.cos())


# The functions' names, and what they are for their arguments after the input, `inplace` left out.
CURVES: dict[str, Callable[..., Curve]] = {
    "sigmoid": _sigmoid,
    "tanh": _tanh,
    "softplus": _softplus,
    "elu": lambda alpha=1.0: _exponential_unit(alpha),
    "celu": lambda alpha=1.0: _exponential_unit(alpha, rate=1 / alpha),
    "selu": lambda: _exponential_unit(1.6732632423543772848170429916717, 1.0507009873554804934193349852946),
    "silu": _silu,
    "mish": _mish,
    "gelu": _gelu,
    "logsigmoid": _logsigmoid,
    "softsign": _softsign,
    "exp": _exp,
    "square": _square,
    "sin": _sin,
    "cos": _cos,
}
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
