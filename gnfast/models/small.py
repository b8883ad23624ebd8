"""A small CNN pair for small grey images: enough for handwritten digits, and minutes instead of days on a CPU.

Kaiming initialisation, unlike the papers' CNN: with N(0, 0.02) and few channels the input gradient starts out tiny
beside the biases that Adam soon moves, the normalised critic saturates at ±1, and hundreds of steps pass before it
recovers.
"""

import torch
from torch import Tensor, nn

WIDTH = 32
SLOPE = 0.1


class Generator(nn.Module):
    """Latent vectors to images: a linear layer and two 4x4 stride-2 deconvolutions, smoothed by a 3x3 convolution.

    Args:
        resolution: side of the images in pixels, a multiple of 4.
        channels: image channels.
        z_dim: length of the latent vector.
        width: channels at the full resolution; twice and four times as many at a half and a quarter.
    """

    def __init__(self, resolution: int, channels: int = 1, z_dim: int = 64, width: int = WIDTH):
        super().__init__()
        self.start = resolution // 4
        self.linear = nn.Linear(z_dim, 4 * width * self.start**2)
        self.main = nn.Sequential(
            nn.BatchNorm2d(4 * width),
            nn.ReLU(inplace=True),
            nn.ConvTranspose2d(4 * width, 2 * width, 4, 2, 1),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(inplace=True),
            nn.ConvTranspose2d(2 * width, width, 4, 2, 1),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, channels, 3, 1, 1),
            nn.Tanh(),
        )
        _initialize(self, slope=0)

    def forward(self, z: Tensor) -> Tensor:
        """(B, z_dim) to (B, channels, resolution, resolution) in [-1, 1]."""
        return self.main(self.linear(z).unflatten(1, (-1, self.start, self.start)))


class Discriminator(nn.Module):
    """Images to one logit each: 4x4 stride-2 and 3x3 convolutions in turn, LeakyReLU 0.1, one linear layer.

    Args:
        resolution: side of the images in pixels, a multiple of 4.
        channels: image channels.
        width: channels at half the resolution; twice and four times as many at a quarter.
    """

    def __init__(self, resolution: int, channels: int = 1, width: int = WIDTH):
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(channels, width, 4, 2, 1),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(width, width, 3, 1, 1),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(width, 2 * width, 4, 2, 1),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(2 * width, 4 * width, 3, 1, 1),
            nn.LeakyReLU(SLOPE),
        )
        self.linear = nn.Linear(4 * width * (resolution // 4) ** 2, 1)
        _initialize(self, slope=SLOPE)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, resolution, resolution) to (B, 1)."""
        return self.linear(torch.flatten(self.main(x), 1))


def build(resolution: int, channels: int, z_dim: int, width: float) -> tuple[Generator, Discriminator]:
    """The pair; see `gnfast.models.build`."""
    if resolution < 8 or resolution % 4:
        raise ValueError(f"resolution: small takes multiples of 4 from 8 up, got {resolution}")
    w = max(1, round(WIDTH * width))
    return Generator(resolution, channels, z_dim, w), Discriminator(resolution, channels, w)


def _initialize(net: nn.Module, slope: float) -> None:
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, slope)
            nn.init.zeros_(module.bias)
