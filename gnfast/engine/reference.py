"""The oracle: plain PyTorch double backward, written as the papers' code writes it.

Tests and benchmarks compare against this file, and the public functions fall back to it where the four passes do not
apply. Everything here is differentiable any number of times.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map_only

from gnfast.engine.heads import Name
from gnfast.engine.wide_convolutions import wide_convolutions
from gnfast.errors import InputError, not_a_tensor
from gnfast.interop import surroundings


def input_grad(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """A function's value y and the gradient of `y.sum()` with respect to x, by `autograd.grad(create_graph=True)`.

    Args:
        function: differentiable, of one tensor.
        x: (B, ...) floating point. It is not modified, whether it requires a gradient or not.

    Returns:
        y, exactly as `function` returns it, and its gradient, of x's shape.
    """
    way = surroundings.transform()
    if way in ("torch.func", "torch.autograd.forward_ad"):
        y, pullback = torch.func.vjp(function, x)
        return y, pullback(torch.ones_like(y))[0]
    create_graph = torch.is_grad_enabled()
    # Tensors that are made in inference mode cannot take part in autograd.
    with torch.inference_mode(False), torch.enable_grad():
        if not (create_graph and x.requires_grad):
            # Inference tensors stay outside autograd, and a graph of make_fx has no gradients after `detach`.
            leaf = x.clone() if x.is_inference() else x.view_as(x) if way == "make_fx" else x.detach()
            x = leaf.requires_grad_()
        y = function(x)
        if not isinstance(y, Tensor):
            raise not_a_tensor(y)
        g = None
        if y.requires_grad:
            (g,) = torch.autograd.grad(y, x, torch.ones_like(y), create_graph=create_graph, allow_unused=True)
        if g is None:
            raise InputError("net: got an output without a gradient with respect to x (no_grad, detach, a constant?)")
    return (y, g) if create_graph else (y.detach(), g)


def value_and_input_grad(net: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """The critic's output and its gradient with respect to the input, as `input_grad` has them, for any module.

    Further arguments go to `net` after x. Where x itself is among them, it counts with x.
    """

    def critic(leaf: Tensor) -> Tensor:
        more, named = tree_map_only(Tensor, lambda t: leaf if t is x else t, (args, kwargs))
        # Of PyTorch's ways to attend this one has a second derivative.
        with wide_convolutions(net, leaf), sdpa_kernel(SDPBackend.MATH):
            return net(leaf, *more, **named)

    return input_grad(critic, x)


def value_and_grad_norm(net: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """`f` as `net` returns it, and `n` (B,) = ‖∇ₓf‖₂ over all of a sample's entries."""
    f, g = value_and_input_grad(net, x, *args, **kwargs)
    return f, torch.linalg.vector_norm(g.flatten(1), dim=1)


def normalize_gradient(
    net: nn.Module, x: Tensor, *args: Any, method: Name = "gn", tau: float = 1.0, eps: float = 0.1, **kwargs: Any
) -> Tensor:
    """The normalised critic, of f's shape, as each paper writes it.

    Args:
        method: "gn", "gn0", "gn1" (GN-GAN, Wu et al., ICCV 2021, eq. 11 with ζ = |f|, 0, 1), "gran" (GraN-GAN, Bhaskara
            et al., WACV 2022, eq. 20), "gran-shift" (the same with 1 / (n + ε), named after its eq. 16), "pgn"
            (PGN-GAN, Xia 2023, Algorithm 1), "pgn-table" (its Table I).
        tau, eps: GraN's.
    """
    f, g = value_and_input_grad(net, x, *args, **kwargs)
    n = (1 - g if method == "pgn" else g).flatten(1).norm(dim=1).reshape([-1, *[1] * (f.dim() - 1)][: f.dim()])
    if method == "gran":
        return f * n / (tau * (n**2 + eps))
    if method == "gran-shift":
        return f / (tau * (n + eps))
    u = 1 - f if method.startswith("pgn") else f
    added = {"gn0": torch.zeros_like(f), "gn1": torch.ones_like(f)} | dict.fromkeys(("gn", "pgn", "pgn-table"), u.abs())
    if method not in added:
        raise InputError(f"method: got {method!r}, wanted one of gran, gran-shift, {', '.join(added)}")
    total = n + added[method]
    return u / torch.where((total == 0) & (u == 0), 1, total)
