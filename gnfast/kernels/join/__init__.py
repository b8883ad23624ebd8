"""What lies between two matrix products of a Plan, in one kernel per pass (docs/algorithm.md, The passes).

    s = Σ terms + Σ biases,   y = s where s > 0, else slope · s                            (join_forward)
    δs = mask · Σ cotangents of y + Σ cotangents of s                                      (join_pullback)
    ṡ = Σ tangents + scale · Σ biases,   ẏ = mask · ṡ                                      (join_pushforward)

where mask is 1 or slope. Sums are float32 for half-width tensors, and the sign is that of the sum before it is rounded.
The bits are those of `gnfast.kernels.sign_bits`: int32 words over the physical order of s. All terms of a call have the
same shape; those whose strides are not the result's are copied first, except for a first cotangent that is the same
for all samples. One or two terms and at most two biases.

These functions are building blocks for autograd Functions and are not differentiable themselves.
"""

from collections.abc import Sequence

from torch import Tensor

from gnfast.kernels.backend import implementation
from gnfast.kernels.layout import Strides, batch_major, with_strides

MAX_TERMS = 2


def join_forward(
    terms: Sequence[Tensor], biases: Sequence[Tensor], axis: int, slope: float, keep_sum: bool, overwrite: bool
) -> tuple[Tensor, Tensor | None, Tensor]:
    """The sum, its LeakyReLU, and where it was positive.

    Args:
        terms: one or two tensors (B, ...) of one shape and floating-point dtype.
        biases: at most two tensors (C,), any floating-point dtype.
        axis: which axis of the terms the biases lie along.
        slope: the factor for entries that are not positive; 0 is ReLU.
        keep_sum: whether s is wanted.
        overwrite: the first term's memory may be used for a result.

    Returns:
        y, s (None unless wanted) in the terms' dtype, and bits (ceil(numel / 32),) int32.
    """
    first = batch_major(terms[0])
    target = first if overwrite or first is not terms[0] else None
    terms = [first, *(with_strides(t, first.stride()) for t in terms[1:])]
    return implementation("join", first.device.type).forward(terms, biases, axis, slope, keep_sum, target)


def join_pullback(
    of_y: Sequence[Tensor],
    of_sum: Sequence[Tensor],
    bits: Tensor,
    strides: Strides,
    slope: float,
    target: Tensor | None,
) -> Tensor:
    """The cotangent of s.

    Args:
        of_y, of_sum: the cotangents of y, one or two, and of s, none to two; all are added up.
        bits, strides: of the s that `join_forward` saw; slope as there.
        target: one of the cotangents, whose memory may be used for the result; None for fresh memory.
    """
    own = target is not None and target.stride() == strides
    shared = of_y[:1] if of_y[0].stride() == (0, *strides[1:]) else []
    rest, of_sum = ([with_strides(t, strides) for t in group] for group in (of_y[len(shared) :], of_sum))
    kernels = implementation("join", bits.device.type)
    return kernels.pullback([*shared, *rest], of_sum, bits, strides, slope, target if own else None)


def join_pushforward(
    tangents: Sequence[Tensor],
    biases: Sequence[Tensor],
    scale: Tensor | None,
    axis: int,
    bits: Tensor,
    strides: Strides,
    slope: float,
    keep_sum: bool,
    overwrite: bool,
) -> tuple[Tensor, Tensor | None]:
    """The tangents of y and, if wanted, of s.

    Args:
        tangents: of the terms.
        biases, axis, slope, keep_sum: as for `join_forward`.
        scale: (B,) what multiplies the biases per sample; None for 0.
        bits, strides: of the s that `join_forward` saw.
        overwrite: the first tangent's memory may be used for a result.
    """
    in_order = [with_strides(t, strides) for t in tangents]
    target = in_order[0] if overwrite or in_order[0] is not tangents[0] else None
    biases = () if scale is None else biases
    kernels = implementation("join", bits.device.type)
    return kernels.pushforward(in_order, biases, scale, axis, bits, slope, keep_sum, target)
