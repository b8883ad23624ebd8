"""Functions with curvature in plain PyTorch, as data: the one table of them, and the oracle of all other kernels."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gnfast.kernels.layout import accumulator

aten = torch.ops.aten


class Curve(NamedTuple):
    """A function φ of one number, as functions of tensors."""

    value: Callable[[Tensor], Tensor]
    sloped: Callable[[Tensor, Tensor], Tensor]
    """(u, h) ↦ φ'(h) u."""
    bend: Callable[[Tensor], Tensor]
    """h ↦ φ''(h), which h in float32 at least is given."""
    kind: str
    """What kernels call it."""
    constants: tuple[float, ...] = ()
    """The numbers in it, three at most, as they take them."""


def sloped(curve: Curve, u: Tensor, h: Tensor, addend: Tensor | None = None) -> Tensor:
    """`sloped`."""
    result = curve.sloped(u, h)
    return result if addend is None else addend.add_(result)


def bent(curve: Curve, h: Tensor, t: Tensor, cotangent: Tensor) -> Tensor:
    """`bent`."""
    return curve.bend(h.to(accumulator(h.dtype))).mul_(t).mul_(cotangent).to(h.dtype)


def both(curve: Curve, h: Tensor, t: Tensor, cotangent: Tensor) -> tuple[Tensor, Tensor]:
    """`both`."""
    return sloped(curve, t, h), bent(curve, h, t, cotangent)


def _sigmoid() -> Curve:
    def bend(h: Tensor) -> Tensor:
        s = h.sigmoid()
        return s * (1 - s) * (1 - 2 * s)

    return Curve(torch.sigmoid, lambda u, h: aten.sigmoid_backward(u, h.sigmoid()), bend, "sigmoid")


def _tanh() -> Curve:
    def bend(h: Tensor) -> Tensor:
        y = h.tanh()
        return -2 * y * (1 - y * y)

    return Curve(torch.tanh, lambda u, h: aten.tanh_backward(u, h.tanh()), bend, "tanh")


def _softplus(beta: float = 1.0, threshold: float = 20.0) -> Curve:
    def bend(h: Tensor) -> Tensor:
        s = (beta * h).sigmoid()
        return (beta * s * (1 - s)).masked_fill_(beta * h >= threshold, 0)

    options = beta, threshold
    value = lambda h: F.softplus(h, *options)  # noqa: E731
    return Curve(value, lambda u, h: aten.softplus_backward(u, h, *options), bend, "softplus", options)


def _exponential_unit(alpha: float = 1.0, scale: float = 1.0, rate: float = 1.0) -> Curve:
    """scale · h for h > 0, else scale · alpha (exp(rate · h) − 1)."""
    options = alpha, scale, rate

    def bend(h: Tensor) -> Tensor:
        below = (rate * h.clamp(max=0)).exp_().mul_(scale * alpha * rate * rate)
        return below.masked_fill_(h >= 0, 0)

    value = lambda h: aten.elu(h, *options)  # noqa: E731
    return Curve(value, lambda u, h: aten.elu_backward(u, *options, False, h), bend, "elu", options)


def _silu() -> Curve:
    def bend(h: Tensor) -> Tensor:
        s = h.sigmoid()
        return (2 + h * (1 - 2 * s)).mul_(s).mul_(1 - s)

    return Curve(F.silu, aten.silu_backward, bend, "silu")


def _mish() -> Curve:
    def bend(h: Tensor) -> Tensor:
        s, w = h.sigmoid(), F.softplus(h).tanh()
        slope = (1 - w * w) * s
        return 2 * slope + h * slope * (1 - s - 2 * w * s)

    return Curve(F.mish, aten.mish_backward, bend, "mish")


def _gelu(approximate: str = "none") -> Curve:
    def exact(h: Tensor) -> Tensor:
        # Beyond, it is 0, and h² may overflow.
        square = h.clamp(-40, 40).square_()
        return (square / -2).exp_().mul_(2 - square).div_(math.sqrt(2 * math.pi))

    def by_tanh(h: Tensor) -> Tensor:
        k, c = math.sqrt(2 / math.pi), 0.044715
        h = h.clamp(-40, 40)
        square = h * h
        y, slope = torch.tanh(k * h * (1 + c * square)), k * (1 + 3 * c * square)
        return (1 - y * y) * (slope + h * (3 * k * c * h - y * slope * slope))

    return Curve(
        lambda h: F.gelu(h, approximate=approximate),
        lambda u, h: aten.gelu_backward(u, h, approximate=approximate),
        exact if approximate == "none" else by_tanh,
        "gelu" if approximate == "none" else "gelu by tanh",
    )


def _logsigmoid() -> Curve:
    def bend(h: Tensor) -> Tensor:
        s = h.sigmoid()
        return s * (s - 1)

    return Curve(F.logsigmoid, lambda u, h: u * (-h).sigmoid(), bend, "logsigmoid")


def _softsign() -> Curve:
    def bend(h: Tensor) -> Tensor:
        return -2 * h.sign() / (1 + h.abs()).pow(3)

    return Curve(F.softsign, lambda u, h: u / (1 + h.abs()).square(), bend, "softsign")


def _exp() -> Curve:
    return Curve(torch.exp, lambda u, h: u * h.exp(), torch.exp, "exp")


def _square() -> Curve:
    return Curve(torch.square, lambda u, h: 2 * h * u, lambda h: torch.full_like(h, 2.0), "square")


def _sin() -> Curve:
    return Curve(torch.sin, lambda u, h: u * h.cos(), lambda h: -h.sin(), "sin")


def _cos() -> Curve:
    return Curve(torch.cos, lambda u, h: -u * h.sin(), lambda h: -h.cos(), "cos")


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
