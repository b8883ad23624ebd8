"""What lies between two matrix products of a Plan, in one kernel per pass (docs/algorithm.md, The passes).

    s = Σ terms + Σ biases,   y = s where s > 0, else slope · s                            (join_forward)
    δs = mask · Σ cotangents of y + Σ cotangents of s                                      (join_pullback)
    ṡ = Σ tangents + scale · Σ biases,   ẏ = mask · ṡ                                      (join_pushforward)

where mask is 1 or slope. Sums are float32 for half-width tensors, and the sign is that of the sum before it is rounded.
The bits are those of `gnfast.kernels.sign_bits`: int32 words over the physical order of s. All terms of a call have the
same shape; those whose strides are not the result's are copied first. One or two terms and at most two biases.

These functions are building blocks for autograd Functions and are not differentiable themselves.
"""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from gnfast.kernels.backend import choose
from gnfast.kernels.sign_bits import _pack, _unpack

MAX_TERMS = 2

Strides = tuple[int, ...]


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
    return _implementation(first.device.type).forward(terms, biases, axis, slope, keep_sum, target)


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
    of_y, of_sum = ([with_strides(t, strides) for t in group] for group in (of_y, of_sum))
    return _implementation(bits.device.type).pullback(of_y, of_sum, bits, slope, target if own else None)


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
    own = overwrite or tangents[0].stride() != strides
    tangents = [with_strides(t, strides) for t in tangents]
    target = tangents[0] if own else None
    biases = () if scale is None else biases
    implementation = _implementation(bits.device.type)
    return implementation.pushforward(tangents, biases, scale, axis, bits, slope, keep_sum, target)


def batch_major(t: Tensor) -> Tensor:
    """The tensor without gaps and with its samples one after the other in memory; itself where it is so already."""
    dense = torch.empty_like(t, device="meta").stride() == t.stride()
    per_sample = t.numel() // max(t.shape[0], 1)
    return t if dense and (t.shape[0] == 1 or t.stride(0) == per_sample) else t.contiguous()


def with_strides(t: Tensor, strides: Strides) -> Tensor:
    """The tensor with those strides; itself where it has them."""
    if t.stride() == strides:
        return t
    return torch.empty_strided(t.shape, strides, dtype=t.dtype, device=t.device).copy_(t)


class TorchJoin:
    """The three functions in plain PyTorch: the test oracle."""

    @staticmethod
    def forward(terms, biases, axis, slope, keep_sum, target):
        total = _sum(terms) + _bias(biases, axis, terms[0])
        y = torch.where(total > 0, total, total * slope if slope else torch.where(total.isnan(), total, 0))
        y, kept = _strided(y, terms[0]), _strided(total, terms[0]) if keep_sum else None
        return y, kept, _pack(_strided(total, terms[0], total.dtype) > 0)

    @staticmethod
    def pullback(of_y, of_sum, bits, slope, target):
        result = _masked(_sum(of_y), of_y[0], bits, slope)
        return _strided(result + _sum(of_sum) if of_sum else result, of_y[0])

    @staticmethod
    def pushforward(tangents, biases, scale, axis, bits, slope, keep_sum, target):
        total = _sum(tangents)
        if biases:
            per_sample = scale.to(total.dtype).reshape(-1, *[1] * (total.dim() - 1))
            total = total + per_sample * _bias(biases, axis, tangents[0])
        y = _strided(_masked(total, tangents[0], bits, slope), tangents[0])
        return y, _strided(total, tangents[0]) if keep_sum else None


def _sum(terms: Sequence[Tensor]) -> Tensor:
    wide = torch.float64 if terms[0].dtype == torch.float64 else torch.float32
    return functools.reduce(torch.add, [t.to(wide) for t in terms])


def _bias(biases: Sequence[Tensor], axis: int, like: Tensor) -> Tensor | int:
    behind = like.dim() - 1 - axis % like.dim()
    return _sum(biases).reshape(-1, *[1] * behind) if biases else 0


def _masked(total: Tensor, like: Tensor, bits: Tensor, slope: float) -> Tensor:
    return torch.where(_unpack(bits, like), total, total * slope if slope else 0)


def _strided(t: Tensor, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    return with_strides(t.to(dtype or like.dtype), like.stride())


def uses_fused(device_type: str) -> bool:
    """Whether Plans for that device are fused: not where every fused step would be several of PyTorch's."""
    return choose("join", device_type) != "torch"


@functools.cache
def _implementation(device_type: str):
    if choose("join", device_type) == "triton":
        from gnfast.kernels.join import triton as pointwise_triton

        return pointwise_triton
    return TorchJoin
