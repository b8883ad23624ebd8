"""Joins in plain PyTorch: the test oracle, and what runs where there are no kernels."""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from gnfast.kernels.layout import accumulator, with_strides
from gnfast.kernels.sign_bits.plain import from_words, to_words

FUSES = False
"""Whether a join is one kernel. Where it is not, Plans are left as they are: it would only be several of PyTorch's."""


def forward(terms, biases, axis, slope, keep_sum, target):
    """`join_forward`, of terms that have the result's strides."""
    total = _sum(terms) + _bias(biases, axis, terms[0])
    y = torch.where(total > 0, total, total * slope if slope else torch.where(total.isnan(), total, 0))
    y, kept = _strided(y, terms[0]), _strided(total, terms[0]) if keep_sum else None
    return y, kept, to_words(_strided(total, terms[0], total.dtype) > 0)


def pullback(of_y, of_sum, bits, strides, slope, target):
    """`join_pullback`, of cotangents that have those strides; the first may be one sample's, expanded."""
    like = with_strides(of_y[0], strides)
    result = _masked(_sum(of_y), like, bits, slope)
    return _strided(result + _sum(of_sum) if of_sum else result, like)


def pushforward(tangents, biases, scale, axis, bits, slope, keep_sum, target):
    """`join_pushforward`."""
    total = _sum(tangents)
    if biases:
        per_sample = scale.to(total.dtype).reshape(-1, *[1] * (total.dim() - 1))
        total = total + per_sample * _bias(biases, axis, tangents[0])
    y = _strided(_masked(total, tangents[0], bits, slope), tangents[0])
    return y, _strided(total, tangents[0]) if keep_sum else None


def _sum(terms: Sequence[Tensor]) -> Tensor:
    return functools.reduce(torch.add, [t.to(accumulator(terms[0].dtype)) for t in terms])


def _bias(biases: Sequence[Tensor], axis: int, like: Tensor) -> Tensor | int:
    axes_after = like.dim() - 1 - axis % like.dim()
    return _sum(biases).reshape(-1, *[1] * axes_after) if biases else 0


def _masked(total: Tensor, like: Tensor, bits: Tensor, slope: float) -> Tensor:
    return torch.where(from_words(bits, like), total, total * slope if slope else 0)


def _strided(t: Tensor, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    return with_strides(t.to(dtype or like.dtype), like.stride())
