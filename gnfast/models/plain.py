"""Plain convolutional pairs of a given depth, for analyses and ablations."""

from torch import nn

from gnfast.models.dcgan import Discriminator, Generator
from gnfast.models.initialise import initialise_
from gnfast.models.variants import ACTIVATIONS
from gnfast.models.widths import Factors, scaled

STAGES = (64, 128, 256)
LAYERED = {f"layered-{layers}": layers for layers in range(3, 10)}
"""Names of pairs to their number of convolutions in each network."""


def layered_critic(
    resolution: int = 32, channels: int = 3, layers: int = 3, width: float = 1.0, activation: str = "relu"
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
        activation: a name of `ACTIVATIONS`: "relu" or "leaky-relu" (slope 0.1), which gnfast computes in four passes;
            "elu", "softplus" or "softplus-20" (β = 20), which have curvature and take six passes.

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
    convolutions = []
    last = channels
    for stage, depth in zip(scaled(STAGES, width), _depths(layers), strict=True):
        for _ in range(depth - 1):
            convolutions.append((last, stage, 3, 1))
            last = stage
        convolutions.append((last, 2 * stage, 4, 2))
        last = 2 * stage
    return initialise_(Discriminator(resolution, convolutions, ACTIVATIONS[activation]), "normal")


def build_layered(
    layers: int, resolution: int, channels: int, z_dim: int, width: Factors
) -> tuple[Generator, Discriminator]:
    """A generator and a critic of n convolutions each, as wide as the small pair; see `gnfast.models.build`.

    GN-GAN's Fig. 3 has such pairs; the paper does not state their layers. The generator is the small one, which has
    three convolutions, with the others as 3x3 in three stages, the later ones one more where 3 does not divide n.
    """
    if resolution < 8 or resolution % 8:
        raise ValueError(f"resolution: layered-{layers} takes multiples of 8, got {resolution}")
    (w,) = scaled((STAGES[0] // 2,), width.generator)
    extra = [depth - 1 for depth in reversed(_depths(layers))]
    generator = Generator(resolution, channels, z_dim, (w, 2 * w, 4 * w), nn.Conv2d, extra)
    initialise_(generator, "kaiming-normal")
    # The first layer of the small critic has half of the 64 channels.
    return generator, layered_critic(resolution, channels, layers, width.critic / 2)


def _depths(layers: int) -> list[int]:
    """How many of a critic's convolutions each stage has."""
    return [layers // len(STAGES) + (index < layers % len(STAGES)) for index in range(len(STAGES))]
