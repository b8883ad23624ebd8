"""Plain convolutional critics of a given depth, for analyses and ablations."""

from collections.abc import Callable

from torch import nn

from gnfast.models import small
from gnfast.models.dcgan import Discriminator
from gnfast.models.initialise import initialise_
from gnfast.models.widths import scaled

STAGES = (64, 128, 256)

ACTIVATIONS: dict[str, Callable[[float], nn.Module]] = {
    "relu": lambda beta: nn.ReLU(),
    "leaky-relu": lambda beta: nn.LeakyReLU(0.1),
    "elu": lambda beta: nn.ELU(),
    "softplus": lambda beta: nn.Softplus(beta),
}
"""Activations by name, from a sharpness β, which only softplus uses: log(1 + exp(βx))/β, the ReLU as β grows."""


def layered_critic(
    resolution: int = 32,
    channels: int = 3,
    layers: int = 3,
    width: float = 1.0,
    activation: str = "relu",
    beta: float = 1.0,
) -> Discriminator:
    """n convolutions in three stages, each followed by the activation, and a linear layer; GN-GAN's Fig. 3 compares n.

    Every stage ends with a 4x4 stride-2 convolution that doubles its width; the others are 3x3. The stages get n/3
    convolutions each, the earlier ones one more where 3 does not divide n. Source: the critics of 3, 5 and 7 layers in
    the code of Faster GN-GAN (there with LeakyReLU 0.1), initialised from N(0, 0.02).

    Args:
        resolution: side of the images in pixels, a multiple of 8.
        channels: image channels.
        layers: n, at least 3.
        width: factor on the channel counts (rounded, at least 1); 1.0 is the code's 64 to 512.
        activation: "relu" or "leaky-relu" (slope 0.1), which gnfast computes in four passes; "elu" or "softplus",
            which have curvature and go through double backward.
        beta: sharpness of softplus, log(1 + exp(βx))/β; the others ignore it.

    Raises:
        ValueError: another value than these.
    """
    if resolution < 8 or resolution % 8:
        raise ValueError(f"resolution: got {resolution}, wanted a multiple of 8")
    if layers < len(STAGES):
        raise ValueError(f"layers: got {layers}, wanted at least {len(STAGES)}")
    if not width > 0:
        raise ValueError(f"width: got {width}, wanted a positive factor")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation: got {activation!r}, wanted one of {', '.join(ACTIVATIONS)}")
    if not beta > 0:
        raise ValueError(f"beta: got {beta}, wanted a positive number")
    convolutions = []
    last = channels
    for index, stage in enumerate(scaled(STAGES, width)):
        depth = layers // len(STAGES) + (index < layers % len(STAGES))
        for _ in range(depth - 1):
            convolutions.append((last, stage, 3, 1))
            last = stage
        convolutions.append((last, 2 * stage, 4, 2))
        last = 2 * stage
    critic = Discriminator(resolution, convolutions, lambda: ACTIVATIONS[activation](beta))
    return initialise_(critic, "normal")


LAYERED = {
    "layered-3": (3, "relu", 1.0),
    "layered-6": (6, "relu", 1.0),
    "layered-9": (9, "relu", 1.0),
    "layered-3-elu": (3, "elu", 1.0),
    "layered-3-softplus-1": (3, "softplus", 1.0),
    "layered-3-softplus-20": (3, "softplus", 20.0),
}
"""Names of pairs to a layered critic's depth, activation and β."""


def build_layered(
    layers: int, activation: str, beta: float, resolution: int, channels: int, z_dim: int, width: float
) -> tuple[nn.Module, nn.Module]:
    """The small generator, with a layered critic that is as wide as the small one; see `gnfast.models.build`."""
    generator, _ = small.build(resolution, channels, z_dim, width)
    # Its first layer has half of the 64 channels.
    return generator, layered_critic(resolution, channels, layers, width / 2, activation, beta)
