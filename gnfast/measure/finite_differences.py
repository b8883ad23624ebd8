"""How far the slope of a critic at a point tells its change over a distance.

Source: GraN-GAN (Bhaskara et al., WACV 2022, fig. 4).
"""

import copy
import math

import torch
from torch import Tensor, nn

from gnfast.engine import heads
from gnfast.engine.functional import normalize_gradient
from gnfast.measure.gradient_norms import evaluation, near


def finite_differences(
    net: nn.Module,
    images: Tensor,
    distances: Tensor,
    labels: Tensor | None = None,
    *,
    method: heads.Method | None = None,
    tau: float | None = None,
    eps: float | None = None,
) -> Tensor:
    """|h(x + δ v) − h(x)| / δ in float64, h the normalised critic and v its gradient's direction at x.

    Args:
        net: (B, ...) to one logit per sample; a copy of it in float64 and evaluation mode does the work.
        images: (N, ...) floating point.
        distances: (D,) δ > 0, in the images' unit (2 from black to white).
        labels: (N,) for a class-conditional critic, its second argument; None for others.
        method, tau, eps: the normaliser, as in `gnfast.normalize_gradient`; None for the plain critic.

    Returns:
        (D, N) float64 on the CPU; NaN for images at which the gradient is 0 and there is no direction.

    Raises:
        ValueError: a distance that is not positive and finite.
    """
    if not all(distance > 0 and math.isfinite(distance) for distance in distances.tolist()):
        raise ValueError(f"distances: got {distances.tolist()}, wanted positive numbers")
    net, x = copy.deepcopy(net).double(), near(net, images.detach().double())
    args = () if labels is None else (near(net, labels),)

    def value(points: Tensor) -> Tensor:
        if method is None:
            return net(points, *args).reshape(-1)
        return normalize_gradient(net, points, *args, method=method, tau=tau, eps=eps).reshape(-1)

    with evaluation(net):
        with torch.enable_grad():
            start = value(x.requires_grad_())
            (gradient,) = torch.autograd.grad(start.sum(), x)
        norm = heads.grad_norm(gradient).reshape(-1, *[1] * (x.dim() - 1))
        with torch.no_grad():
            moved = (value(x + distance * gradient / norm) for distance in distances.tolist())
            rows = [(there - start).abs() / distance for there, distance in zip(moved, distances.tolist(), strict=True)]
    return torch.stack(rows).cpu()
