"""Spectral normalisation by the compiled libraries, and what torch.compile is told of their operators."""

import math

import torch

from gnfast.kernels.fakes import fake_of
from gnfast.kernels.layout import accumulator
from gnfast.kernels.spectral.plain import others

_operators = torch.ops.gnfast
iterate = _operators.spectral_norm_iterate.default
scale = _operators.spectral_norm_scale.default
backward = _operators.spectral_norm_backward.default


@fake_of(iterate)
def _(weights, u, v, dims, iterations, eps):
    dtype = accumulator(weights[0].dtype)
    size = sum(w.shape[dim] + math.prod(others(w.shape, dim)) for w, dim in zip(weights, dims, strict=True))
    return weights[0].new_empty((size,), dtype=dtype), weights[0].new_empty((len(weights),), dtype=dtype)


fake_of(scale)(lambda weights, *_: [torch.empty_like(w) for w in weights])
fake_of(backward)(lambda grads, weights, *_: [torch.empty_like(w) for w in weights])
