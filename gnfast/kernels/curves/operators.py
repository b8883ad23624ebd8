"""Functions with curvature in float32 by the compiled library, and what torch.compile is told of its operators."""

import torch
from torch import Tensor

from gnfast.kernels.curves import plain
from gnfast.kernels.curves.plain import Curve
from gnfast.kernels.fakes import fake_of

KINDS = (
    *("sigmoid", "logsigmoid", "tanh", "softplus", "elu", "silu", "mish", "gelu", "gelu by tanh"),
    *("softsign", "exp", "square"),
)
_operators = torch.ops.gnfast
_sloped, _sloped_onto = _operators.curves_sloped.default, _operators.curves_sloped_onto_.default
_bent, _both = _operators.curves_bent.default, _operators.curves_both.default


def sloped(curve: Curve, u: Tensor, h: Tensor, addend: Tensor | None = None) -> Tensor:
    """`sloped`."""
    if not _serves(curve, h):
        return plain.sloped(curve, u, h, addend)
    if addend is None:
        return _sloped(u, h, curve.kind, curve.constants)
    _sloped_onto(addend, u, h, curve.kind, curve.constants)
    return addend


def bent(curve: Curve, h: Tensor, t: Tensor, cotangent: Tensor) -> Tensor:
    """`bent`."""
    if not _serves(curve, h):
        return plain.bent(curve, h, t, cotangent)
    return _bent(h, t, cotangent, curve.kind, curve.constants)


def both(curve: Curve, h: Tensor, t: Tensor, cotangent: Tensor) -> tuple[Tensor, Tensor]:
    """`both`."""
    if not _serves(curve, h):
        return plain.both(curve, h, t, cotangent)
    return _both(h, t, cotangent, curve.kind, curve.constants)


def _serves(curve: Curve, h: Tensor) -> bool:
    return h.dtype == torch.float32 and curve.kind in KINDS


for _operator, _fake in {
    _sloped: lambda u, h, kind, constants: torch.empty_like(h),
    _sloped_onto: lambda addend, u, h, kind, constants: None,
    _bent: lambda h, t, cotangent, kind, constants: torch.empty_like(h),
    _both: lambda h, t, cotangent, kind, constants: (torch.empty_like(h), torch.empty_like(h)),
}.items():
    fake_of(_operator)(_fake)
