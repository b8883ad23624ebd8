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

from collections.abc import Sequence

from torch import Tensor

from gnfast.kernels.backend import implementation


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
    return implementation("spectral", weights[0].device.type).iterate(weights, u, v, dims, iterations, eps)


def spectral_norm_scale(weights: Sequence[Tensor], sigma: Tensor, coeffs: Sequence[float]) -> list[Tensor]:
    """W̄ = (coeff / σ) W for every weight, in its shape, dtype and strides.

    Args:
        weights: as for `spectral_norm_iterate`.
        sigma: (number of weights,), as `spectral_norm_iterate` returns it.
        coeffs: k per weight.

    Raises:
        TypeError, ValueError: as `spectral_norm_iterate`.
    """
    return implementation("spectral", weights[0].device.type).scale(weights, sigma, coeffs)


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
    return implementation("spectral", weights[0].device.type).backward(grads, weights, vectors, sigma, dims, coeffs)
