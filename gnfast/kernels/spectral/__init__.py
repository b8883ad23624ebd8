"""Spectral normalisation of many weights at once: the power iteration, the division by σ and its gradient.

Each weight is seen as a matrix W (rows, cols): `dim` in front, the other dimensions flattened in their order, whatever
the weight's memory format. With G = ∂L/∂W̄:

    u ← Wv / max(‖Wv‖, eps),  v ← Wᵀu / max(‖Wᵀu‖, eps),  σ = uᵀWv             (spectral_norm_iterate)
    W̄ = (k / σ) W                                                              (spectral_norm_scale)
    ∂L/∂W = (k / σ) (G − (⟨G, W⟩ / σ) u vᵀ),  u and v constant                  (spectral_norm_backward)

Order, eps and matrix are those of `torch.nn.utils.parametrizations.spectral_norm`. As v is updated last,
σ = (Wᵀu)ᵀv needs no product of its own; and Wᵀ(Wv) accumulates while the rows of Wv come out, so an iteration reads W
from memory once (docs/spectral.md). Sums are float32 for float32 and half-width weights, float64 for float64.

All weights of a call share one dtype (float32, float64, bfloat16 or float16) and device. These functions are building
blocks for autograd Functions and are not differentiable themselves.
"""

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gnfast.kernels.backend import choose
from gnfast.kernels.build_info import load


class _Implementation(NamedTuple):
    iterate: Callable[..., tuple[Tensor, Tensor]]
    scale: Callable[..., list[Tensor]]
    backward: Callable[..., list[Tensor]]


def spectral_norm_iterate(
    weights: Sequence[Tensor],
    u: Sequence[Tensor],
    v: Sequence[Tensor],
    dims: Sequence[int],
    iterations: Sequence[int],
    eps: Sequence[float],
) -> tuple[Tensor, Tensor]:
    """Power iterations on every weight, in place on u and v, and the σ that they give.

    Args:
        weights: at least 2 dimensions each, any strides.
        u, v: (rows,) and (cols,) per weight, contiguous, in the weights' dtype; overwritten where `iterations` > 0.
        dims: which dimension of each weight is the matrix's rows; not negative.
        iterations: per weight; 0 only computes σ = uᵀWv.
        eps: lower bound of the norms that divide, per weight.

    Returns:
        vectors: (Σ rows + cols,) copies of u and v as used: u of the first weight, its v, u of the second, and so on.
            Float32, or float64 for float64 weights.
        sigma: (number of weights,) of the same dtype.

    Raises:
        TypeError: a dtype that is not one of the four, or a mixture.
        ValueError: shapes, counts or devices that do not fit.
    """
    return _implementation(weights).iterate(weights, u, v, dims, iterations, eps)


def spectral_norm_scale(weights: Sequence[Tensor], sigma: Tensor, coeffs: Sequence[float]) -> list[Tensor]:
    """W̄ = (coeff / σ) W for every weight, in its shape, dtype and strides.

    Args:
        weights: as for `spectral_norm_iterate`.
        sigma: (number of weights,), as `spectral_norm_iterate` returns it.
        coeffs: k per weight.

    Raises:
        TypeError, ValueError: as `spectral_norm_iterate`.
    """
    return _implementation(weights).scale(weights, sigma, coeffs)


def spectral_norm_backward(
    grads: Sequence[Tensor],
    weights: Sequence[Tensor],
    vectors: Tensor,
    sigma: Tensor,
    dims: Sequence[int],
    coeffs: Sequence[float],
) -> list[Tensor]:
    """The gradient with respect to every weight, given that with respect to every W̄.

    Args:
        grads: ∂L/∂W̄, of the weights' shapes and dtype, any strides.
        weights, dims, coeffs: as before.
        vectors, sigma: from `spectral_norm_iterate`.

    Raises:
        TypeError, ValueError: as `spectral_norm_iterate`.
    """
    return _implementation(weights).backward(grads, weights, vectors, sigma, dims, coeffs)


# Plain PyTorch: the test oracle of the other implementations, and what runs where nothing was compiled.


def as_matrix(weight: Tensor, dim: int) -> Tensor:
    """The weight as (rows, cols): a view where its strides allow one."""
    return weight.movedim(dim, 0).flatten(1)


def spectral_norm_iterate_torch(weights, u, v, dims, iterations, eps):
    """`spectral_norm_iterate` in plain PyTorch."""
    vectors, sigmas = [], []
    with _without_autocast(weights[0].device.type):
        for weight, u_i, v_i, dim, count, eps_i in zip(weights, u, v, dims, iterations, eps, strict=True):
            dtype = _accumulator(weight.dtype)
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


def spectral_norm_scale_torch(weights, sigma, coeffs):
    """`spectral_norm_scale` in plain PyTorch."""
    factors = [coeff / sigma[i] for i, coeff in enumerate(coeffs)]
    return [(w.to(factor.dtype) * factor).to(w.dtype) for w, factor in zip(weights, factors, strict=True)]


def spectral_norm_backward_torch(grads, weights, vectors, sigma, dims, coeffs):
    """`spectral_norm_backward` in plain PyTorch."""
    results, start = [], 0
    for i, (grad, weight, dim, coeff) in enumerate(zip(grads, weights, dims, coeffs, strict=True)):
        rows = weight.shape[dim]
        cols = weight.numel() // rows
        u, v = vectors[start : start + rows], vectors[start + rows : start + rows + cols]
        start += rows + cols
        g, w = grad.to(sigma.dtype), weight.to(sigma.dtype)
        outer = torch.outer(u, v).unflatten(1, _without(weight.shape, dim)).movedim(0, dim)
        result = coeff / sigma[i] * (g - (g * w).sum() / sigma[i] * outer)
        results.append(torch.empty_like(weight).copy_(result))
    return results


def _without_autocast(device_type: str) -> contextlib.AbstractContextManager[Any]:
    if torch.amp.is_autocast_available(device_type):
        return torch.autocast(device_type, enabled=False)
    return contextlib.nullcontext()


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _normalized(x: Tensor, eps: float) -> Tensor:
    return x / x.norm().clamp_min(eps)


def _without(shape: Sequence[int], dim: int) -> list[int]:
    return [size for d, size in enumerate(shape) if d != dim]


# Registration and choice.

_TORCH = _Implementation(spectral_norm_iterate_torch, spectral_norm_scale_torch, spectral_norm_backward_torch)


def _register_fakes() -> None:
    @torch.library.register_fake("gnfast::spectral_norm_iterate")
    def _(weights, u, v, dims, iterations, eps):
        dtype = _accumulator(weights[0].dtype)
        size = sum(w.shape[dim] + math.prod(_without(w.shape, dim)) for w, dim in zip(weights, dims, strict=True))
        return weights[0].new_empty((size,), dtype=dtype), weights[0].new_empty((len(weights),), dtype=dtype)

    @torch.library.register_fake("gnfast::spectral_norm_scale")
    def _(weights, sigma, coeffs):
        return [torch.empty_like(w) for w in weights]

    @torch.library.register_fake("gnfast::spectral_norm_backward")
    def _(grads, weights, vectors, sigma, dims, coeffs):
        return [torch.empty_like(w) for w in weights]


def _select(device_type: str) -> _Implementation:
    backend = choose("spectral_norm", device_type)
    if backend == "torch":
        return _TORCH
    if backend == "triton":
        from gnfast.kernels.spectral import triton as spectral_triton

        return _Implementation(spectral_triton.iterate, spectral_triton.scale, spectral_triton.backward)
    operators = torch.ops.gnfast
    return _Implementation(
        operators.spectral_norm_iterate.default,
        operators.spectral_norm_scale.default,
        operators.spectral_norm_backward.default,
    )


def _implementation(weights: Sequence[Tensor]) -> _Implementation:
    return _in_use.get(weights[0].device.type, _TORCH)


if load("cpp"):
    _register_fakes()

# device type -> implementation; devices that are not listed use plain PyTorch. Complete before the first call, so that
# torch.compile sees a constant.
_in_use = {"cpu": _select("cpu")}
if torch.cuda.is_available():
    _in_use["cuda"] = _select("cuda")
