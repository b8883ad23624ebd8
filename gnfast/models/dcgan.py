"""The standard CNN pair: of SN-GAN (Miyato et al., ICLR 2018, Table 3) and of GN-GAN's code (Wu et al., ICCV 2021)."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from gnfast.models.initialise import initialise_
from gnfast.models.widths import Factors, scaled

WIDTHS = (64, 128, 256, 512)


class Generator(nn.Module):
    """Latent vectors to images: a linear layer, then one 4x4 stride-2 deconvolution per halving of the width.

    Args:
        resolution: side of the images in pixels, a multiple of 2^(len(widths) - 1).
        channels: image channels.
        z_dim: length of the latent vector.
        widths: channel counts from the full resolution down to the smallest.
        last: the kind of the 3x3 convolution that gives the image.
        extra: further 3x3 convolutions at each of the widths, from the smallest map up; none where not given.
    """

    def __init__(
        self,
        resolution: int,
        channels: int,
        z_dim: int,
        widths: tuple[int, ...],
        last: type[nn.Conv2d | nn.ConvTranspose2d] = nn.ConvTranspose2d,
        extra: Sequence[int] = (),
    ):
        super().__init__()
        self.start = resolution >> (len(widths) - 1)
        self.linear = nn.Linear(z_dim, widths[-1] * self.start**2)
        layers: list[nn.Module] = [nn.BatchNorm2d(widths[-1]), nn.ReLU(inplace=True)]
        for index, wide in enumerate(reversed(widths)):
            convolutions = [nn.Conv2d(wide, wide, 3, 1, 1) for _ in range(extra[index] if extra else 0)]
            if index + 1 < len(widths):
                convolutions.append(nn.ConvTranspose2d(wide, widths[-index - 2], 4, 2, 1))
            for convolution in convolutions:
                layers += [convolution, nn.BatchNorm2d(convolution.out_channels), nn.ReLU(inplace=True)]
        self.main = nn.Sequential(*layers, last(widths[0], channels, 3, 1, 1), nn.Tanh())

    def forward(self, z: Tensor) -> Tensor:
        """(B, z_dim) to (B, channels, resolution, resolution) in [-1, 1]."""
        return self.main(self.linear(z).unflatten(1, (-1, self.start, self.start)))


class Discriminator(nn.Module):
    """Images to one logit each: convolutions in sequence, and one linear layer.

    Args:
        resolution: side of the images in pixels.
        convolutions: input channels, output channels, kernel size and stride of each.
        activation: makes what follows each of them.
    """

    def __init__(
        self,
        resolution: int,
        convolutions: Sequence[tuple[int, int, int, int]],
        activation: Callable[[], nn.Module] = lambda: nn.LeakyReLU(0.1),
    ):
        super().__init__()
        self.main = nn.Sequential()
        for inputs, outputs, kernel, stride in convolutions:
            self.main.extend([nn.Conv2d(inputs, outputs, kernel, stride, padding=1), activation()])
            resolution //= stride
        self.linear = nn.Linear(outputs * resolution**2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, resolution, resolution) to (B, 1)."""
        return self.linear(torch.flatten(self.main(x), 1))


def build(
    resolution: int,
    channels: int,
    z_dim: int,
    width: Factors,
    last_width: float,
    widen: Literal["stride", "conv"] = "stride",
) -> tuple[Generator, Discriminator]:
    """The pair; see `gnfast.models.build`.

    The critic's convolutions are 3x3 and 4x4 with stride 2 in turn. There are four levels, as published, from 32 pixels
    up, and three at 16 and 24, so that the smallest map keeps 4x4 or more.

    Args:
        last_width: a further factor on what goes into the critic's last convolution and what comes out of it (SN-GAN's
            Fig. 4 and its footnote).
        widen: which convolution of a level of the critic goes to the next width: "stride" as in GN-GAN's code, or
            "conv" (the 3x3 that follows) as in SN-GAN's Table 3, which halves the parameters.
    """
    if resolution < 16 or resolution % 8:
        raise ValueError(f"resolution: dcgan takes multiples of 8 from 16 up, got {resolution}")
    published = WIDTHS if resolution >= 32 else WIDTHS[:3]
    generator = Generator(resolution, channels, z_dim, scaled(published, width.generator))
    initialise_(generator, "normal")
    widths = scaled(published, width.critic)
    convolutions = [(channels, widths[0], 3, 1)]
    for narrow, wide in pairwise(widths):
        middle = wide if widen == "stride" else narrow
        convolutions += [(narrow, middle, 4, 2), (middle, wide, 3, 1)]
    middle, wide = scaled((middle, wide), last_width)
    convolutions[-2:] = [(narrow, middle, 4, 2), (middle, wide, 3, 1)]
    return generator, initialise_(Discriminator(resolution, convolutions), "normal")
