"""Spectral normalisation of all layers at once, by itself: forward and backward, against PyTorch's parametrization.

A step reads every layer's weight in training mode (one power iteration each) and takes all gradients back to the
parameters.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm as torch_spectral_norm

import gnfast
from gnfast.bench.critic_steps import Result
from gnfast.bench.critics import shipped
from gnfast.bench.gate import error_of

PYTORCH, LAYER, MODEL = "PyTorch", "gnfast, per layer", "gnfast, model"


class Weights(nn.Module):
    """A model whose forward reads the weight of each of its layers, and does nothing else."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self) -> list[Tensor]:
        return [layer.weight for layer in self.layers]


def layers_of(net: nn.Module) -> list[nn.Module]:
    """The convolutions and linear layers of a network."""
    return [layer for layer in net.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]


NETWORKS: dict[str, Callable[[], list[nn.Module]]] = {
    "SN-GAN CNN": lambda: layers_of(shipped("CNN 32").critic(torch.float32, torch.contiguous_format)),
    "ladder 64-1024": lambda: [nn.Conv2d(c, 2 * c, 3) for c in (64, 128, 256, 512)],
    "ladder 8-16": lambda: [nn.Conv2d(8, 16, 3)],
}
"""Layers that are measured by themselves; the last to see that all works."""


def make(
    layers: list[nn.Module], layout: torch.memory_format, dtype: torch.dtype, device: torch.device | str
) -> tuple[dict[str, Weights], list[Tensor]]:
    """The same layers normalised in each way, and a cotangent for each weight."""
    plain = Weights(layers).to(device=device, dtype=dtype, memory_format=layout)
    ways = {way: copy.deepcopy(plain) for way in (PYTORCH, LAYER, MODEL)}
    for way, normalize in ((PYTORCH, torch_spectral_norm), (LAYER, gnfast.spectral_norm)):
        for layer in ways[way].layers:
            normalize(layer)
    gnfast.spectral_norm_(ways[MODEL])
    for net in ways.values():
        net.load_state_dict(ways[PYTORCH].state_dict())
    return ways, [torch.randn_like(layer.weight) for layer in plain.layers]


def step(net: Weights, directions: list[Tensor]) -> Result:
    """Forward and backward of the normalisation alone."""
    weights = net()
    parameters = [layer.parametrizations.weight.original for layer in net.layers]
    gradients = torch.autograd.grad(weights, parameters, directions)
    return Result(None, [*(weight.detach() for weight in weights), *gradients])


def disagreement(ways: dict[str, Weights], directions: list[Tensor]) -> str | None:
    """Which way gives other weights or gradients than PyTorch's, if one does."""
    results = {way: step(copy.deepcopy(net), directions) for way, net in ways.items()}
    for way, result in results.items():
        error = error_of(result, results[PYTORCH]).gradients
        if not error < 100 * torch.finfo(directions[0].dtype).eps:
            return f"{way} differs from PyTorch by {error:.1e}"
    return None
