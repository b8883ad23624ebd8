"""How far the slope of a critic at a point tells its change over a distance.

Source: GraN-GAN (Bhaskara et al., WACV 2022, fig. 4).
"""

import copy
import math

import torch
from torch import Tensor, nn

from gnfast.engine import heads
from gnfast.engine.functional import normalize_gradient, value_and_input_grad
from gnfast.measure.gradient_norms import evaluation


def finite_differences(
    net: nn.Module,
    images: Tensor,
    distances: Tensor,
    *,
    method: heads.Method | None = None,
    tau: float | None = None,
    eps: float | None = None,
) -> Tensor:
    """|h(x + δ v) − h(x)| / δ in float64, h the normalised critic and v its gradient's direction at x.

    For a piecewise linear critic, ∇h and ∇f point the same way, so v is the direction of ∇f.

    Args:
        net: (B, ...) to one logit per sample; a copy of it in float64 and evaluation mode does the work.
        images: (N, ...) floating point on the network's device.
        distances: (D,) δ > 0, in the images' unit (2 from black to white).
        method, tau, eps: the normaliser, as in `gnfast.normalize_gradient`; None for the plain critic.

    Returns:
        (D, N) float64 on the CPU; NaN for images at which the gradient is 0 and there is no direction.

    Raises:
        ValueError: a distance that is not positive and finite.
    """
    if not all(distance > 0 and math.isfinite(distance) for distance in distances.tolist()):
        raise ValueError(f"distances: got {distances.tolist()}, wanted positive numbers")
    net, x = copy.deepcopy(net).double(), images.detach().double()

    def value(points: Tensor) -> Tensor:
        f = net(points) if method is None else normalize_gradient(net, points, method=method, tau=tau, eps=eps)
        return f.detach().reshape(-1)

    with torch.no_grad(), evaluation(net):
        _, gradient = value_and_input_grad(net, x)
        norm = heads.grad_norm(gradient).reshape(-1, *[1] * (x.dim() - 1))
        direction, start = gradient / norm, value(x)
        rows = [(value(x + distance * direction) - start).abs() / distance for distance in distances.tolist()]
    return torch.stack(rows).cpu()
