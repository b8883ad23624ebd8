"""The ResNet pairs of mimicry (kwotsin/mimicry, `nets/sngan`), on which GraN-GAN builds (Bhaskara et al., WACV 2022).

They are SN-GAN's with three differences. The generator upsamples bilinearly. The critic's blocks begin with a ReLU that
works in place, so that the shortcut sees ReLU(x) as well; here both branches share that ReLU. Biases start as PyTorch
draws them. mimicry's SN-GAN puts `gnfast.spectral_norm_` on the critic, GraN-GAN leaves it out.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from gnfast.models import resnet


class Block(nn.Module):
    """h = ReLU(x), then conv3-ReLU-conv3 of h plus h; `down` halves the map, a 1x1 adapts the shortcut where needed."""

    def __init__(self, in_channels: int, out_channels: int, down: bool):
        super().__init__()
        pool = [nn.AvgPool2d(2)] if down else []
        adapt = [nn.Conv2d(in_channels, out_channels, 1)] if down or in_channels != out_channels else []
        self.shortcut = nn.Sequential(*adapt, *pool)
        self.residual = nn.Sequential(
            nn.Conv2d(in_channels, in_channels, 3, 1, 1),
            nn.ReLU(),
            nn.Conv2d(in_channels, out_channels, 3, 1, 1),
            *pool,
        )

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(x)
        return self.residual(h) + self.shortcut(h)


class Discriminator(nn.Module):
    """Images to one logit each: residual blocks, ReLU, sum over space, one linear layer.

    Args:
        widths: output channels of each block.
        downs: how many blocks, from the first on, halve the map.
        channels: image channels.
    """

    def __init__(self, widths: tuple[int, ...], downs: int, channels: int = 3):
        super().__init__()
        blocks = [Block(i, o, k < downs) for k, (i, o) in enumerate(pairwise(widths), start=1)]
        first = resnet.FirstBlock(channels, widths[0])
        self.model = nn.Sequential(first, *blocks, nn.ReLU(), resnet.SumPool())
        self.linear = nn.Linear(widths[-1], 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, S, S) to (B, 1)."""
        return self.linear(self.model(x))


def build(resolution: int, channels: int, z_dim: int, width: float) -> tuple[resnet.Generator, Discriminator]:
    """mimicry's pair for 32, 48, 64 or 128 pixels, without spectral normalisation; see `gnfast.models.build`."""
    start, g_widths, d_widths, downs = resnet.scaled_layout("mimicry-resnet", resnet.SNGAN_LAYOUTS, resolution, width)
    generator = resnet.Generator(start, g_widths, channels, z_dim, upsampling="bilinear")
    for module in generator.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            # The biases, which GN-GAN's generator sets to zero.
            module.reset_parameters()
    critic = Discriminator(d_widths, downs, channels)
    resnet.xavier_(generator)
    resnet.xavier_(critic)
    return generator, critic
