"""Functions with curvature in one Triton kernel, which takes their slopes or their second derivatives.

Imported when it is chosen, as Triton may be missing. Entries are found by their place in memory, whatever the order of
the axes. Exponentials are of negative numbers alone, so that none overflows that should not.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from gnfast.kernels.curves import plain
from gnfast.kernels.curves.plain import Curve
from gnfast.kernels.jit import acc_type
from gnfast.kernels.layout import is_dense, with_strides

BLOCK = 1024
NUM_WARPS = 4
# Sines and cosines take twice what the others do.
REGISTER_BUDGET = {"fp32": 80, "fp64": 200}
# Of these PyTorch has φ'(h) u in one kernel, which reads what is expanded without a copy.
IN_PYTORCH = ("softplus", "elu", "silu", "mish", "gelu", "gelu by tanh")
KINDS = ("sigmoid", "tanh", "logsigmoid", "softsign", "exp", "square", "sin", "cos", *IN_PYTORCH)

_ROOT_HALF = tl.constexpr(math.sqrt(0.5))
_DENSITY = tl.constexpr(1 / math.sqrt(2 * math.pi))
_RATE = tl.constexpr(math.sqrt(2 / math.pi))
_CUBE = tl.constexpr(0.044715)


@triton.jit
def _sigmoids(x):
    """1 / (1 + e⁻ˣ) and 1 minus it, both to the last digits."""
    u = tl.exp(-tl.abs(x))
    large, small = 1 / (1 + u), u / (1 + u)
    return tl.where(x < 0, small, large), tl.where(x < 0, large, small)


@triton.jit
def _tanh(x):
    """tanh x and its slope. 1 − u is u − 1 over log u times 2 |x| near 0, although u, which is e⁻²ˡˣˡ, was rounded."""
    a = tl.abs(x)
    u = tl.exp(-2 * a)
    near = (u > 0.5) & (u < 1)
    below = tl.where(near, (1 - u) / -tl.log(tl.where(near, u, 0.5)) * (2 * a), tl.where(u == 1, 2 * a, 1 - u))
    y = below / (1 + u)
    return tl.where(x < 0, -y, y), 4 * u / ((1 + u) * (1 + u))


@triton.jit
def _derivatives(x, KIND: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr, THIRD: tl.constexpr):
    """φ'(x) and φ''(x), as `plain.CURVES` has φ."""
    if KIND == "sigmoid":
        s, r = _sigmoids(x)
        slope, bend = s * r, s * r * (r - s)
    elif KIND == "tanh":
        y, slope = _tanh(x)
        bend = -2 * y * slope
    elif KIND == "softplus":
        s, r = _sigmoids(x * FIRST)
        slope = tl.where(x * FIRST > SECOND, 1.0, s)
        bend = tl.where(x * FIRST >= SECOND, 0.0, s * r * FIRST)
    elif KIND == "elu":
        below = tl.exp(tl.where(x > 0, 0.0, x) * THIRD) * (FIRST * SECOND * THIRD)
        slope, bend = tl.where(x > 0, SECOND, below), tl.where(x >= 0, 0.0, below * THIRD)
    elif KIND == "silu":
        s, r = _sigmoids(x)
        slope, bend = s * (1 + x * r), s * r * (2 + x * (r - s))
    elif KIND == "mish":
        # w = tanh softplus x, from v = e⁻ˡˣˡ.
        s, r = _sigmoids(x)
        v = tl.exp(-tl.abs(x))
        above, rest = tl.where(x < 0, v * (v + 2), 1 + 2 * v), tl.where(x < 0, 2.0, 2 * v * v)
        w = above / (above + rest)
        rising = rest / (above + rest) * (1 + w) * s
        slope, bend = w + x * rising, rising * (2 + x * (r - 2 * w * s))
    elif KIND == "gelu":
        # Beyond, the density is 0, and x² may overflow.
        near = tl.where(tl.abs(x) > 40, 40.0, x)
        density = tl.exp(near * near * -0.5) * _DENSITY
        slope, bend = 0.5 + 0.5 * tl.erf(x * _ROOT_HALF) + near * density, density * (2 - near * near)
    elif KIND == "gelu by tanh":
        near = tl.where(tl.abs(x) > 40, tl.where(x < 0, -40.0, 40.0), x)
        square = near * near
        y, falling = _tanh(near * (1 + square * _CUBE) * _RATE)
        inner = (1 + square * (3 * _CUBE)) * _RATE
        slope = 0.5 + 0.5 * y + 0.5 * near * falling * inner
        bend = falling * (inner + near * (near * (3 * _RATE * _CUBE) - y * inner * inner))
    elif KIND == "logsigmoid":
        s, r = _sigmoids(x)
        slope, bend = r, -s * r
    elif KIND == "softsign":
        a = 1 + tl.abs(x)
        slope, bend = 1 / (a * a), tl.where(x == 0, 0.0, tl.where(x < 0, 2.0, -2.0) / (a * a * a))
    elif KIND == "exp":
        slope = tl.exp(x)
        bend = slope
    elif KIND == "square":
        slope, bend = 2 * x, tl.full(x.shape, 2, x.dtype)
    elif KIND == "sin":
        slope, bend = tl.cos(x), -tl.sin(x)
    else:
        tl.static_assert(KIND == "cos")
        slope, bend = -tl.sin(x), -tl.cos(x)
    return slope, bend


@triton.jit
def _curves_kernel(
    h, t, factor, addend, out, pushed, numel,
    KIND: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr, THIRD: tl.constexpr, BENT: tl.constexpr,
    ADDED: tl.constexpr, PUSHED: tl.constexpr, WIDE: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """φ''(h) t · factor where BENT, and φ'(h) t where PUSHED; else φ'(h) · factor, plus the addend where ADDED."""
    block = tl.program_id(0)
    if WIDE:
        block = block.to(tl.int64)
    e = block * BLOCK + tl.arange(0, BLOCK)
    inside = e < numel
    slope, bend = _derivatives(tl.load(h + e, mask=inside, other=0).to(ACC), KIND, FIRST, SECOND, THIRD)
    if BENT:
        tangent = tl.load(t + e, mask=inside, other=0).to(ACC)
        if PUSHED:
            tl.store(pushed + e, (slope * tangent).to(pushed.dtype.element_ty), mask=inside)
        slope = bend * tangent
    result = slope * tl.load(factor + e, mask=inside, other=0).to(ACC)
    if ADDED:
        result += tl.load(addend + e, mask=inside, other=0).to(ACC)
    tl.store(out + e, result.to(out.dtype.element_ty), mask=inside)


def sloped(curve: Curve, u: Tensor, h: Tensor, addend: Tensor | None = None) -> Tensor:
    """`sloped`."""
    if curve.kind not in KINDS or (curve.kind in IN_PYTORCH and addend is None):
        return plain.sloped(curve, u, h, addend)
    return _launch(curve, h, None, u, addend)[0]


def bent(curve: Curve, h: Tensor, t: Tensor, cotangent: Tensor) -> Tensor:
    """`bent`."""
    return _launch(curve, h, t, cotangent)[0] if curve.kind in KINDS else plain.bent(curve, h, t, cotangent)


def both(curve: Curve, h: Tensor, t: Tensor, cotangent: Tensor) -> tuple[Tensor, Tensor]:
    """`both`."""
    if curve.kind not in KINDS:
        return plain.both(curve, h, t, cotangent)
    bend, pushed = _launch(curve, h, t, cotangent, with_pushed=True)
    return pushed, bend


def _launch(
    curve: Curve, h: Tensor, t: Tensor | None, factor: Tensor, addend: Tensor | None = None, with_pushed: bool = False
) -> tuple[Tensor, Tensor]:
    """The kernel, on tensors that lie in memory as h does, or copies that do; the result, in the addend's memory if
    there is one, and φ'(h) t if that is wanted."""
    h = h.resolve_neg()
    h = h if is_dense(h) else h.contiguous()
    given = [tensor if tensor is None else tensor.resolve_neg().expand_as(h) for tensor in (t, factor, addend)]
    given = [h if tensor is None else with_strides(tensor, h.stride()) for tensor in given]
    out, numel = torch.empty_like(h) if addend is None else given[2], h.numel()
    pushed = torch.empty_like(h) if with_pushed else out
    if numel:
        constants = dict(zip(("FIRST", "SECOND", "THIRD"), (*curve.constants, 0.0, 0.0, 0.0), strict=False))
        with torch.cuda.device_of(h):
            _curves_kernel[(triton.cdiv(numel, BLOCK),)](
                h, *given, out, pushed, numel, KIND=curve.kind, **constants, BENT=t is not None,
                ADDED=addend is not None, PUSHED=with_pushed, WIDE=numel >= 2**31 - BLOCK, ACC=acc_type(h.dtype),
                BLOCK=BLOCK, num_warps=NUM_WARPS,
            )  # fmt: skip
    return out, pushed
