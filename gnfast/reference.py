"""The oracle: plain PyTorch double backward, written as the papers' code writes it.

Tests and benchmarks compare against this file, and the public functions fall back to it where the four passes do not
apply. Everything here is differentiable any number of times.
"""

from typing import Any

import torch
from torch import Tensor, nn


def value_and_input_grad(net: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """The critic's output and its gradient with respect to the input, by `torch.autograd.grad(create_graph=True)`.

    Args:
        net: any differentiable module.
        x: (B, ...) floating point. It is not modified, whether it requires a gradient or not.
        *args, **kwargs: passed to `net` after x.

    Returns:
        `f`, exactly as `net` returns it, and `g` of x's shape: the gradient of `f.sum()` with respect to x.
    """
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        if not (create_graph and x.requires_grad):
            x = x.detach().requires_grad_()
        f = net(x, *args, **kwargs)
        (g,) = torch.autograd.grad(f, x, torch.ones_like(f), create_graph=create_graph)
    return (f, g) if create_graph else (f.detach(), g)


def value_and_grad_norm(net: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """The critic's output and the norm of its input gradient per sample.

    Returns:
        `f` as `net` returns it, and `n` (B,) = ||grad_x f||_2 over all of a sample's entries.
    """
    f, g = value_and_input_grad(net, x, *args, **kwargs)
    return f, torch.linalg.vector_norm(g.flatten(1), dim=1)


def normalize_gradient(net: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """f / (||grad_x f|| + |f|), of f's shape (GN-GAN, Wu et al., ICCV 2021, eq. 9); 0 where both f and n are 0."""
    f, n = value_and_grad_norm(net, x, *args, **kwargs)
    n = n.reshape(-1, *[1] * (f.dim() - 1))
    total = n + f.abs()
    return f / torch.where(total == 0, 1, total)
