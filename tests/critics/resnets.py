"""Residual critics: BigGAN and its attention, SAGAN, SN-GAN, GAN_stability, heads beside the logit, energies."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.critics.classics import SelfAttention
from tests.critics.critic import Critic, DownBlock, Lambda, Residual, labels, spectrally_normalised


class BigGAN(nn.Module):
    """Blocks of which the first have no activation before them, self-attention after one, sum pooling, projection.

    Brock et al., 2019, tables 4 and 5. `attention`: the block after which it stands.
    """

    def __init__(
        self, widths: tuple[int, ...], attention: int, activation: Callable[[Tensor], Tensor] = F.relu
    ) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        for index, (before, after) in enumerate(zip((3, *widths[:-1]), widths, strict=True)):
            own = activation if index else nn.Identity()
            blocks.append(DownBlock(before, after, own, down=index < len(widths) - 1))
            if index == attention:
                blocks.append(SelfAttention(after))
        self.blocks, self.activation = nn.Sequential(*blocks), activation
        self.linear, self.embed = nn.Linear(widths[-1], 1), nn.Embedding(5, widths[-1])

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = torch.sum(self.activation(self.blocks(x)), [2, 3])
        return self.linear(h) + torch.sum(self.embed(y) * h, 1, keepdim=True)


class DeepBlock(nn.Module):
    """BigGAN-deep's bottleneck, whose shortcut appends channels that a 1x1 convolution makes."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        middle = channels_out // 2
        self.conv1, self.conv2 = nn.Conv2d(channels_in, middle, 1), nn.Conv2d(middle, middle, 3, padding=1)
        self.conv3, self.conv4 = nn.Conv2d(middle, middle, 3, padding=1), nn.Conv2d(middle, channels_out, 1)
        self.more = nn.Conv2d(channels_in, channels_out - channels_in, 1) if channels_out > channels_in else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv3(F.relu(self.conv2(F.relu(self.conv1(F.relu(x))))))
        h, x = F.avg_pool2d(F.relu(h), 2), F.avg_pool2d(x, 2)
        return self.conv4(h) + (x if self.more is None else torch.cat([x, self.more(x)], 1))


class BigGANDeep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(3, 4, 3, padding=1), nn.Sequential(DeepBlock(4, 6), DeepBlock(6, 6))
        self.attention, self.linear, self.embed = SelfAttention(6), nn.Linear(6, 1), nn.Embedding(5, 6)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = F.relu(self.attention(self.blocks(self.stem(x)))).sum([2, 3])
        return self.linear(h) + (self.embed(y) * h).sum(1, keepdim=True)


class SAGAN(nn.Module):
    """Strided convolutions, attention over all places, a last convolution (Zhang et al., 2019)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.last = nn.Conv2d(3, 4, 4, 2, 1), nn.Conv2d(4, 6, 4, 2, 1), nn.Conv2d(6, 1, (3, 2))
        self.query, self.key, self.value = nn.Conv2d(6, 2, 1), nn.Conv2d(6, 2, 1), nn.Conv2d(6, 6, 1)
        self.gamma = nn.Parameter(torch.full((1,), 0.4))

    def forward(self, x: Tensor) -> Tensor:
        h = F.leaky_relu(self.conv2(F.leaky_relu(self.conv1(x), 0.1)), 0.1)
        size, channels, height, width = h.size()
        query = self.query(h).view(size, -1, height * width).permute(0, 2, 1)
        key = self.key(h).view(size, -1, height * width)
        attention = torch.softmax(torch.bmm(query, key), dim=-1)
        value = self.value(h).view(size, -1, height * width)
        out = torch.matmul(value, attention.transpose(1, 2)).view(size, channels, height, width)
        return self.last(self.gamma * out + h).squeeze()


class ResNet(nn.Module):
    """Two halving blocks and one more, pooled over places; `activation` and `norm` as wanted (SN-GAN's with ReLU)."""

    def __init__(
        self,
        activation: Callable[[Tensor], Tensor],
        norm: Callable[[int], nn.Module] = lambda channels: nn.Identity(),
        between: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.blocks = nn.Sequential(
            DownBlock(4, 6, activation, norm=norm),
            between or nn.Identity(),
            DownBlock(6, 6, activation, down=False, norm=norm),
        )
        self.activation, self.out = activation, nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.activation(self.blocks(self.stem(x))).mean([2, 3]))


class Stability(nn.Module):
    """Residual branches times 0.1, mean pooling with overlap, one logit per class of which `y` takes one.

    Mescheder et al., 2018.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.grow = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 5, 1, bias=False)
        self.conv0, self.conv1 = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 5, 3, padding=1)
        self.conv2, self.conv3 = nn.Conv2d(5, 5, 3, padding=1), nn.Conv2d(5, 5, 3, padding=1)
        self.fc = nn.Linear(5 * 6 * 4, 5)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = self.stem(x)
        h = self.grow(h) + 0.1 * self.conv1(F.leaky_relu(self.conv0(F.leaky_relu(h, 2e-1)), 2e-1))
        h = F.avg_pool2d(h, 3, stride=2, padding=1)
        h = h + 0.1 * self.conv3(F.leaky_relu(self.conv2(F.leaky_relu(h, 2e-1)), 2e-1))
        out = self.fc(F.leaky_relu(h.view(x.size(0), -1), 2e-1))
        index = torch.LongTensor(range(out.size(0)))
        return out[index, y]


class Heads(nn.Module):
    """A residual trunk with an adversarial logit, and a head beside it whose output is kept but not returned.

    `head`: "ac" classes by softmax (Odena et al., 2017); "contra" normalised embeddings against class proxies (Kang and
    Park, 2020); "re" the same with cosines of normalised weights (Kang et al., 2021).
    """

    def __init__(self, head: str) -> None:
        super().__init__()
        self.stem, self.block = nn.Conv2d(3, 4, 3, padding=1), DownBlock(4, 6)
        self.adversarial, self.side, self.proxies = nn.Linear(6, 1), nn.Linear(6, 4), nn.Embedding(5, 4)
        self.head = head
        self.beside: Tensor | None = None

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = torch.sum(F.relu(self.block(self.stem(x))), dim=[2, 3])
        logit = torch.squeeze(self.adversarial(h))
        if self.head == "ac":
            F.log_softmax(self.side(h), dim=1)
        else:
            proxy, embedding = self.proxies(y), self.side(h)
            if self.head == "re":
                proxy = F.normalize(proxy, dim=1)
            embedding = F.normalize(embedding, dim=1)
            (embedding * proxy).sum(1)
        return logit


class EmbeddingLogit(nn.Module):
    """The logit is the cosine of the features with the class's proxy, sharpened (ContraGAN's head as a critic)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block = nn.Conv2d(3, 4, 3, padding=1), DownBlock(4, 6)
        self.linear, self.proxies = nn.Linear(6, 4), nn.Embedding(5, 4)
        self.adversarial = nn.Linear(6, 1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = F.relu(self.block(self.stem(x))).sum([2, 3])
        embedding = F.normalize(self.linear(h), dim=1)
        proxy = F.normalize(self.proxies(y), dim=1)
        return self.adversarial(h).squeeze(1) + F.cosine_similarity(embedding, proxy, dim=1) / 0.5


class Squeeze(nn.Module):
    """Channels weighted by what their means say (Hu et al., 2018)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(channels, 3), nn.ReLU(inplace=True), nn.Linear(3, channels), nn.Sigmoid())

    def forward(self, h: Tensor) -> Tensor:
        size, channels, _, _ = h.size()
        y = F.adaptive_avg_pool2d(h, 1).view(size, channels)
        return h * self.fc(y).view(size, channels, 1, 1).expand_as(h)


class ConvBlockAttention(nn.Module):
    """Weights of channels from means and maxima, then of places from means and maxima (CBAM; Woo et al., 2018)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(channels, 3), nn.ReLU(), nn.Linear(3, channels))
        self.place = nn.Conv2d(2, 1, 3, padding=1)

    def forward(self, h: Tensor) -> Tensor:
        gate = torch.sigmoid(self.mlp(h.mean((2, 3))) + self.mlp(h.amax((2, 3))))
        h = h * gate[:, :, None, None]
        seen = torch.cat([h.mean(1, keepdim=True), h.max(1, keepdim=True)[0]], 1)
        return h * self.place(seen).sigmoid()


class Augmented(nn.Module):
    """DiffAugment in front of the critic: brightness, saturation, contrast, translation, cutout (Zhao et al., 2020)."""

    def __init__(self) -> None:
        super().__init__()
        self.critic = ResNet(F.relu)

    def forward(self, x: Tensor) -> Tensor:
        def draw() -> Tensor:
            return torch.rand(x.size(0), 1, 1, 1, dtype=x.dtype, device=x.device)

        x = x + (draw() - 0.5)
        mean = x.mean(dim=1, keepdim=True)
        x = (x - mean) * (draw() * 2) + mean
        mean = x.mean(dim=[1, 2, 3], keepdim=True)
        x = (x - mean) * (draw() + 0.5) + mean
        return self.critic(self.cut(self.shifted(x)))

    @staticmethod
    def shifted(x: Tensor) -> Tensor:
        size, _, height, width = x.shape
        down, right = torch.randint(-1, 2, [size, 1, 1]), torch.randint(-1, 2, [size, 1, 1])
        sample, row, column = torch.meshgrid(
            torch.arange(size), torch.arange(height), torch.arange(width), indexing="ij"
        )
        row = torch.clamp(row + down + 1, 0, height + 1)
        column = torch.clamp(column + right + 1, 0, width + 1)
        padded = F.pad(x, [1, 1, 1, 1, 0, 0, 0, 0])
        return padded.permute(0, 2, 3, 1).contiguous()[sample, row, column].permute(0, 3, 1, 2).contiguous()

    @staticmethod
    def cut(x: Tensor) -> Tensor:
        size, _, height, width = x.shape
        top, left = torch.randint(0, height - 3, [size, 1, 1]), torch.randint(0, width - 3, [size, 1, 1])
        sample, row, column = torch.meshgrid(torch.arange(size), torch.arange(3), torch.arange(3), indexing="ij")
        mask = torch.ones(size, height, width, dtype=x.dtype)
        mask[sample, row + top, column + left] = 0
        return x * mask.unsqueeze(1)


class Energy(nn.Module):
    """An energy with Swish and squared last features (Du and Mordatch, 2019)."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = ResNet(F.silu)
        self.trunk.out = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.trunk(x).pow(2).sum(1)


class Consistency(nn.Module):
    """The same critic on x and on x mirrored and scaled; their mean logit less their distance (bCR and ICR-like)."""

    def __init__(self) -> None:
        super().__init__()
        self.critic = ResNet(F.relu)

    def forward(self, x: Tensor) -> Tensor:
        f, mirrored = self.critic(x), self.critic(0.9 * x.flip(3))
        return (f + mirrored) / 2 - (f - mirrored) ** 2


def bilinear_attention() -> nn.Module:
    """SN-GAN's ResNet with self-attention, everything under spectral norm."""
    return spectrally_normalised(ResNet(F.relu, between=SelfAttention(6)))


def group_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(2, channels)


_IMAGE, _SMALL = (4, 3, 12, 8), (3, 3, 10, 6)
_BEFORE_NORMS = ("blocks.0.conv1.bias", "blocks.2.conv1.bias")
CRITICS = {
    "biggan-64": Critic(lambda: spectrally_normalised(BigGAN((4, 6, 6), 0)), _IMAGE, labels),
    "biggan-128": Critic(lambda: spectrally_normalised(BigGAN((4, 4, 6, 6), 1)), (3, 3, 24, 16), labels),
    "biggan-64-training": Critic(lambda: spectrally_normalised(BigGAN((4, 6, 6), 0)), _IMAGE, labels, training=True),
    "biggan-silu": Critic(lambda: BigGAN((4, 6, 6), 0, F.silu), _IMAGE, labels),
    "biggan-deep": Critic(lambda: spectrally_normalised(BigGANDeep()), (3, 3, 16, 8), labels),
    "sagan": Critic(lambda: spectrally_normalised(SAGAN()), _IMAGE, idle=("key.bias",)),
    "sngan-resnet": Critic(lambda: spectrally_normalised(ResNet(F.relu)), _SMALL, training=True),
    "sngan-resnet-attention": Critic(bilinear_attention, _SMALL, training=True),
    "resnet-batch-norm": Critic(lambda: ResNet(F.relu, norm=nn.BatchNorm2d), _SMALL, training=True, idle=_BEFORE_NORMS),
    "resnet-group-norm-silu": Critic(lambda: ResNet(F.silu, norm=group_norm), _SMALL),
    "wgan-gp-group-norm": Critic(lambda: ResNet(F.relu, norm=group_norm), _SMALL),
    "wgan-gp-instance-norm": Critic(
        lambda: ResNet(F.relu, norm=lambda channels: nn.InstanceNorm2d(channels, affine=True)),
        _SMALL,
        idle=_BEFORE_NORMS,
    ),
    "gan-stability": Critic(Stability, _IMAGE, labels),
    "acgan-unused-head": Critic(lambda: Heads("ac"), _IMAGE, labels, idle=("side", "proxies")),
    "contragan-unused-head": Critic(lambda: Heads("contra"), _IMAGE, labels, idle=("side", "proxies")),
    "reacgan-unused-head": Critic(lambda: Heads("re"), _IMAGE, labels, idle=("side", "proxies")),
    "contragan-logit": Critic(EmbeddingLogit, _IMAGE, labels),
    "squeeze-and-excitation": Critic(lambda: ResNet(F.relu, between=Squeeze(6)), _SMALL),
    "cbam": Critic(lambda: ResNet(F.relu, between=ConvBlockAttention(6)), _SMALL),
    "diffaugment": Critic(Augmented, _SMALL),
    "energy-swish": Critic(Energy, _SMALL),
    "consistency": Critic(Consistency, _SMALL),
    "stochastic-depth-residual": Critic(
        lambda: ResNet(F.relu, between=Residual(nn.Conv2d(6, 6, 1), nn.Dropout(0.3), Lambda(torch.tanh))),
        _SMALL,
        training=True,
    ),
}
