"""Pairs for the experiments: the small generator with critics of a given depth and activation."""

from torch import nn

from gnfast.models import REGISTRY, Family, layered_critic, small

DEPTHS = (3, 6, 9)
# Name: activation and sharpness, as `gnfast.models.layered_critic` takes them.
ACTIVATIONS = {
    "ReLU": ("relu", 1.0),
    "ELU": ("elu", 1.0),
    "Softplus β=1": ("softplus", 1.0),
    "Softplus β=20": ("softplus", 20.0),
}


def layered(layers: int, activation: str = "ReLU") -> str:
    """The name in the registry of models of a pair whose critic has so many convolutions."""
    return f"small, {layers} layers, {activation}"


def _build(layers: int, activation: str):
    kind, beta = ACTIVATIONS[activation]

    def build(resolution: int, channels: int, z_dim: int, width: float) -> tuple[nn.Module, nn.Module]:
        generator, _ = small.build(resolution, channels, z_dim, width)
        # As wide as the small critic: its first layer has half of the 64 channels.
        return generator, layered_critic(resolution, channels, layers, width / 2, kind, beta)

    return Family(build)


REGISTRY.update({layered(depth): _build(depth, "ReLU") for depth in DEPTHS})
REGISTRY.update({layered(DEPTHS[0], name): _build(DEPTHS[0], name) for name in ACTIVATIONS})
