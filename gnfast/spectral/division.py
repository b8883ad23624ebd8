"""W̄ = k·W/σ of several weights at once, differentiable any number of times."""

from collections.abc import Sequence

import torch
from torch import Tensor

from gnfast.kernels.spectral import plain, spectral_norm_backward, spectral_norm_scale
from gnfast.kernels.spectral.plain import as_matrix


class Divide(torch.autograd.Function):
    """(σ, W₁, W₂, ...) ↦ (W̄₁, W̄₂, ...), with σ = uᵀWv differentiated and u, v constant."""

    @staticmethod
    def forward(
        ctx, dims: Sequence[int], coeffs: Sequence[float], vectors: Tensor, sigma: Tensor, *weights: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.dims, ctx.coeffs = dims, coeffs
        ctx.save_for_backward(vectors, sigma, *weights)
        return tuple(spectral_norm_scale(weights, sigma, coeffs))

    @staticmethod
    def backward(ctx, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        vectors, sigma, *weights = ctx.saved_tensors
        needed = zip(grads, ctx.needs_input_grad[4:], strict=True)
        used = [i for i, (grad, needs) in enumerate(needed) if needs and grad is not None]
        results: list[Tensor | None] = [None] * len(weights)
        if not used:
            return None, None, None, None, *results
        if len(used) < len(weights):
            parts = _parts(vectors, weights, ctx.dims)
            vectors = torch.cat([side for i in used for side in parts[i]])
            # Not `sigma[used]`, which would copy the list to the device and wait.
            sigma = torch.stack([sigma[i] for i in used])
        dims, coeffs = [ctx.dims[i] for i in used], [ctx.coeffs[i] for i in used]
        # An embedding may give a sparse gradient; that of σ is dense.
        grads, weights = [grads[i].to_dense() for i in used], [weights[i] for i in used]
        if torch.is_grad_enabled():
            # To be differentiated again: σ has to be a function of W.
            sigma = _sigma(weights, vectors, dims)
            used_results = plain.backward(grads, weights, vectors, sigma, dims, coeffs)
        else:
            used_results = spectral_norm_backward(grads, weights, vectors, sigma, dims, coeffs)
        for i, result in zip(used, used_results, strict=True):
            results[i] = result
        return None, None, None, None, *results


def _sigma(weights: Sequence[Tensor], vectors: Tensor, dims: Sequence[int]) -> Tensor:
    """uᵀWv for every weight, differentiable."""
    matrices = (as_matrix(weight, dim).to(vectors.dtype) for weight, dim in zip(weights, dims, strict=True))
    parts = _parts(vectors, weights, dims)
    return torch.stack([torch.dot(u, matrix @ v) for matrix, (u, v) in zip(matrices, parts, strict=True)])


def _parts(vectors: Tensor, weights: Sequence[Tensor], dims: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """u and v of every weight, from what `spectral_norm_iterate` returns."""
    rows = [weight.shape[dim] for weight, dim in zip(weights, dims, strict=True)]
    sides = vectors.split([n for weight, r in zip(weights, rows, strict=True) for n in (r, weight.numel() // r)])
    return list(zip(sides[::2], sides[1::2], strict=True))
