"""Functions φ with curvature, entry by entry, as the passes need them (docs/algorithm.md, Six passes).

    φ'(h) u, or φ'(h) u + v     (sloped)    passes 2 and 3, or 4
    φ''(h) t δ                  (bent)      pass 3
    φ'(h) t and φ''(h) t δ      (both)      pass 3

`plain.CURVES` is the table of functions. Arithmetic is float32 for half-width tensors. These functions are building
blocks for autograd Functions and are not differentiable themselves.
"""

from torch import Tensor

from gnfast.kernels.backend import implementation
from gnfast.kernels.curves.plain import Curve


def sloped(curve: Curve, u: Tensor, h: Tensor, addend: Tensor | None = None) -> Tensor:
    """φ'(h) u, plus the addend if there is one; of h's shape and dtype.

    Args:
        curve: φ, made by an entry of `plain.CURVES`.
        u, h: of one shape and floating-point dtype.
        addend: in memory of its own, which may be overwritten.
    """
    return implementation("curves", h.device.type).sloped(curve, u, h, addend)


def bent(curve: Curve, h: Tensor, t: Tensor, cotangent: Tensor) -> Tensor:
    """φ''(h) t δ, of h's shape and dtype, in memory of its own.

    Args:
        curve: as for `sloped`.
        h, t, cotangent: h, t and δ, of one shape.
    """
    return implementation("curves", h.device.type).bent(curve, h, t, cotangent)


def both(curve: Curve, h: Tensor, t: Tensor, cotangent: Tensor) -> tuple[Tensor, Tensor]:
    """φ'(h) t and φ''(h) t δ, of which one kernel reads h and t once.

    Args:
        curve, h, t, cotangent: as for `bent`.
    """
    return implementation("curves", h.device.type).both(curve, h, t, cotangent)
