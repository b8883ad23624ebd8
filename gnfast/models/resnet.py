"""The ResNet pairs of GN-GAN (Wu et al., ICCV 2021; the official code) and of SN-GAN (Miyato et al., ICLR 2018).

GN-GAN's descends from SN-GAN's and has mean instead of sum pooling, Kaiming-normal initialisation, and a hidden width
that equals the output's. No activation of the critic works in place: a shortcut must see the input before the ReLU.

GN-GAN has 32, 48, 128 and 256 pixels, SN-GAN 32, 48 and (in pfnet-research/sngan_projection) 64 and 128. GN-GAN's pair
at 64 pixels is gnfast's choice: its blocks in the widths of SN-GAN's at 64.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from gnfast.models.initialise import initialise_
from gnfast.models.widths import Factors, scaled

Layout = tuple[int, tuple[int, ...], tuple[int, ...], int]
"""Side of the first map, generator widths, critic widths, and how many of the critic's blocks halve the map."""

LAYOUTS: dict[int, Layout] = {
    32: (4, (256, 256, 256, 256), (128, 128, 128, 128), 2),
    48: (6, (512, 256, 128, 64), (64, 128, 256, 512), 4),
    64: (4, (1024, 512, 256, 128, 64), (64, 128, 256, 512, 1024), 5),
    128: (4, (1024, 1024, 512, 256, 128, 64), (64, 128, 256, 512, 1024, 1024), 5),
    256: (4, (1024, 1024, 512, 512, 256, 128, 64), (64, 128, 256, 512, 512, 1024, 1024), 6),
}
SNGAN_LAYOUTS: dict[int, Layout] = {
    32: LAYOUTS[32],
    48: (6, (512, 256, 128, 64), (64, 128, 256, 512, 1024), 4),
    64: LAYOUTS[64],
    128: LAYOUTS[128],
}


class GeneratorBlock(nn.Module):
    """Doubles the map: BN-ReLU-upsample-conv3-BN-ReLU-conv3, plus upsample-conv1 of the raw input."""

    def __init__(self, in_channels: int, out_channels: int, upsampling: Literal["nearest", "bilinear"] = "nearest"):
        super().__init__()
        self.shortcut = nn.Sequential(
            nn.Upsample(scale_factor=2, mode=upsampling), nn.Conv2d(in_channels, out_channels, 1)
        )
        self.residual = nn.Sequential(
            nn.BatchNorm2d(in_channels),
            nn.ReLU(inplace=True),
            nn.Upsample(scale_factor=2, mode=upsampling),
            nn.Conv2d(in_channels, out_channels, 3, 1, 1),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(out_channels, out_channels, 3, 1, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.residual(x) + self.shortcut(x)


class Generator(nn.Module):
    """Latent vectors to images through `GeneratorBlock`s.

    Args:
        start: side of the first map in pixels.
        widths: channels of the first map, then of each block's output; each block doubles the side.
        channels: image channels.
        z_dim: length of the latent vector.
        upsampling: how a block doubles the map.
    """

    def __init__(
        self,
        start: int,
        widths: tuple[int, ...],
        channels: int,
        z_dim: int,
        upsampling: Literal["nearest", "bilinear"] = "nearest",
    ):
        super().__init__()
        self.start = start
        self.linear = nn.Linear(z_dim, widths[0] * start**2)
        self.blocks = nn.Sequential(*(GeneratorBlock(i, o, upsampling) for i, o in pairwise(widths)))
        self.output = nn.Sequential(
            nn.BatchNorm2d(widths[-1]), nn.ReLU(inplace=True), nn.Conv2d(widths[-1], channels, 3, 1, 1), nn.Tanh()
        )
        initialise_(self, "kaiming-normal")

    def forward(self, z: Tensor) -> Tensor:
        """(B, z_dim) to (B, channels, S, S) in [-1, 1], S = start · 2^blocks."""
        return self.output(self.blocks(self.linear(z).unflatten(1, (-1, self.start, self.start))))


class FirstBlock(nn.Module):
    """The critic's first block: no ReLU before the image, and the shortcut pools before its 1x1 convolution."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.shortcut = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(in_channels, out_channels, 1))
        self.residual = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, 1, 1),
            nn.ReLU(),
            nn.Conv2d(out_channels, out_channels, 3, 1, 1),
            nn.AvgPool2d(2),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.residual(x) + self.shortcut(x)


class Block(nn.Module):
    """ReLU-conv3-ReLU-conv3, plus the raw input; `down` halves the map, and a 1x1 adapts the shortcut where needed."""

    def __init__(self, in_channels: int, out_channels: int, down: bool, hidden: int):
        super().__init__()
        adapt = [nn.Conv2d(in_channels, out_channels, 1)] if down or in_channels != out_channels else []
        self.shortcut = nn.Sequential(*adapt, *_pool(down))
        self.residual = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(in_channels, hidden, 3, 1, 1),
            nn.ReLU(),
            nn.Conv2d(hidden, out_channels, 3, 1, 1),
            *_pool(down),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.residual(x) + self.shortcut(x)


class SumPool(nn.Module):
    """(B, C, H, W) to (B, C): the sum over space."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sum((2, 3))


class Discriminator(nn.Module):
    """Images to one logit each: residual blocks, ReLU, a pool over space, one linear layer.

    Args:
        widths: output channels of each block.
        downs: how many blocks, from the first on, halve the map.
        channels: image channels.
        block: makes each block but the first from its input's and output's channels and whether it halves the map.
        pool: mean or sum over space.
    """

    def __init__(
        self,
        widths: tuple[int, ...],
        downs: int,
        channels: int,
        block: Callable[[int, int, bool], nn.Module],
        pool: nn.Module,
    ):
        super().__init__()
        blocks = [block(i, o, k < downs) for k, (i, o) in enumerate(pairwise(widths), start=1)]
        self.model = nn.Sequential(FirstBlock(channels, widths[0]), *blocks, nn.ReLU(), pool)
        self.linear = nn.Linear(widths[-1], 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, S, S) to (B, 1)."""
        return self.linear(torch.flatten(self.model(x), 1))


def build(resolution: int, channels: int, z_dim: int, width: Factors) -> tuple[Generator, Discriminator]:
    """GN-GAN's pair for 32, 48, 64 (gnfast's choice), 128 or 256 pixels; see `gnfast.models.build`."""
    start, g_widths, d_widths, downs = scaled_layout("resnet", LAYOUTS, resolution, width)
    generator = Generator(start, g_widths, channels, z_dim)
    critic = Discriminator(d_widths, downs, channels, lambda i, o, down: Block(i, o, down, o), nn.AdaptiveAvgPool2d(1))
    return generator, initialise_(critic, "kaiming-normal")


def build_sngan(
    resolution: int, channels: int, z_dim: int, width: Factors, mean: bool = False
) -> tuple[Generator, Discriminator]:
    """SN-GAN's pair for 32, 48, 64 or 128 pixels, without its spectral normalisation; see `gnfast.models.build`.

    It differs from GN-GAN's in its sum over space, the blocks' hidden width, which is their input's, and the weights.

    Args:
        mean: the critic takes the mean over space, as that of Gulrajani et al., 2017 (the authors' code, 32 pixels).
    """
    name, layouts = ("gulrajani-resnet", {32: SNGAN_LAYOUTS[32]}) if mean else ("sngan-resnet", SNGAN_LAYOUTS)
    start, g_widths, d_widths, downs = scaled_layout(name, layouts, resolution, width)
    generator = Generator(start, g_widths, channels, z_dim)
    pool = nn.AdaptiveAvgPool2d(1) if mean else SumPool()
    critic = Discriminator(d_widths, downs, channels, lambda i, o, down: Block(i, o, down, i), pool)
    initialise_(critic, "kaiming-normal")
    xavier_(generator)
    xavier_(critic)
    return generator, critic


def scaled_layout(name: str, layouts: dict[int, Layout], resolution: int, width: Factors) -> Layout:
    """The layout of a resolution with the widths multiplied by factors.

    Raises:
        ValueError: a resolution that `layouts` does not have.
    """
    if resolution not in layouts:
        *others, last = map(str, layouts)
        sides = f"{', '.join(others)} or {last}" if others else last
        raise ValueError(f"resolution: {name} takes {sides}, got {resolution}")
    start, g_widths, d_widths, downs = layouts[resolution]
    return start, scaled(g_widths, width.generator), scaled(d_widths, width.critic), downs


def xavier_(net: nn.Module) -> None:
    """SN-GAN's initialisation of the weights: Glorot-uniform with gain √2 on the residual branches and 1 elsewhere."""
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear | nn.Embedding):
            nn.init.xavier_uniform_(module.weight, 2**0.5 if "residual" in name else 1)


def _pool(down: bool) -> list[nn.Module]:
    return [nn.AvgPool2d(2)] if down else []
