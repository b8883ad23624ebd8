"""Functions φ with curvature, entry by entry, as the passes need them (docs/algorithm.md, Six passes).

    φ'(h) u                     (sloped)    passes 2 and 3
    φ''(h) t δ + φ'(h) μ        (second)    pass 4

`plain.CURVES` is the table of functions. Arithmetic is float32 for half-width tensors. These functions are building
blocks for autograd Functions and are not differentiable themselves.
"""

from torch import Tensor

from gnfast.kernels.backend import implementation
from gnfast.kernels.curves.plain import Curve


def sloped(curve: Curve, u: Tensor, h: Tensor) -> Tensor:
    """φ'(h) u, of h's shape and dtype.

    Args:
        curve: φ, made by an entry of `plain.CURVES`.
        u, h: any shape, of one floating-point dtype.
    """
    return implementation("curves", h.device.type).sloped(curve, u, h)


def second(curve: Curve, h: Tensor, t: Tensor, cotangent: Tensor, adjoint: Tensor | None) -> Tensor:
    """φ''(h) t δ + φ'(h) μ, of h's shape and dtype.

    Args:
        curve: as for `sloped`.
        h, t, cotangent, adjoint: h, t, δ and μ, of one shape; μ is None for 0.
    """
    return implementation("curves", h.device.type).second(curve, h, t, cotangent, adjoint)
