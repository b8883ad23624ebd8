"""Gradient penalties on a critic, by the passes: no penalty here goes through double backward.

Each returns a scalar, a mean over the batch, to be added to the critic's loss with a weight of the user's. Arguments
after the images go to the network, and the options of `gnfast.normalize_gradient` (impl, strict, rewrite, static,
memory) do what they do there; a network outside what the passes do exactly falls back with a warning.

On a normalised critic no further pass is needed:

    f_hat, norm = gnfast.normalize_gradient(net, x, return_grad_norm=True)
    penalty = gnfast.penalties.centered(norm, target=1.0)
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gnfast.engine.functional import require_batch, value_and_grad_norm
from gnfast.errors import InputError


def r1(net: nn.Module, real: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """½ E‖∇ₓf‖² at real images (Mescheder et al., ICML 2018, eq. 9, without its γ).

    Args:
        net: the critic, one logit per sample.
        real: (B, ...) real images.
        *args, **kwargs: passed to `net` after the images, and options.
    """
    return 0.5 * zero_centered(net, real, *args, **kwargs)


def zero_centered(net: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """E‖∇ₓf‖² at the images given (0-GP).

    Arguments as for `r1`.
    """
    return centered(value_and_grad_norm(net, x, *args, **kwargs)[1], target=0.0)


def one_centered(net: nn.Module, real: Tensor, fake: Tensor, *args: Any, target: float = 1.0, **kwargs: Any) -> Tensor:
    """E(‖∇ₓf‖ − k)² between real and generated images (WGAN-GP, Gulrajani et al., NeurIPS 2017, eq. 3).

    Args:
        net: the critic, one logit per sample.
        real, fake: (B, ...) images of the same shape; the penalty is taken at a random point on each line between them,
            real + u (fake − real) for u of `torch.rand`. Code that has u real + (1 − u) fake gets the same points from
            the same seed by (fake, real).
        target: k, the gradient norm that costs nothing (k_GP of Qin et al., ECCV 2020).
        *args, **kwargs: passed to `net` after the images, and options.
    """
    return centered(value_and_grad_norm(net, interpolate(real, fake), *args, **kwargs)[1], target)


def dragan(
    net: nn.Module, real: Tensor, *args: Any, strength: float = 0.5, target: float = 1.0, **kwargs: Any
) -> Tensor:
    """E(‖∇ₓf‖ − k)² around real images (DRAGAN, Kodali et al., 2017, its code).

    Args:
        net: the critic, one logit per sample.
        real: (B, ...) real images; the penalty is taken at a random point between each and the same with noise.
        strength: the noise is uniform in [0, strength · standard deviation of the batch).
        target: k, the gradient norm that costs nothing.
        *args, **kwargs: passed to `net` after the images, and options.
    """
    require_batch("real", real)
    noisy = real + strength * real.detach().std() * torch.rand_like(real)
    return centered(value_and_grad_norm(net, interpolate(real, noisy), *args, **kwargs)[1], target)


def centered(norm: Tensor, target: float = 0.0) -> Tensor:
    """E(norm − target)² over the samples, for a gradient norm (B,) that is at hand."""
    return (norm - target).square().mean()


def interpolate(real: Tensor, fake: Tensor, place: Tensor | None = None) -> Tensor:
    """A point on the line between each pair of images, of their shape.

    It carries no gradient to the images, as penalties are for the critic's weights.

    Args:
        place: (B,) in [0, 1], from the real to the generated image; drawn uniformly if None.
    """
    require_batch("real", real)
    require_batch("fake", fake)
    if real.shape != fake.shape:
        shapes = f"got shape {tuple(fake.shape)}, wanted that of real (the ones before), {tuple(real.shape)}"
        raise InputError(f"fake (the second images): {shapes}")
    place = torch.rand(len(real), dtype=real.dtype, device=real.device) if place is None else place.to(real)
    return torch.lerp(real.detach(), fake.detach().to(real.dtype), place.reshape(-1, *[1] * (real.dim() - 1)))


class Penalty(NamedTuple):
    """A penalty as data, for programs that draw places and compute norms themselves."""

    points: Callable[[Tensor, Tensor, Tensor], Tensor]
    """(real, fake, place) ↦ the images at which the norm of the critic's input gradient is taken."""
    cost: Callable[[Tensor, float], Tensor]
    """(norm, k) ↦ the penalty, a scalar."""


PENALTIES: dict[str, Penalty] = {
    "r1": Penalty(lambda real, fake, place: real, lambda norm, k: 0.5 * centered(norm)),
    "0-gp": Penalty(interpolate, lambda norm, k: centered(norm)),
    "1-gp": Penalty(interpolate, centered),
}
"""By the names of training's settings: `r1`, then E‖∇ₓf‖² (Thanh-Tung et al., ICLR 2019) and E(‖∇ₓf‖ − k)²
between real and generated images (`one_centered`)."""
