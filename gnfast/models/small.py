"""A small CNN pair for small grey images: enough for handwritten digits, and minutes instead of days on a CPU.

Kaiming initialisation, unlike the papers' CNN: with N(0, 0.02) and few channels the input gradient starts out tiny
beside the biases that Adam soon moves, the normalised critic saturates at ±1, and hundreds of steps pass before it
recovers.
"""

from torch import nn

from gnfast.models.dcgan import Discriminator, Generator
from gnfast.models.initialise import initialise_
from gnfast.models.widths import scaled

SLOPE = 0.1


def build(resolution: int, channels: int, z_dim: int, width: float) -> tuple[Generator, Discriminator]:
    """The pair; see `gnfast.models.build`. The critic has 4x4 stride-2 and 3x3 convolutions in turn."""
    if resolution < 8 or resolution % 4:
        raise ValueError(f"resolution: small takes multiples of 4 from 8 up, got {resolution}")
    (narrow,) = scaled((32,), width)
    widths = (narrow, 2 * narrow, 4 * narrow)
    generator = Generator(resolution, channels, z_dim, widths, last=nn.Conv2d)
    initialise_(generator, "kaiming-normal")
    layers = (
        nn.Conv2d(channels, widths[0], 4, 2, 1),
        nn.LeakyReLU(SLOPE),
        nn.Conv2d(widths[0], widths[0], 3, 1, 1),
        nn.LeakyReLU(SLOPE),
        nn.Conv2d(widths[0], widths[1], 4, 2, 1),
        nn.LeakyReLU(SLOPE),
        nn.Conv2d(widths[1], widths[2], 3, 1, 1),
        nn.LeakyReLU(SLOPE),
    )
    critic = Discriminator(layers, widths[-1] * (resolution // 4) ** 2)
    for layer in critic.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, SLOPE)
            nn.init.zeros_(layer.bias)
    return generator, critic
