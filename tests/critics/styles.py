"""Critics of the StyleGAN line: PGGAN, StyleGAN, StyleGAN2, ADA, MSG-GAN."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.critics.classics import EqualisedConv, EqualisedLinear, StyleBlock, StyleGAN2
from tests.critics.critic import Critic, labels, one_hot, pixel_norm


class Deviation(nn.Module):
    """StyleGAN2's minibatch standard deviation: of groups of samples and groups of channels (Karras et al., 2020)."""

    def __init__(self, group: int | None, features: int = 1) -> None:
        super().__init__()
        self.group, self.features = group, features

    def forward(self, x: Tensor) -> Tensor:
        size, channels, height, width = x.shape
        group = size if self.group is None else min(self.group, size)
        y = x.reshape(group, -1, self.features, channels // self.features, height, width)
        y = y - y.mean(dim=0)
        y = (y.square().mean(dim=0) + 1e-8).sqrt()
        y = y.mean(dim=[2, 3, 4])
        y = y.reshape(-1, self.features, 1, 1).repeat(group, 1, height, width)
        return torch.cat([x, y], dim=1)


class TensorSizedDeviation(nn.Module):
    """The same where the group's size is a tensor, as in the official code: torch.min of two 0-d tensors."""

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        group = torch.min(torch.as_tensor(4), torch.as_tensor(batch))
        y = x.reshape(group, -1, 1, channels, height, width)
        y = y - y.mean(dim=0)
        y = y.square().mean(dim=0)
        y = (y + 1e-8).sqrt()
        y = y.mean(dim=[2, 3, 4]).reshape(-1, 1, 1, 1)
        y = y.repeat(group, 1, height, width)
        return torch.cat([x, y], dim=1)


class Epilogue(nn.Module):
    """Deviation, a convolution, and two linear layers."""

    def __init__(self, channels: int, places: int, deviation: nn.Module | None, more: int = 1) -> None:
        super().__init__()
        self.deviation = deviation or nn.Identity()
        self.conv = EqualisedConv(channels + (more if deviation else 0), channels, 3)
        self.dense, self.out = EqualisedLinear(channels * places, channels), EqualisedLinear(channels, 1)

    def forward(self, h: Tensor) -> Tensor:
        h = self.conv(self.deviation(h))
        return self.out(F.leaky_relu(self.dense(h.flatten(1)), 0.2) * math.sqrt(2))


class Residual2(nn.Sequential):
    """StyleGAN2's residual critic, unconditional."""

    def __init__(self, deviation: nn.Module, more: int = 1) -> None:
        super().__init__(
            EqualisedConv(3, 4, 1), StyleBlock(4, 5), StyleBlock(5, 6), Epilogue(6, 3 * 2, deviation, more)
        )


class Skip2(nn.Module):
    """StyleGAN2's critic of the skip kind: the blurred image enters again at each resolution."""

    def __init__(self) -> None:
        super().__init__()
        self.from_rgb = nn.ModuleList([EqualisedConv(3, 4, 1), EqualisedConv(3, 5, 1), EqualisedConv(3, 6, 1)])
        self.blocks = nn.ModuleList([EqualisedConv(4, 5, 3, down=True), EqualisedConv(5, 6, 3, down=True)])
        self.epilogue = Epilogue(6, 3 * 2, Deviation(4))
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
        self.register_buffer("blur", taps.outer(taps) / taps.sum() ** 2)

    def forward(self, image: Tensor) -> Tensor:
        h = self.from_rgb[0](image)
        for block, from_rgb in zip(self.blocks, self.from_rgb[1:], strict=True):
            image = F.conv2d(F.pad(image, [1, 1, 1, 1]), self.blur.expand(3, 1, 4, 4), stride=2, groups=3)
            h = block(h) + from_rgb(image)
        return self.epilogue(h)


class PGGAN(nn.Module):
    """Two scales, the new one faded in, mean pooling, and the deviation of the whole batch (Karras et al., 2018)."""

    def __init__(self, deviation: bool, alpha: float = 0.3) -> None:
        super().__init__()
        self.new_rgb, self.old_rgb = EqualisedConv(3, 4, 1), EqualisedConv(3, 5, 1)
        self.conv0, self.conv1, self.conv2 = EqualisedConv(4, 4, 3), EqualisedConv(4, 5, 3), EqualisedConv(5, 6, 3)
        self.last = EqualisedConv(6 + deviation, 6, 3)
        self.out = EqualisedLinear(6 * 3 * 2, 1)
        self.deviation, self.alpha = deviation, alpha

    def forward(self, x: Tensor) -> Tensor:
        old = self.old_rgb(F.avg_pool2d(x, 2))
        new = F.avg_pool2d(self.conv1(self.conv0(self.new_rgb(x))), 2)
        h = F.avg_pool2d(self.conv2(new * self.alpha + old * (1 - self.alpha)), 2)
        if self.deviation:
            spread = torch.sqrt(torch.mean((h - torch.mean(h, dim=0, keepdim=True)) ** 2, dim=0, keepdim=True) + 1e-8)
            mean = torch.mean(spread, dim=(1, 2, 3), keepdim=True)
            h = torch.cat([h, mean.expand(h.size(0), 1, h.size(2), h.size(3))], dim=1)
        return self.out(self.last(h).view(h.size(0), -1)).squeeze()


class StyleGAN1(nn.Module):
    """Blurred [1 2 1], convolved with a fused mean pooling, deviation in groups, and `f[arange, y]` of class logits.

    Karras et al., 2019; the choice of one logit per class is that of Mescheder et al., 2018.
    """

    def __init__(self) -> None:
        super().__init__()
        self.from_rgb, self.conv0 = EqualisedConv(3, 4, 1), EqualisedConv(4, 4, 3)
        self.weight, self.bias = nn.Parameter(torch.randn(6, 4, 3, 3)), nn.Parameter(torch.zeros(6))
        self.deviation, self.last = Deviation(4), EqualisedConv(7, 6, 3)
        self.dense, self.out = EqualisedLinear(6 * 6 * 4, 6), EqualisedLinear(6, 5)
        taps = torch.tensor([1.0, 2.0, 1.0])
        self.register_buffer("blur", taps.outer(taps) / taps.sum() ** 2)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = self.conv0(self.from_rgb(x))
        h = F.conv2d(h, self.blur.expand(4, 1, 3, 3), padding=1, groups=4)
        w = F.pad(self.weight * (1 / math.sqrt(36)), [1, 1, 1, 1])
        w = (w[:, :, 1:, 1:] + w[:, :, :-1, 1:] + w[:, :, 1:, :-1] + w[:, :, :-1, :-1]) * 0.25
        h = F.leaky_relu(F.conv2d(h, w, self.bias, stride=2, padding=1), 0.2)
        h = self.last(self.deviation(h))
        h = F.leaky_relu(self.dense(h.view(h.shape[0], -1)), 0.2)
        scores = self.out(h)
        return scores[torch.arange(len(scores)), y]


def upfirdn(x: Tensor, taps: Tensor, up: int, down: int) -> Tensor:
    """Zeros between the pixels, a padding, a filter, every `down`th pixel; channels fold into the batch on the way."""
    batch, channels, height, width = x.shape
    x = x.reshape(batch, channels, height, 1, width, 1)
    x = F.pad(x, [0, up - 1, 0, 0, 0, up - 1])
    x = x.reshape(batch, channels, height * up, width * up)
    x = F.pad(x, [1, 1, 1, 1])
    x = x.reshape([-1, 1, height * up + 2, width * up + 2])
    x = F.conv2d(x, taps.flip([0, 1])[None, None])
    x = x.reshape(-1, channels, x.shape[-2], x.shape[-1])
    return x[:, :, ::down, ::down]


class Filtered(nn.Module):
    """A critic behind filters that see each channel as a sample, with random colours and shifts (StyleGAN2-ADA)."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("taps", torch.tensor([[0.1, 0.2, 0.1], [0.2, 0.3, 0.1], [0.0, 0.1, 0.2]]))
        self.conv, self.last, self.out = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3, 2), nn.Linear(5, 1)

    def forward(self, x: Tensor) -> Tensor:
        colours = torch.eye(3, dtype=x.dtype) + 0.2 * torch.randn(len(x), 3, 3, dtype=x.dtype)
        x = upfirdn(x, self.taps, up=2, down=1)
        x = (colours @ x.reshape(len(x), 3, -1)).reshape(x.shape)
        theta = torch.eye(2, 3, dtype=x.dtype) + 0.1 * torch.randn(len(x), 2, 3, dtype=x.dtype)
        grid = F.affine_grid(theta, list(x.shape), align_corners=False)
        x = F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        h = F.leaky_relu(self.conv(upfirdn(x, self.taps, up=1, down=2)), 0.2)
        return self.out(F.leaky_relu(self.last(h), 0.2).sum([2, 3]))


class MSGGAN(nn.Module):
    """Each resolution of the image joins the features on the way down, with deviations (Karnewar and Wang, 2020)."""

    def __init__(self) -> None:
        super().__init__()
        self.from_rgb = nn.Conv2d(3, 4, 1)
        self.conv1, self.conv2 = nn.Conv2d(5, 5, 3, padding=1), nn.Conv2d(5 + 3 + 1, 6, 3, padding=1)
        self.conv3, self.out = nn.Conv2d(6 + 3 + 1, 6, 3, padding=1), nn.Linear(36, 1)

    @staticmethod
    def spread(h: Tensor) -> Tensor:
        y = h - h.mean(dim=0, keepdim=True)
        y = torch.sqrt(y.pow(2.0).mean(dim=0, keepdim=False) + 1e-8).mean().view(1, 1, 1, 1)
        return torch.cat([h, y.repeat(h.shape[0], 1, h.shape[2], h.shape[3])], 1)

    def forward(self, x: Tensor) -> Tensor:
        scales = [x, F.avg_pool2d(x, 2), F.avg_pool2d(x, 4)]
        h = F.avg_pool2d(F.leaky_relu(self.conv1(self.spread(self.from_rgb(scales[0]))), 0.2), 2)
        h = F.avg_pool2d(F.leaky_relu(self.conv2(self.spread(torch.cat((scales[1], h), dim=1))), 0.2), 2)
        h = F.leaky_relu(self.conv3(self.spread(torch.cat((scales[2], h), dim=1))), 0.2)
        return self.out(h.flatten(1)).view(-1)


class PixelNormed(nn.Module):
    """PGGAN's pixel norm, in the critic."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 5, 3, 2), nn.Conv2d(5, 6, 3)])
        self.out = nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for conv in self.convs:
            h = pixel_norm(F.leaky_relu(conv(h), 0.2))
        return self.out(h.mean([2, 3]))


class Modulated(nn.Module):
    """A critic whose convolution is modulated by a style that comes from x itself, weights demodulated per sample.

    The generator's layer of StyleGAN2, with samples as groups of one convolution, turned on the critic's own features.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.style = nn.Conv2d(3, 4, 3, 2), nn.Linear(4, 4)
        self.weight, self.out = nn.Parameter(torch.randn(5, 4, 3, 3)), nn.Linear(5, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = F.leaky_relu(self.stem(x), 0.2)
        batch = h.shape[0]
        style = self.style(h.mean([2, 3])) + 1
        w = self.weight.unsqueeze(0) * style.reshape(batch, 1, -1, 1, 1)
        h = h * style.reshape(batch, -1, 1, 1)
        h = F.conv2d(h, self.weight, padding=1) * (w.square().sum(dim=[2, 3, 4]) + 1e-8).rsqrt().reshape(
            batch, -1, 1, 1
        )
        return self.out(F.leaky_relu(h, 0.2).sum([2, 3]))


_IMAGE = (4, 3, 12, 8)
CRITICS = {
    "stylegan2-residual-group-4": Critic(lambda: Residual2(Deviation(4)), _IMAGE),
    "stylegan2-residual-groups-of-2": Critic(lambda: Residual2(Deviation(2)), (6, 3, 12, 8)),
    "stylegan2-residual-whole-batch": Critic(lambda: Residual2(Deviation(None)), (5, 3, 12, 8)),
    "stylegan2-residual-channel-groups": Critic(lambda: Residual2(Deviation(4, 2), more=2), _IMAGE),
    "stylegan2-sizes-as-tensors": Critic(lambda: Residual2(TensorSizedDeviation()), _IMAGE),
    "stylegan2-skip": Critic(Skip2, _IMAGE),
    "stylegan2-conditional-stddev": Critic(lambda: StyleGAN2(group=4), _IMAGE, one_hot),
    "stylegan2-ada-filters": Critic(Filtered, (3, 3, 11, 8)),
    "stylegan2-modulated": Critic(Modulated, (3, 3, 11, 8)),
    "stylegan1": Critic(StyleGAN1, _IMAGE, labels),
    "pggan-stddev": Critic(lambda: PGGAN(deviation=True), _IMAGE),
    "pggan": Critic(lambda: PGGAN(deviation=False), _IMAGE),
    "pixel-norm": Critic(PixelNormed, (3, 3, 11, 8)),
    "msg-gan": Critic(MSGGAN, (3, 3, 12, 8)),
}
