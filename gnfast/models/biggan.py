"""The class-conditional BigGAN pairs of GN-GAN's code (32 pixels) and of Faster GN-GAN's (32, 64 and 128).

The generator has class-conditional batch norm and spectral normalisation (gnfast's own, ε = 1e-6), the critic a
projection of the label and no normalisation. The two codes differ in one point at 32 pixels: GN-GAN's normalises every
convolution of the generator, Faster GN-GAN's only its first and last layer. At 64 and 128 pixels Faster GN-GAN's has
attention in both networks, and conditions each block of the generator on a part of the latent vector as well.
Sources: Wu et al., ICCV 2021, and the official code of both; Brock et al., ICLR 2019.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gnfast.models import resnet
from gnfast.models.initialise import initialise_
from gnfast.models.widths import Factors, scaled
from gnfast.spectral import spectral_norm_

START = 4
SHARED = 128


@dataclass(frozen=True)
class Layout:
    """The pair of one resolution.

    Attributes:
        generator: channels of the first map, then of each block's output; each block doubles the side.
        critic: output channels of each block.
        downs: how many of the critic's blocks, from the first on, halve the map.
        attention: the generator's block (counted from 1) after which it has attention; the critic has it after its
            first. None: neither has any, and labels go straight to the batch norms, without a shared embedding.
    """

    generator: tuple[int, ...]
    critic: tuple[int, ...]
    downs: int
    attention: int | None = None


LAYOUTS: dict[int, Layout] = {
    32: Layout((256, 256, 256, 256), (256, 256, 256, 256), 2),
    64: Layout((1024, 512, 256, 128, 64), (64, 128, 256, 512, 1024), 4, attention=4),
    128: Layout((1024, 1024, 512, 256, 128, 64), (64, 128, 256, 512, 1024, 1024), 5, attention=4),
}


class ConditionalBatchNorm(nn.Module):
    """Batch norm without affine parameters, times 1 + gain(c), plus bias(c).

    Args:
        channels: of the map.
        condition: makes the maps from the condition to `channels` numbers, gain and bias.
    """

    def __init__(self, channels: int, condition: Callable[[int], nn.Module]):
        super().__init__()
        self.gain = condition(channels)
        self.bias = condition(channels)
        self.norm = nn.BatchNorm2d(channels, affine=False)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """x (B, channels, H, W); c: labels (B,) or conditions (B, length)."""
        return self.norm(x) * (1 + self.gain(c)[..., None, None]) + self.bias(c)[..., None, None]


class Attention(nn.Module):
    """x + γ·o(v·softmax(qᵀk)), with keys and values max-pooled by 2; γ is 0 at first.

    Source: Zhang et al., Self-Attention GAN, 2019, in the form of BigGAN's code.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.q = nn.Conv2d(channels, max(1, channels // 8), 1, bias=False)
        self.k = nn.Conv2d(channels, max(1, channels // 8), 1, bias=False)
        self.v = nn.Conv2d(channels, max(1, channels // 2), 1, bias=False)
        self.o = nn.Conv2d(max(1, channels // 2), channels, 1, bias=False)
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x).flatten(2)
        k, v = (F.max_pool2d(part(x), 2).flatten(2) for part in (self.k, self.v))
        weights = torch.softmax(q.transpose(1, 2) @ k, -1)
        return x + self.gamma * self.o((v @ weights.transpose(1, 2)).unflatten(2, x.shape[2:]))


class GeneratorBlock(nn.Module):
    """Doubles the map: CBN-ReLU-upsample-conv3-CBN-ReLU-conv3, plus upsample-conv1 of the raw input."""

    def __init__(self, in_channels: int, out_channels: int, condition: Callable[[int], nn.Module]):
        super().__init__()
        self.norm1 = ConditionalBatchNorm(in_channels, condition)
        self.residual1 = nn.Sequential(
            nn.ReLU(inplace=True), nn.Upsample(scale_factor=2), nn.Conv2d(in_channels, out_channels, 3, 1, 1)
        )
        self.norm2 = ConditionalBatchNorm(out_channels, condition)
        self.residual2 = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(out_channels, out_channels, 3, 1, 1))
        self.shortcut = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(in_channels, out_channels, 1))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        h = self.residual1(self.norm1(x, c))
        return self.residual2(self.norm2(h, c)) + self.shortcut(x)


class Generator(nn.Module):
    """Latent vectors and labels to images.

    Args:
        layout: the widths, and where attention is.
        classes: how many labels there are.
        channels: image channels.
        z_dim: length of the latent vector. With attention it is cut into equal parts, one for the first map and one for
            each block, and what remains at its end is not used.
        normalize_blocks: spectral normalisation of the blocks' convolutions too, not of the first and last layer, the
            attention and the linear maps of the batch norms alone.

    Raises:
        ValueError: `z_dim` is too short for the parts.
    """

    def __init__(self, layout: Layout, classes: int, channels: int, z_dim: int, normalize_blocks: bool):
        super().__init__()
        widths = layout.generator
        shared = layout.attention is not None
        self.part = z_dim // len(widths) if shared else z_dim
        if self.part < 1:
            raise ValueError(f"z_dim: got {z_dim}, wanted at least {len(widths)}, one for each of the parts")
        self.shared = nn.Embedding(classes, SHARED) if shared else None
        self.linear = nn.Linear(self.part, widths[0] * START**2)

        def condition(width: int) -> nn.Module:
            return nn.Linear(SHARED + self.part, width, bias=False) if shared else nn.Embedding(classes, width)

        self.blocks = nn.ModuleList(GeneratorBlock(i, o, condition) for i, o in pairwise(widths))
        self.attended = layout.attention
        self.attention = Attention(widths[layout.attention]) if shared else None
        self.output = nn.Sequential(
            nn.BatchNorm2d(widths[-1]), nn.ReLU(inplace=True), nn.Conv2d(widths[-1], channels, 3, 1, 1), nn.Tanh()
        )
        initialise_(self, "orthogonal" if shared else "xavier-uniform")

        def normalized(name: str, layer: nn.Module) -> bool:
            plain = isinstance(layer, nn.Conv2d) and name.startswith("blocks.") and not normalize_blocks
            return not isinstance(layer, nn.Embedding) and not plain

        spectral_norm_(self, eps=1e-6, filter=normalized)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        """z (B, z_dim) and int64 labels y (B,) to (B, channels, S, S) in [-1, 1], S = 4 · 2^blocks."""
        if self.shared is None:
            first, conditions = z, [y] * len(self.blocks)
        else:
            first, *parts = z.split(self.part, 1)
            embedded = self.shared(y)
            conditions = [torch.cat([embedded, part], 1) for part in parts[: len(self.blocks)]]
        h = self.linear(first).unflatten(1, (-1, START, START))
        for count, (block, c) in enumerate(zip(self.blocks, conditions, strict=True), start=1):
            h = block(h, c)
            if count == self.attended:
                h = self.attention(h)
        return self.output(h)


class Discriminator(nn.Module):
    """Images and labels to one logit each: the ResNet critic's blocks, sum over space, linear(h) + <embedding(y), h>.

    Without attention it is exact in four passes; with it in six, below the attention.

    Args:
        layout: the widths, and whether there is attention.
        classes: how many labels there are.
        channels: image channels.
    """

    def __init__(self, layout: Layout, classes: int, channels: int):
        super().__init__()
        widths = layout.critic
        blocks = [resnet.Block(i, o, k < layout.downs, o) for k, (i, o) in enumerate(pairwise(widths), start=1)]
        attention = [] if layout.attention is None else [Attention(widths[0])]
        first = resnet.FirstBlock(channels, widths[0])
        self.model = nn.Sequential(first, *attention, *blocks, nn.ReLU(), resnet.SumPool())
        self.linear = nn.Linear(widths[-1], 1)
        self.embedding = nn.Embedding(classes, widths[-1])
        initialise_(self, "orthogonal" if attention else "xavier-uniform")
        for layer in attention:
            for conv in layer.children():
                # The code leaves the critic's attention as PyTorch draws it.
                conv.reset_parameters()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """x (B, channels, S, S) and int64 labels y (B,) to (B, 1)."""
        h = self.model(x)
        return self.linear(h) + (self.embedding(y) * h).sum(1, keepdim=True)


def build(
    resolution: int, channels: int, z_dim: int, width: Factors, classes: int, faster: bool
) -> tuple[Generator, Discriminator]:
    """The pair of GN-GAN's code, 32 pixels, or of Faster GN-GAN's, 32, 64 or 128; see `gnfast.models.build`."""
    name, resolutions = ("biggan-faster", tuple(LAYOUTS)) if faster else ("biggan", (32,))
    if resolution not in resolutions:
        raise ValueError(f"resolution: {name} takes {' or '.join(map(str, resolutions))}, got {resolution}")
    published = LAYOUTS[resolution]
    g_widths, d_widths = scaled(published.generator, width.generator), scaled(published.critic, width.critic)
    layout = replace(published, generator=g_widths, critic=d_widths)
    generator = Generator(layout, classes, channels, z_dim, normalize_blocks=not faster)
    return generator, Discriminator(layout, classes, channels)
