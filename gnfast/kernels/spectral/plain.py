"""Spectral normalisation in plain PyTorch: the test oracle, and what runs where nothing was compiled."""

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gnfast.kernels.layout import accumulator


def as_matrix(weight: Tensor, dim: int) -> Tensor:
    """The weight as (rows, cols): a view where its strides allow one."""
    return weight.movedim(dim, 0).flatten(1)


def iterate(weights, u, v, dims, iterations, eps):
    """`spectral_norm_iterate`."""
    vectors, sigmas = [], []
    with _without_autocast(weights[0].device.type):
        for weight, u_i, v_i, dim, count, eps_i in zip(weights, u, v, dims, iterations, eps, strict=True):
            dtype = accumulator(weight.dtype)
            matrix, left, right = as_matrix(weight, dim).to(dtype), u_i.to(dtype), v_i.to(dtype)
            for _ in range(count):
                left = _normalized(matrix @ right, eps_i)
                right = _normalized(matrix.T @ left, eps_i)
            if count:
                u_i.copy_(left)
                v_i.copy_(right)
            sigmas.append(torch.dot(left, matrix @ right))
            vectors += [left, right]
        return torch.cat(vectors), torch.stack(sigmas)


def scale(weights, sigma, coeffs):
    """`spectral_norm_scale`."""
    factors = [coeff / sigma[i] for i, coeff in enumerate(coeffs)]
    return [(w.to(factor.dtype) * factor).to(w.dtype) for w, factor in zip(weights, factors, strict=True)]


def backward(grads, weights, vectors, sigma, dims, coeffs):
    """`spectral_norm_backward`."""
    results, start = [], 0
    for i, (grad, weight, dim, coeff) in enumerate(zip(grads, weights, dims, coeffs, strict=True)):
        rows = weight.shape[dim]
        cols = weight.numel() // rows
        u, v = vectors[start : start + rows], vectors[start + rows : start + rows + cols]
        start += rows + cols
        g, w = grad.to(sigma.dtype), weight.to(sigma.dtype)
        outer = torch.outer(u, v).unflatten(1, others(weight.shape, dim)).movedim(0, dim)
        result = coeff / sigma[i] * (g - (g * w).sum() / sigma[i] * outer)
        results.append(torch.empty_like(weight).copy_(result))
    return results


def _without_autocast(device_type: str) -> contextlib.AbstractContextManager[Any]:
    if torch.amp.is_autocast_available(device_type):
        return torch.autocast(device_type, enabled=False)
    return contextlib.nullcontext()


def _normalized(x: Tensor, eps: float) -> Tensor:
    return x / x.norm().clamp_min(eps)


def others(shape: Sequence[int], dim: int) -> list[int]:
    """The sizes that make up the matrix's columns."""
    return [size for d, size in enumerate(shape) if d != dim]
