"""The gradients of all biases of a step: Σ s_i δ_i over samples and positions, for every layer at once.

Not differentiable itself.
"""

from collections.abc import Sequence

from torch import Tensor

from gnfast.kernels.backend import implementation


def scaled_sums(cotangents: Sequence[Tensor | None], axes: Sequence[int], scale: Tensor) -> list[Tensor]:
    """Σ_i s_i Σ δ_i per entry of one axis, (C,) each.

    Args:
        cotangents: δ (B, ...) of one batch, at least one, any floating-point dtypes and strides; None for (B, 1) ones.
        axes: which axis of each is kept, not 0.
        scale: s (B,).

    Returns:
        Sums that were made in float32, in float64 where δ or s is; in that dtype.
    """
    return implementation("scaled_sums", scale.device.type).scaled_sums(cotangents, axes, scale)
