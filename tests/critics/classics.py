"""Critics of many kinds with ReLUs, of which most take four passes, and the layers that other families share."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from gnfast import models
from tests.critics.critic import Critic, labels, noise, one_hot, spectrally_normalised


def dcgan(track_running_stats: bool = True) -> nn.Sequential:
    """Strided 4x4 convolutions, batch norm and LeakyReLU in place, a last convolution that covers what is left.

    Radford et al., 2016, without biases as in PyTorch's tutorial; its Sigmoid belongs to the loss.
    """
    return nn.Sequential(
        nn.Conv2d(3, 4, 4, 2, 1, bias=False),
        nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(4, 6, 4, 2, 1, bias=False),
        nn.BatchNorm2d(6, track_running_stats=track_running_stats),
        nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(6, 8, 4, 2, 1, bias=False),
        nn.BatchNorm2d(8, track_running_stats=track_running_stats),
        nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(8, 1, (3, 2), bias=False),
    )


class LabelMap(nn.Module):
    """A DCGAN critic that sees the label as one more image channel (Mirza and Osindero, 2014)."""

    def __init__(self) -> None:
        super().__init__()
        self.plane = nn.Embedding(5, 25 * 17)
        self.merge = nn.Conv2d(4, 3, 1)
        self.critic = dcgan()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        plane = self.plane(y).view(x.size(0), 1, x.size(2), x.size(3))
        return self.critic(self.merge(torch.cat((x, plane), dim=1))).view(-1)


def sngan() -> nn.Module:
    """3x3 and strided 4x4 convolutions under spectral norm, and a linear layer (Miyato et al., 2018, table 3)."""
    return spectrally_normalised(models.build("dcgan", resolution=16, width=1 / 16)[1])


def mean_pool(h: Tensor) -> Tensor:
    """2x2 mean pooling as the sum of four strided slices."""
    return (h[:, :, ::2, ::2] + h[:, :, 1::2, ::2] + h[:, :, ::2, 1::2] + h[:, :, 1::2, 1::2]) / 4


class MeanPoolBlock(nn.Module):
    """The residual block of WGAN-GP's critic."""

    def __init__(self, channels_in: int, channels_out: int, size: tuple[int, int] | None) -> None:
        super().__init__()
        self.norm = nn.LayerNorm([channels_in, *size]) if size else nn.Identity()
        self.conv1 = nn.Conv2d(channels_in, channels_in, 3, padding=1)
        self.conv2 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.shortcut = nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, h: Tensor) -> Tensor:
        main = self.conv2(F.relu(self.conv1(F.relu(self.norm(h)))))
        return mean_pool(main) + self.shortcut(mean_pool(h))


class WGANGP(nn.Module):
    """A ResNet without normalisation that halves the image by means (Gulrajani et al., 2017).

    With `layer_norm`, what the paper recommends where a critic is to have a normalisation.
    """

    def __init__(self, layer_norm: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.blocks = nn.Sequential(
            MeanPoolBlock(4, 6, (12, 8) if layer_norm else None), MeanPoolBlock(6, 6, (6, 4) if layer_norm else None)
        )
        self.out = nn.Linear(6 * 3 * 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.blocks(self.stem(x))
        return self.out(h.view(-1, 6 * 3 * 2)).squeeze(1)


class PatchGAN(nn.Module):
    """pix2pix's critic of image and condition, one logit per patch (Isola et al., 2017); `mean` makes it one."""

    def __init__(self, norm: type[nn.Module], mean: bool = False) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(5, 4, 4, 2, 1),
            nn.LeakyReLU(0.2, True),
            nn.Conv2d(4, 6, 4, 2, 1, bias=False),
            norm(6),
            nn.LeakyReLU(0.2, True),
            nn.Conv2d(6, 8, 4, 1, 1, bias=False),
            norm(8),
            nn.LeakyReLU(0.2, True),
            nn.Conv2d(8, 1, 4, 1, 1),
        )
        self.mean = mean

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        patches = self.layers(torch.cat([condition, x], 1))
        return patches.mean(dim=(1, 2, 3)) if self.mean else patches


class SelfAttention(nn.Module):
    """Every place looks at all others, with a learned gain on what it sees (Zhang et al., 2019)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query = nn.Conv2d(channels, channels // 2, 1, bias=False)
        self.key = nn.Conv2d(channels, channels // 2, 1, bias=False)
        self.value = nn.Conv2d(channels, channels // 2, 1, bias=False)
        self.out = nn.Conv2d(channels // 2, channels, 1, bias=False)
        self.gain = nn.Parameter(torch.tensor(0.7))

    def forward(self, h: Tensor) -> Tensor:
        query = self.query(h).flatten(2).permute(0, 2, 1)
        key = F.max_pool2d(self.key(h), 2).flatten(2)
        value = F.max_pool2d(self.value(h), 2).flatten(2)
        weights = F.softmax(torch.bmm(query, key), dim=-1)
        seen = torch.bmm(value, weights.permute(0, 2, 1)).view(h.size(0), -1, h.size(2), h.size(3))
        return h + self.gain * self.out(seen)


def biggan(attention: bool = False) -> nn.Module:
    """A ResNet with sum pooling, spectral norm and the projection of a class embedding (Brock et al., 2019)."""
    layout = models.biggan.Layout(generator=(), critic=(4, 6, 6), downs=2)
    net = models.biggan.Discriminator(layout, classes=5, channels=3)
    if attention:
        net.model.insert(1, SelfAttention(4))
    return spectrally_normalised(net)


class UNet(nn.Module):
    """Encoder, and decoder with concatenated skips after nearest upsampling (Schönfeld et al., 2020).

    The mean of the decoder's map of logits and the encoder's own logit are one logit together.
    """

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1)
        self.middle = nn.Conv2d(6, 6, 3, padding=1)
        self.upsample = nn.Upsample(scale_factor=2, mode="nearest")
        self.up2, self.up1 = nn.Conv2d(6 + 6, 4, 3, padding=1), nn.Conv2d(4 + 4, 4, 3, padding=1)
        self.to_map, self.to_logit = nn.Conv2d(4, 1, 1), nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip1 = F.leaky_relu(self.down1(x), 0.2)
        skip2 = F.leaky_relu(self.down2(F.avg_pool2d(skip1, 2)), 0.2)
        middle = F.leaky_relu(self.middle(F.avg_pool2d(skip2, 2)), 0.2)
        # An odd size is rounded down on the way down, so that this step is not quite a doubling.
        h = F.interpolate(middle, size=skip2.shape[-2:], mode="nearest")
        h = F.leaky_relu(self.up2(torch.cat([h, skip2], dim=1)), 0.2)
        h = F.leaky_relu(self.up1(torch.cat([self.upsample(h), skip1], dim=1)), 0.2)
        return self.to_map(h).mean([1, 2, 3]) + self.to_logit(middle.sum([2, 3])).flatten()


class BilinearUNet(nn.Module):
    """Spectral norm, strided convolutions, bilinear upsampling and added skips (Wang et al., 2021: Real-ESRGAN)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(3, 4, 3, 1, 1)
        self.conv1 = nn.Conv2d(4, 6, 4, 2, 1, bias=False)
        self.conv2 = nn.Conv2d(6, 4, 3, 1, 1, bias=False)
        self.conv3 = nn.Conv2d(4, 1, 3, 1, 1)
        spectral_norm(self.conv1)
        spectral_norm(self.conv2)

    def forward(self, x: Tensor) -> Tensor:
        skip = F.leaky_relu(self.conv0(x), negative_slope=0.2, inplace=True)
        h = F.leaky_relu(self.conv1(skip), negative_slope=0.2, inplace=True)
        h = F.interpolate(h, scale_factor=2, mode="bilinear", align_corners=False)
        h = F.leaky_relu(self.conv2(h), negative_slope=0.2, inplace=True) + skip
        return self.conv3(h).mean(dim=(2, 3))


class EqualisedConv(nn.Module):
    """Convolution with weights of unit variance times a constant; a blur before it where it halves the image."""

    def __init__(
        self, channels_in: int, channels_out: int, kernel: int, down: bool = False, active: bool = True
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels_out, channels_in, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(channels_out)) if active else None
        self.gain = 1 / math.sqrt(channels_in * kernel**2)
        self.down, self.padding = down, kernel // 2
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
        self.register_buffer("blur", taps.outer(taps) / taps.sum() ** 2)

    def forward(self, h: Tensor) -> Tensor:
        weight = self.weight * self.gain
        if self.down:
            h = F.pad(h, [self.padding + 1] * 4)
            h = F.conv2d(h, self.blur.expand(h.shape[1], 1, 4, 4), groups=h.shape[1])
            h = F.conv2d(h, weight, stride=2)
        else:
            h = F.conv2d(h, weight, padding=self.padding)
        if self.bias is None:
            return h
        return F.leaky_relu(h + self.bias.view(1, -1, 1, 1), 0.2) * math.sqrt(2)


class EqualisedLinear(nn.Module):
    """Linear layer with weights of unit variance times a constant."""

    def __init__(self, features_in: int, features_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(features_out, features_in))
        self.bias = nn.Parameter(torch.zeros(features_out))

    def forward(self, h: Tensor) -> Tensor:
        return F.linear(h, self.weight * (1 / math.sqrt(self.weight.shape[1])), self.bias)


class StyleBlock(nn.Module):
    """Main and skip branch, both halving the image, added with the variance kept."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv0 = EqualisedConv(channels_in, channels_in, 3)
        self.conv1 = EqualisedConv(channels_in, channels_out, 3, down=True)
        self.skip = EqualisedConv(channels_in, channels_out, 1, down=True, active=False)

    def forward(self, h: Tensor) -> Tensor:
        return (self.conv1(self.conv0(h)) + self.skip(h)) * math.sqrt(0.5)


class MinibatchDeviation(nn.Module):
    """Appends a channel that says how far the samples of a group are from each other (Karras et al., 2018)."""

    def __init__(self, group: int) -> None:
        super().__init__()
        self.group = group

    def forward(self, h: Tensor) -> Tensor:
        group = min(self.group, len(h))
        grouped = h.reshape(group, -1, *h.shape[1:])
        variance = (grouped - grouped.mean(0, keepdim=True)).square().mean(0)
        deviation = (variance + 1e-8).sqrt().mean((1, 2, 3))
        return torch.cat([h, deviation.view(-1, 1, 1, 1).repeat(group, 1, *h.shape[2:])], dim=1)


class StyleGAN2(nn.Module):
    """Residual critic with blurred downsampling and equalised learning rates, conditioned by projection.

    Karras et al., 2020; the projection onto a mapped label is that of 2020b (StyleGAN2-ADA).
    """

    def __init__(self, group: int | None = None) -> None:
        super().__init__()
        self.from_rgb = EqualisedConv(3, 4, 1)
        self.blocks = nn.ModuleList([StyleBlock(4, 5), StyleBlock(5, 6)])
        self.stddev = MinibatchDeviation(group) if group else nn.Identity()
        self.conv = EqualisedConv(6 + bool(group), 6, 3)
        self.dense, self.out = EqualisedLinear(6 * 3 * 2, 6), EqualisedLinear(6, 4)
        self.mapping = EqualisedLinear(5, 4)

    def forward(self, x: Tensor, one_hot: Tensor) -> Tensor:
        h = self.from_rgb(x)
        for block in self.blocks:
            h = block(h)
        h = self.conv(self.stddev(h))
        h = F.leaky_relu(self.dense(h.flatten(1)), 0.2) * math.sqrt(2)
        mapped = F.leaky_relu(self.mapping(one_hot), 0.2)
        mapped = mapped * (mapped.square().mean(1, keepdim=True) + 1e-8).rsqrt()
        return (self.out(h) * mapped).sum(dim=1, keepdim=True) * (1 / math.sqrt(4))


class BasicBlock(nn.Module):
    """The classifier's residual block: batch norm after each convolution, the sum and the ReLU in place."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or channels_in != channels_out:
            conv = nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(channels_out))

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class ClassifierResNet(nn.Module):
    """The image classifier with one output: 7x7 stem, overlapping max pooling, basic blocks (He et al., 2016)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.layer1, self.layer2 = BasicBlock(4, 4, 1), BasicBlock(4, 6, 2)
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d((1, 1)), nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        h = self.avgpool(self.layer2(self.layer1(h)))
        return self.fc(torch.flatten(h, 1))


class Maxout(nn.Module):
    """Each unit is the largest of `pieces` linear functions (Goodfellow et al., 2013: also the first GAN's critic)."""

    def __init__(self, features_in: int, features_out: int, pieces: int) -> None:
        super().__init__()
        self.linear, self.pieces = nn.Linear(features_in, features_out * pieces), pieces

    def forward(self, h: Tensor) -> Tensor:
        return self.linear(h).view(h.size(0), -1, self.pieces).max(dim=2)[0]


class GroupSort(nn.Module):
    """Sorts the features of each group (Anil et al., 2019)."""

    def __init__(self, group: int) -> None:
        super().__init__()
        self.group = group

    def forward(self, h: Tensor) -> Tensor:
        ordered, _ = h.view(len(h), -1, self.group).sort(dim=-1)
        return ordered.view(len(h), -1)


class MaxMin(nn.Module):
    """GroupSort in pairs, the two halves of the features against each other."""

    def forward(self, h: Tensor) -> Tensor:
        a, b = h.chunk(2, dim=1)
        return torch.cat([torch.maximum(a, b), torch.minimum(a, b)], dim=1)


def maxout_mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), Maxout(30, 6, 3), Maxout(6, 5, 2), nn.Linear(5, 1))


def sorted_mlp(activation: Callable[[], nn.Module]) -> nn.Module:
    linears = nn.Linear(30, 12), nn.Linear(12, 8)
    return nn.Sequential(nn.Flatten(), linears[0], activation(), linears[1], activation(), nn.Linear(8, 1))


class WaveGAN(nn.Module):
    """1-D convolutions of 25 taps and stride 4, without the random phase shuffle (Donahue et al., 2019).

    With `reflect`, what phase shuffle does for one fixed shift: reflection at the edge, and a slice of the old length.
    """

    def __init__(self, reflect: bool = False) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv1d(channels_in, channels_out, 25, 4, 11) for channels_in, channels_out in [(1, 3), (3, 4), (4, 6)]
        )
        self.reflect = reflect
        self.out = nn.Linear(6 * 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for index, conv in enumerate(self.convs):
            h = F.leaky_relu(conv(h), 0.2)
            if self.reflect and index < len(self.convs) - 1:
                length, shift = h.shape[2], 2 - 3 * index
                h = F.pad(h, (max(shift, 0), max(-shift, 0)), mode="reflect")
                h = h[:, :, :length] if shift > 0 else h[:, :, -length:]
        return self.out(h.view(-1, 6 * 4))


class MelGAN(nn.Module):
    """Grouped strided 1-D convolutions under weight norm at two scales, one mean logit (Kumar et al., 2019)."""

    def __init__(self) -> None:
        super().__init__()
        self.scales = nn.ModuleList(
            nn.Sequential(
                nn.ReflectionPad1d(3),
                weight_norm(nn.Conv1d(1, 4, 7)),
                nn.LeakyReLU(0.2, True),
                weight_norm(nn.Conv1d(4, 8, 9, stride=4, padding=4, groups=2)),
                nn.LeakyReLU(0.2, True),
                weight_norm(nn.Conv1d(8, 8, 9, stride=4, padding=4, groups=4)),
                nn.LeakyReLU(0.2, True),
                weight_norm(nn.Conv1d(8, 1, 3, padding=1)),
            )
            for _ in range(2)
        )
        self.pool = nn.AvgPool1d(4, stride=2, padding=1, count_include_pad=False)

    def forward(self, x: Tensor) -> Tensor:
        logits = []
        for scale in self.scales:
            logits.append(scale(x).mean((1, 2)))
            x = self.pool(x)
        return sum(logits) / len(logits)


_DCGAN, _RESNET, _PATCHES, _UNET = (3, 3, 25, 17), (4, 3, 12, 8), (2, 3, 21, 17), (3, 3, 10, 14)
_FEW, _WAVE = (3, 2, 3, 5), (3, 1, 250)


def _condition(count: int) -> Tensor:
    return noise(count, 2, 21, 17)


CRITICS = {
    "dcgan": Critic(dcgan, _DCGAN),
    "dcgan-train": Critic(dcgan, _DCGAN, training=True),
    "dcgan-without-running-statistics": Critic(lambda: dcgan(track_running_stats=False), _DCGAN),
    "dcgan-sigmoid": Critic(lambda: dcgan().append(nn.Sigmoid()), _DCGAN),
    "dcgan-label-map": Critic(LabelMap, _DCGAN, labels),
    "sngan": Critic(sngan, (3, 3, 16, 16)),
    "sngan-train": Critic(sngan, (3, 3, 16, 16), training=True),
    "wgan-gp": Critic(WGANGP, (3, 3, 12, 8)),
    "wgan-gp-layer-norm": Critic(lambda: WGANGP(layer_norm=True), (3, 3, 12, 8)),
    "pix2pix": Critic(lambda: PatchGAN(nn.BatchNorm2d), _PATCHES, _condition),
    "pix2pix-instance-norm": Critic(lambda: PatchGAN(nn.InstanceNorm2d, mean=True), _PATCHES, _condition),
    "pix2pix-mean": Critic(lambda: PatchGAN(nn.BatchNorm2d, mean=True), _PATCHES, _condition),
    "biggan": Critic(biggan, _RESNET, labels),
    "biggan-train": Critic(biggan, _RESNET, labels, training=True),
    "biggan-attention": Critic(lambda: biggan(attention=True), _RESNET, labels),
    "unet": Critic(UNet, _UNET),
    "unet-bilinear": Critic(BilinearUNet, _UNET),
    "unet-bilinear-train": Critic(BilinearUNet, _UNET, training=True),
    "stylegan2": Critic(StyleGAN2, _RESNET, one_hot),
    "stylegan2-minibatch-stddev": Critic(lambda: StyleGAN2(group=4), _RESNET, one_hot),
    "stylegan2-minibatch-stddev-in-pairs": Critic(lambda: StyleGAN2(group=2), _RESNET, one_hot),
    "resnet-max-pool": Critic(ClassifierResNet, (3, 3, 21, 17)),
    "maxout": Critic(maxout_mlp, _FEW),
    "groupsort": Critic(lambda: sorted_mlp(lambda: GroupSort(4)), _FEW),
    "maxmin": Critic(lambda: sorted_mlp(MaxMin), _FEW),
    "wavegan": Critic(WaveGAN, _WAVE),
    "wavegan-reflect": Critic(lambda: WaveGAN(reflect=True), _WAVE),
    "melgan": Critic(MelGAN, (3, 1, 131)),
}
