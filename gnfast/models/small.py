"""A small CNN pair for small grey images: enough for handwritten digits, and minutes instead of days on a CPU.

Kaiming initialisation, unlike the papers' CNN: with N(0, 0.02) and few channels the input gradient starts out tiny
beside the biases that Adam soon moves, the normalised critic saturates at ±1, and hundreds of steps pass before it
recovers.
"""

from torch import nn

from gnfast.models.dcgan import Discriminator, Generator
from gnfast.models.initialise import initialise_
from gnfast.models.widths import Factors, scaled


def build(resolution: int, channels: int, z_dim: int, width: Factors) -> tuple[Generator, Discriminator]:
    """The pair; see `gnfast.models.build`."""
    if resolution < 8 or resolution % 4:
        raise ValueError(f"resolution: small takes multiples of 4 from 8 up, got {resolution}")
    (w,) = scaled((32,), width.generator)
    generator = initialise_(Generator(resolution, channels, z_dim, (w, 2 * w, 4 * w), nn.Conv2d), "kaiming-normal")
    (w,) = scaled((32,), width.critic)
    critic = Discriminator(resolution, [(channels, w, 4, 2), (w, w, 3, 1), (w, 2 * w, 4, 2), (2 * w, 4 * w, 3, 1)])
    for layer in critic.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            # The slope of its activations, LeakyReLU 0.1.
            nn.init.kaiming_normal_(layer.weight, 0.1)
            nn.init.zeros_(layer.bias)
    return generator, critic
