"""SN-GAN's class-conditional ResNet pairs (Miyato et al., ICLR 2018, Tables 6 and 8), without spectral normalisation.

The generator is that of the pair without labels with class-conditional batch norm in its blocks. Three critics take the
label: by concatenation, Table 6c; by projection (Miyato and Koyama, ICLR 2018); and for its classification alone (Odena
et al., 2017). The projection for 64 pixels is as in the authors' code (pfnet-research/sngan_projection);
concatenation is published for 128 alone, and here for 64 in the same place.
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from gnfast.models import resnet
from gnfast.models.biggan import ConditionalBatchNorm, GeneratorBlock
from gnfast.models.initialise import initialise_
from gnfast.models.widths import Factors


class Generator(nn.Module):
    """Latent vectors and labels to images.

    Args:
        start: side of the first map in pixels.
        widths: channels of the first map, then of each block's output; each block doubles the side.
        channels: image channels.
        z_dim: length of the latent vector.
        classes: how many labels there are.
    """

    def __init__(self, start: int, widths: tuple[int, ...], channels: int, z_dim: int, classes: int):
        super().__init__()
        self.start = start
        self.linear = nn.Linear(z_dim, widths[0] * start**2)
        self.blocks = nn.ModuleList(GeneratorBlock(i, o, partial(nn.Embedding, classes)) for i, o in pairwise(widths))
        self.output = nn.Sequential(
            nn.BatchNorm2d(widths[-1]), nn.ReLU(inplace=True), nn.Conv2d(widths[-1], channels, 3, 1, 1), nn.Tanh()
        )
        _initialise(self)
        for norm in self.modules():
            if isinstance(norm, ConditionalBatchNorm):
                nn.init.zeros_(norm.gain.weight)
                nn.init.zeros_(norm.bias.weight)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        """z (B, z_dim) and int64 labels y (B,) to (B, channels, S, S) in [-1, 1], S = start · 2^blocks."""
        h = self.linear(z).unflatten(1, (-1, self.start, self.start))
        for block in self.blocks:
            h = block(h, y)
        return self.output(h)


class ConcatDiscriminator(resnet.Discriminator):
    """Images and labels to one logit each: an embedding of the label joins the third block's output, everywhere.

    Args:
        widths: output channels of each block; the embedding's length is half of the third's, 128 as published.
        downs: how many blocks, from the first on, halve the map.
        channels: image channels.
        classes: how many labels there are.
    """

    def __init__(self, widths: tuple[int, ...], downs: int, channels: int, classes: int):
        super().__init__(widths, downs, channels, _block, resnet.SumPool())
        self.embedding = nn.Embedding(classes, max(1, widths[2] // 2))
        self.model[3] = _block(widths[2] + self.embedding.embedding_dim, widths[3], downs > 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """x (B, channels, S, S) and int64 labels y (B,) to (B, 1)."""
        h = x
        for index, part in enumerate(self.model):
            if index == 3:
                label = self.embedding(y)[..., None, None]
                h = torch.cat([h, label.expand(-1, -1, *h.shape[2:])], 1)
            h = part(h)
        return self.linear(h)


class ProjectionDiscriminator(resnet.Discriminator):
    """Images and labels to one logit each: linear(h) + <embedding(y), h>; arguments as of `ConcatDiscriminator`."""

    def __init__(self, widths: tuple[int, ...], downs: int, channels: int, classes: int):
        super().__init__(widths, downs, channels, _block, resnet.SumPool())
        self.embedding = nn.Embedding(classes, widths[-1])

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """x (B, channels, S, S) and int64 labels y (B,) to (B, 1)."""
        h = self.model(x)
        return self.linear(h) + (self.embedding(y) * h).sum(1, keepdim=True)


class ClassifyingDiscriminator(resnet.Discriminator):
    """Images to one logit each, which does not see the label, and to a logit for each class, from the same features.

    It is the critic of Gulrajani et al., 2017 (the code that Appendix E.1 names): SN-GAN's with a mean in place of the
    sum over space. Arguments are as of `ConcatDiscriminator`.
    """

    def __init__(self, widths: tuple[int, ...], downs: int, channels: int, classes: int):
        super().__init__(widths, downs, channels, _block, nn.AdaptiveAvgPool2d(1))
        self.classifier = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """x (B, channels, S, S) and labels y, which are not looked at, to (B, 1)."""
        return super().forward(x)

    def classify(self, x: Tensor) -> Tensor:
        """x (B, channels, S, S) to logits (B, classes)."""
        return self.classifier(torch.flatten(self.model(x), 1))


# By name: the critic, and the resolutions that it is published for.
PAIRS: dict[str, tuple[Callable[..., resnet.Discriminator], tuple[int, ...]]] = {
    "sngan-concat": (ConcatDiscriminator, (64, 128)),
    "sngan-projection": (ProjectionDiscriminator, (64, 128)),
    "sngan-ac": (ClassifyingDiscriminator, (32,)),
}


def build(
    name: str, resolution: int, channels: int, z_dim: int, width: Factors, classes: int
) -> tuple[Generator, resnet.Discriminator]:
    """The pair of a name of `PAIRS`; see `gnfast.models.build`."""
    kind, resolutions = PAIRS[name]
    layouts = {side: resnet.SNGAN_LAYOUTS[side] for side in resolutions}
    start, g_widths, d_widths, downs = resnet.scaled_layout(name, layouts, resolution, width)
    generator = Generator(start, g_widths, channels, z_dim, classes)
    critic = kind(d_widths, downs, channels, classes)
    _initialise(critic)
    return generator, critic


def _block(in_channels: int, out_channels: int, down: bool) -> resnet.Block:
    return resnet.Block(in_channels, out_channels, down, in_channels)


def _initialise(net: nn.Module) -> None:
    """Weights as SN-GAN's, embeddings among them; biases 0."""
    initialise_(net, "kaiming-normal")
    resnet.xavier_(net)
