"""The steps of a GAN that are compared, and the ways to a normalised critic in them.

Each step returns what it computed, so that it can be checked before it is timed.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import gnfast
from gnfast.engine import penalties, reference
from gnfast.losses import LOSSES

Normalize = Callable[..., Tensor]
Penalty = Callable[..., Tensor]


def four_passes(net: nn.Module, x: Tensor, **options: Any) -> Tensor:
    """What gnfast does; strict, so that no fallback is timed in its name."""
    return gnfast.normalize_gradient(net, x, strict=True, **options)


def without_rewrites(net: nn.Module, x: Tensor, **options: Any) -> Tensor:
    """The four passes over the operations as the network states them."""
    return four_passes(net, x, rewrite=False, **options)


def static(net: nn.Module, x: Tensor, **options: Any) -> Tensor:
    """The four passes from a recording that is kept."""
    return four_passes(net, x, static=True, **options)


OWN_WAYS = (four_passes, without_rewrites, static)
"""Those that end in gnfast's own loss; all others end in plain PyTorch's."""

double_backward: Normalize = reference.normalize_gradient
"""What the papers' code does."""


def plain(net: nn.Module, x: Tensor) -> Tensor:
    """A critic without normalisation: what an ordinary GAN pays."""
    return net(x)


WAYS: dict[str, Normalize] = {
    "four passes": four_passes,
    "without rewrites": without_rewrites,
    "double backward": double_backward,
    "no normalisation": plain,
}

# name: a penalty of a critic, real and fake images, and options
PENALTIES: dict[str, Penalty] = {
    "R1": lambda net, real, fake, **options: penalties.r1(net, real, **options),
    "WGAN-GP": lambda net, real, fake, **options: penalties.one_centered(net, real, fake, **options),
    "0-GP": lambda net, real, fake, **options: penalties.zero_centered(net, real, **options),
    "DRAGAN": lambda net, real, fake, **options: penalties.dragan(net, real, **options),
}


@dataclass(frozen=True)
class Result:
    """What a step computed.

    Attributes:
        values: (B, ...) per sample: f̂, or the gradient with respect to the images; one row for a scalar, or nothing.
        gradients: whatever else it computed, the gradients with respect to the weights above all.
    """

    values: Tensor | None
    gradients: list[Tensor] = field(default_factory=list)


def hinge(f_hat: Tensor) -> Tensor:
    """The critic's hinge loss on a batch that is half real and half fake."""
    real, fake = f_hat.chunk(2)
    return (1 - real).relu().mean() + (1 + fake).relu().mean()


def generator_loss(f_hat: Tensor) -> Tensor:
    """The generator's hinge loss."""
    return -f_hat.mean()


def critic_step(normalize: Normalize, net: nn.Module, x: Tensor) -> Result:
    """Hinge loss on one batch, half real and half fake: f̂ and the loss's gradient with respect to the weights."""
    net.requires_grad_(True)
    f_hat = normalize(net, x.detach())
    fused = normalize in OWN_WAYS
    loss = LOSSES["hinge"].critic_terms(f_hat, (len(f_hat) + 1) // 2) if fused else hinge(f_hat)
    return Result(f_hat.detach(), _weight_gradients(loss, net))


def generator_step(normalize: Normalize, net: nn.Module, x: Tensor) -> Result:
    """The critic's part of a generator step: the gradient of -mean(f̂) with respect to x, with frozen weights."""
    net.requires_grad_(False)
    x = x.detach().requires_grad_()
    loss = LOSSES["hinge"].generator if normalize in OWN_WAYS else generator_loss
    (grad,) = torch.autograd.grad(loss(normalize(net, x)), x)
    return Result(grad)


def rescaled_generator_step(net: nn.Module, x: Tensor) -> Result:
    """What `generator_step` does for GN, by one forward and one backward of plain PyTorch.

    The way of Faster-GNGAN's code (the follow-up of Wu et al.): the input gradient, times L′(f̂) · n / (n + |f|)².
    """
    net.requires_grad_(False)
    x = x.detach().requires_grad_()
    f = net(x)
    (g,) = torch.autograd.grad(f.sum(), x)
    f, n = f.detach().reshape(-1), torch.linalg.vector_norm(g.flatten(1), dim=1)
    rate = -n / (n + f.abs()).square() / len(f)
    return Result(g * rate.reshape(-1, *[1] * (g.dim() - 1)))


def penalty_step(penalty: Penalty, net: nn.Module, x: Tensor, seeds: bool = True, **options: Any) -> Result:
    """A gradient penalty on a batch, half real and half fake, and its gradient with respect to the weights.

    Penalties draw the points at which they are taken, the same ones every time if the step `seeds`.
    """
    net.requires_grad_(True)
    real, fake = x.detach().chunk(2)
    if seeds:
        torch.manual_seed(0)
    value = penalty(net, real, fake, **options)
    return Result(value.detach().reshape(1, 1), _weight_gradients(value, net))


def _weight_gradients(loss: Tensor, net: nn.Module) -> list[Tensor]:
    """Of a loss, or of the sum of its terms."""
    # Not `.backward()`: gradients that nothing accumulates can be captured in a CUDA graph on any stream.
    options = {"allow_unused": True, "materialize_grads": True}
    return list(torch.autograd.grad(loss, list(net.parameters()), torch.ones_like(loss), **options))
