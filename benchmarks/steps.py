"""The steps that the benchmarks compare: critic and generator steps of a GAN, and the critics that they train."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import gnfast
from gnfast import models, penalties, reference

CRITICS = {"CNN 32": ("dcgan", 32), "ResNet 32": ("resnet", 32), "CNN 48": ("dcgan", 48), "ResNet 48": ("resnet", 48)}

Normalize = Callable[..., Tensor]
Penalty = Callable[..., Tensor]

# name: a penalty of a critic, real and fake images, and options
PENALTIES: dict[str, Penalty] = {
    "R1": lambda net, real, fake, **options: penalties.r1(net, real, **options),
    "WGAN-GP": lambda net, real, fake, **options: penalties.one_centered(net, real, fake, **options),
    "0-GP": lambda net, real, fake, **options: penalties.zero_centered(net, real, **options),
    "DRAGAN": lambda net, real, fake, **options: penalties.dragan(net, real, **options),
}


def four_passes(net: nn.Module, x: Tensor, **options: Any) -> Tensor:
    """What gnfast does; strict, so that no fallback is timed in its name."""
    return gnfast.normalize_gradient(net, x, strict=True, **options)


def without_rewrites(net: nn.Module, x: Tensor, **options: Any) -> Tensor:
    """The four passes over the operations as the network states them."""
    return gnfast.normalize_gradient(net, x, strict=True, rewrite=False, **options)


double_backward: Normalize = reference.normalize_gradient


def plain(net: nn.Module, x: Tensor) -> Tensor:
    """A critic without normalisation: what an ordinary GAN pays."""
    return net(x)


def make_critic(name: str, dtype: torch.dtype, layout: torch.memory_format, device: str = "cpu") -> nn.Module:
    """A freshly initialised shipped critic."""
    family, resolution = CRITICS[name]
    torch.manual_seed(0)
    _, critic = models.build(family, resolution=resolution)
    return critic.to(device=device, dtype=dtype, memory_format=layout)


def make_images(name: str, batch: int, dtype: torch.dtype, layout: torch.memory_format, device: str = "cpu") -> Tensor:
    """Random images in [-1, 1]."""
    resolution = CRITICS[name][1]
    images = torch.rand(batch, 3, resolution, resolution, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return images.to(device=device, dtype=dtype, memory_format=layout)


def critic_step(normalize: Normalize, net: nn.Module, x: Tensor) -> Tensor:
    """Hinge loss on one batch, half real and half fake, and its gradient with respect to the weights; returns f̂."""
    net.requires_grad_(True)
    net.zero_grad(set_to_none=True)
    f_hat = normalize(net, x.detach())
    real, fake = f_hat.chunk(2)
    ((1 - real).relu().mean() + (1 + fake).relu().mean()).backward()
    return f_hat.detach()


def penalty_step(penalty: Penalty, net: nn.Module, real: Tensor, fake: Tensor, **options: Any) -> list[Tensor]:
    """A gradient penalty and its gradient with respect to the weights."""
    net.requires_grad_(True)
    # Penalties draw the points at which they are taken.
    torch.manual_seed(0)
    value = penalty(net, real, fake, **options)
    grads = torch.autograd.grad(value, list(net.parameters()), allow_unused=True, materialize_grads=True)
    return [value.detach(), *grads]


def generator_step(normalize: Normalize, net: nn.Module, x: Tensor) -> Tensor:
    """The critic's part of a generator step: -mean(f̂) and its gradient with respect to x, which it returns."""
    net.requires_grad_(False)
    x = x.detach().requires_grad_()
    (-normalize(net, x).mean()).backward()
    return x.grad
