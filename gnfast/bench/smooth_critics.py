"""Critics that are not piecewise linear, or whose samples depend on each other, at sizes that are trained."""

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gnfast import models
from gnfast.bench.critics import Network
from gnfast.models.biggan import Attention


def silu_resnet(width: float) -> nn.Module:
    """GN-GAN's ResNet for 32 pixels with SiLU in place of ReLU."""
    net = models.build("resnet", resolution=32, width=width)[1]
    for module in list(net.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, nn.SiLU())
    return net


def attentive_resnet(width: float) -> nn.Module:
    """GN-GAN's ResNet for 32 pixels with self-attention after its first block (Zhang et al., 2019)."""
    net = models.build("resnet", resolution=32, width=width)[1]
    net.model.insert(1, Attention(net.model[0].residual[0].out_channels))
    return _awake(net)


class Labelled(nn.Module):
    """A conditional critic with labels of its own, one for each sample of a batch."""

    def __init__(self, net: nn.Module, classes: int) -> None:
        super().__init__()
        self.net, self.classes = net, classes

    def forward(self, x: Tensor) -> Tensor:
        """(B, …) to the logits."""
        return self.net(x, torch.arange(len(x), device=x.device) % self.classes)


def biggan(width: float) -> nn.Module:
    """BigGAN's critic for 64 pixels, with self-attention and projection."""
    return _awake(Labelled(models.build("biggan-faster", resolution=64, classes=10, width=width)[1], classes=10))


def patchgan(width: float) -> nn.Module:
    """pix2pix's 70x70 critic with batch norm: a map of logits (Isola et al., 2017)."""
    first, *rest = (round(channels * width) for channels in (64, 128, 256, 512))
    layers: list[nn.Module] = [nn.Conv2d(3, first, 4, 2, 1), nn.LeakyReLU(0.2, True)]
    before = first
    for index, after in enumerate(rest):
        stride = 2 if index < len(rest) - 1 else 1
        layers += [nn.Conv2d(before, after, 4, stride, 1, bias=False), nn.BatchNorm2d(after), nn.LeakyReLU(0.2, True)]
        before = after
    return nn.Sequential(*layers, nn.Conv2d(before, 1, 4, 1, 1))


class EqualisedConv(nn.Module):
    """A convolution, blurred and of stride 2 if it is to halve the map, with bias and LeakyReLU · √2 if `active`."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, down: bool = False, active: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels_out, channels_in, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(channels_out)) if active else None
        self.gain, self.down, self.padding = 1 / math.sqrt(channels_in * kernel**2), down, kernel // 2
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
        self.register_buffer("blur", taps.outer(taps) / taps.sum() ** 2)

    def forward(self, h: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H, W), or half as high and wide."""
        if self.down:
            h = F.conv2d(F.pad(h, [self.padding + 1] * 4), self.blur.expand(h.shape[1], 1, 4, 4), groups=h.shape[1])
        padding = 0 if self.down else self.padding
        h = F.conv2d(h, self.weight * self.gain, stride=2 if self.down else 1, padding=padding)
        return h if self.bias is None else F.leaky_relu(h + self.bias.view(1, -1, 1, 1), 0.2) * math.sqrt(2)


class StyleBlock(nn.Module):
    """Main and skip branch, both halving the map, added with the variance kept."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv0, self.conv1 = EqualisedConv(channels, channels, 3), EqualisedConv(channels, channels, 3, down=True)
        self.skip = EqualisedConv(channels, channels, 1, down=True, active=False)

    def forward(self, h: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H/2, W/2)."""
        return (self.conv1(self.conv0(h)) + self.skip(h)) * math.sqrt(0.5)


class MinibatchDeviation(nn.Module):
    """Appends a channel that says how far the samples of a group of 4 are from each other (Karras et al., 2018)."""

    def forward(self, h: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C + 1, H, W)."""
        batch, channels, height, width = h.shape
        group = min(4, batch)
        y = h.reshape(group, -1, channels, height, width)
        y = ((y - y.mean(0)).square().mean(0) + 1e-8).sqrt().mean([1, 2, 3])
        return torch.cat([h, y.reshape(-1, 1, 1, 1).repeat(group, 1, height, width)], 1)


def stylegan2(width: float) -> nn.Module:
    """StyleGAN2's residual critic for 32 pixels, with minibatch standard deviation."""
    channels = round(128 * width)
    blocks = [StyleBlock(channels) for _ in range(3)]
    last = (
        MinibatchDeviation(),
        EqualisedConv(channels + 1, channels, 3),
        nn.Flatten(),
        nn.Linear(16 * channels, channels),
    )
    return nn.Sequential(EqualisedConv(3, channels, 1), *blocks, *last, nn.LeakyReLU(0.2), nn.Linear(channels, 1))


class ViT(nn.Module):
    """A small transformer over 4x4 patches of 32x32 images, six layers with three heads, the mean of its tokens."""

    def __init__(self, width: float) -> None:
        super().__init__()
        size = 3 * round(64 * width)
        self.embed, self.positions = nn.Conv2d(3, size, 4, 4), nn.Parameter(0.02 * torch.randn(1, 64, size))
        layer = nn.TransformerEncoderLayer(
            size, 3, 4 * size, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, 6, nn.LayerNorm(size), enable_nested_tensor=False)
        self.head = nn.Linear(size, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, 32, 32) to (B, 1)."""
        return self.head(self.encoder(self.embed(x).flatten(2).mT + self.positions).mean(1))


def _awake(net: nn.Module) -> nn.Module:
    """Attention begins with a gain of 0, which would leave most of it without gradients."""
    for module in net.modules():
        if isinstance(module, Attention):
            nn.init.constant_(module.gamma, 0.5)
    return net


def networks(width: float = 1.0) -> dict[str, Network]:
    """The critics by name, with a factor on their channels."""
    made: dict[str, tuple[Callable[[float], nn.Module], int]] = {
        "SiLU ResNet 32": (silu_resnet, 32),
        "ResNet 32 with self-attention": (attentive_resnet, 32),
        "BigGAN 64": (biggan, 64),
        "PatchGAN 64, batch norm": (patchgan, 64),
        "StyleGAN2 32, minibatch stddev": (stylegan2, 32),
        "ViT 32": (ViT, 32),
    }

    def build(make: Callable[[float], nn.Module]) -> tuple[None, nn.Module]:
        return None, make(width).train()

    return {name: Network(name, (3, side, side), partial(build, make), width) for name, (make, side) in made.items()}
