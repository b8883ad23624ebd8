"""Initialisation schemes by name: what the papers say, for any network."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from gnfast.spectral import LAYERS

Net = TypeVar("Net", bound=nn.Module)

SCHEMES: dict[str, Callable[[Tensor], Tensor] | None] = {
    "default": None,
    "kaiming-normal": nn.init.kaiming_normal_,
    "xavier-uniform": nn.init.xavier_uniform_,
    "normal": lambda weight: nn.init.normal_(weight, std=0.02),
    "orthogonal": nn.init.orthogonal_,
}
"""What fills a weight. The gain is √2 for kaiming-normal and 1 for the others."""


@torch.no_grad()
def initialise_(net: Net, scheme: str) -> Net:
    """Gives the weights of all convolutions, transposed convolutions, linears and embeddings new values, biases zeros.

    Batch norm and loose parameters stay as they are. Draws come from PyTorch's global random state, layer by layer in
    the order of `net.modules()`. A spectrally normalised layer gets its unnormalised weight; its singular vectors stay,
    and follow in the next training forwards.

    Args:
        net: changed in place.
        scheme: "default" (leaves everything as it is), "kaiming-normal" (PGN-GAN's paper for all its networks,
            GN-GAN's code for its ResNets), "xavier-uniform" (its BigGAN), "normal" (N(0, 0.02), its CNN), or
            "orthogonal" (the BigGAN paper; Faster GN-GAN's code from 64 pixels up).

    Returns:
        the network.

    Raises:
        ValueError: an unknown scheme.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"scheme: got {scheme!r}, wanted one of {', '.join(SCHEMES)}")
    fill = SCHEMES[scheme]
    if fill is None:
        return net
    for layer in net.modules():
        if isinstance(layer, LAYERS):
            if is_parametrized(layer, "weight"):
                # Assignment goes through the parametrization's inverse.
                held = layer.parametrizations.weight
                layer.weight = fill(torch.empty_like(held.original if held.is_tensor else held.original1))
            else:
                fill(layer.weight)
            if getattr(layer, "bias", None) is not None:
                nn.init.zeros_(layer.bias)
    return net
