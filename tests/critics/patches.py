"""Critics of image translation and of super-resolution: maps of logits, several scales, several heads."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from tests.critics.classics import PatchGAN
from tests.critics.critic import Critic, labels, noise


class CycleGAN(nn.Sequential):
    """70x70 PatchGAN with instance norm and biases, a map of logits (Zhu et al., 2017)."""

    def __init__(self, norm: Callable[[int], nn.Module]) -> None:
        super().__init__(
            nn.Conv2d(3, 4, 4, 2, 1),
            nn.LeakyReLU(0.2, True),
            nn.Conv2d(4, 6, 4, 2, 1),
            norm(6),
            nn.LeakyReLU(0.2, True),
            nn.Conv2d(6, 1, 4, 1, 1),
        )


class PixelGAN(nn.Sequential):
    """1x1 convolutions with batch norm: a logit per pixel (Isola et al., 2017)."""

    def __init__(self, norm: type[nn.Module]) -> None:
        super().__init__(
            nn.Conv2d(3, 4, 1),
            nn.LeakyReLU(0.2, True),
            nn.Conv2d(4, 6, 1),
            norm(6),
            nn.LeakyReLU(0.2),
            nn.Conv2d(6, 1, 1),
        )


class Scale(nn.Module):
    """One scale of pix2pixHD's and SPADE's critic: spectral norm, then instance norm."""

    def __init__(self, channels_in: int) -> None:
        super().__init__()
        self.model0 = nn.Sequential(nn.Conv2d(channels_in, 4, 4, 2, 2), nn.LeakyReLU(0.2, False))
        self.model1 = nn.Sequential(
            spectral_norm(nn.Conv2d(4, 6, 4, 2, 2, bias=False)), nn.InstanceNorm2d(6), nn.LeakyReLU(0.2, False)
        )
        self.model2 = nn.Conv2d(6, 1, 4, 1, 2)

    def forward(self, x: Tensor) -> list[Tensor]:
        results = [x]
        for submodel in self.children():
            results.append(submodel(results[-1]))
        return results[1:]


class MultiScale(nn.Module):
    """Scales that see smaller and smaller images, one map of logits: the finest, with the others upsampled and added.

    Wang et al., 2018 (pix2pixHD) and Park et al., 2019 (SPADE); `mean` makes of each scale's map its mean. The features
    for the matching loss are made and not used.
    """

    def __init__(self, mean: bool = False) -> None:
        super().__init__()
        self.scales, self.mean = nn.ModuleList([Scale(5), Scale(5)]), mean

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        h = torch.cat([condition, x], dim=1)
        maps = []
        for scale in self.scales:
            maps.append(scale(h)[-1])
            h = F.avg_pool2d(h, kernel_size=3, stride=2, padding=[1, 1], count_include_pad=False)
        if self.mean:
            return sum(m.mean((1, 2, 3)) for m in maps)
        return maps[0] + F.interpolate(maps[1], size=maps[0].shape[2:])


class MUNIT(nn.Module):
    """Reflection padding, no norm, three scales, all logits in one row (Huang et al., 2018; least squares)."""

    def __init__(self) -> None:
        super().__init__()
        self.scales = nn.ModuleList(
            nn.Sequential(
                nn.ReflectionPad2d(1),
                nn.Conv2d(3, 4, 4, 2),
                nn.LeakyReLU(0.2, inplace=True),
                nn.ReflectionPad2d(1),
                nn.Conv2d(4, 6, 4, 2),
                nn.LeakyReLU(0.2, inplace=True),
                nn.Conv2d(6, 1, 1),
            )
            for _ in range(2)
        )
        self.downsample = nn.AvgPool2d(3, stride=2, padding=[1, 1], count_include_pad=False)

    def forward(self, x: Tensor) -> Tensor:
        outputs = []
        for scale in self.scales:
            outputs.append(scale(x).flatten(1))
            x = self.downsample(x)
        return torch.cat(outputs, dim=1)


class StarGAN1(nn.Module):
    """A map of logits, and a head of classes beside it that is not used (Choi et al., 2018); `mean`: one logit."""

    def __init__(self, mean: bool) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(3, 4, 4, 2, 1), nn.LeakyReLU(0.01), nn.Conv2d(4, 6, 4, 2, 1), nn.LeakyReLU(0.01)
        )
        self.src, self.cls = nn.Conv2d(6, 1, 3, 1, 1, bias=False), nn.Conv2d(6, 5, (4, 3), bias=False)
        self.mean = mean

    def forward(self, x: Tensor) -> Tensor:
        h = self.main(x)
        out_src, out_cls = self.src(h), self.cls(h)
        out_cls.view(out_cls.size(0), out_cls.size(1))
        return out_src.mean([1, 2, 3]) if self.mean else out_src


class StarGAN2(nn.Module):
    """Residual blocks scaled by 1/√2, one logit per domain, of which `y` takes one (Choi et al., 2020)."""

    def __init__(self, choose: str = "index") -> None:
        super().__init__()
        self.stem, self.shortcut = nn.Conv2d(3, 4, 3, 1, 1), nn.Conv2d(4, 6, 1, bias=False)
        self.conv1, self.conv2 = nn.Conv2d(4, 4, 3, 1, 1), nn.Conv2d(4, 6, 3, 1, 1)
        self.last, self.out = nn.Conv2d(6, 6, 3), nn.Conv2d(6, 5, 1)
        self.choose = choose

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = self.stem(x)
        main = F.avg_pool2d(self.conv1(F.leaky_relu(h, 0.2)), 2)
        h = (F.avg_pool2d(self.shortcut(h), 2) + self.conv2(F.leaky_relu(main, 0.2))) / 2**0.5
        h = self.out(F.leaky_relu(self.last(F.leaky_relu(h, 0.2)), 0.2)).amax((2, 3))
        out = h.view(h.size(0), -1)
        if self.choose == "gather":
            return out.gather(1, y[:, None]).squeeze(1)
        idx = torch.arange(y.size(0)).to(y.device)
        return out[idx, y]


class SRGAN(nn.Module):
    """VGG-like: pairs of convolutions with batch norm, the second of stride 2, and two linear layers.

    Ledig et al., 2017, which ends in a sigmoid; ESRGAN (Wang et al., 2018) does not, and compares with the other
    images' mean logit.
    """

    def __init__(self, sigmoid: bool = False, relative: bool = False) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1),
            nn.LeakyReLU(0.2, True),
            nn.Conv2d(4, 4, 4, 2, 1, bias=False),
            nn.BatchNorm2d(4),
            nn.LeakyReLU(0.2, True),
            nn.Conv2d(4, 6, 3, padding=1, bias=False),
            nn.BatchNorm2d(6),
            nn.LeakyReLU(0.2, True),
        )
        self.pool = nn.AdaptiveAvgPool2d((2, 3))
        self.classifier = nn.Sequential(nn.Linear(36, 5), nn.LeakyReLU(0.2, True), nn.Linear(5, 1))
        self.sigmoid, self.relative = sigmoid, relative

    def forward(self, x: Tensor) -> Tensor:
        f = self.classifier(torch.flatten(self.pool(self.features(x)), 1))
        if self.relative:
            # Jolicoeur-Martineau, 2019: real images against the mean of fake ones, and the other way round.
            real, fake = f.chunk(2)
            f = torch.cat([real - fake.mean(0, keepdim=True), fake - real.mean(0, keepdim=True)])
        return torch.sigmoid(f) if self.sigmoid else f


class Relativistic(nn.Module):
    """σ(f − mean f): the plainest relativistic average critic."""

    def __init__(self) -> None:
        super().__init__()
        self.critic = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(48, 1))

    def forward(self, x: Tensor) -> Tensor:
        f = self.critic(x)
        return torch.sigmoid(f - f.mean())


class UNetMap(nn.Module):
    """Encoder and decoder with skips: a logit per pixel plus the encoder's own (Schönfeld et al., 2020)."""

    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6) if norm else nn.Identity()
        self.up2, self.up1 = nn.Conv2d(6, 4, 3, padding=1), nn.Conv2d(4 + 4, 4, 3, padding=1)
        self.to_map, self.to_logit = nn.Conv2d(4, 1, 1), nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = F.relu(self.down1(x))
        middle = F.relu(self.norm(self.down2(F.avg_pool2d(skip, 2))))
        h = F.interpolate(F.relu(self.up2(middle)), scale_factor=2, mode="nearest")
        h = F.relu(self.up1(torch.cat([h, skip], dim=1)))
        return self.to_map(h) + self.to_logit(middle.sum([2, 3]))[:, :, None, None]


class OASIS(nn.Module):
    """Classes per pixel, of which the label map's logit is averaged (Schönfeld et al., 2021)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.LeakyReLU(0.2), nn.Conv2d(6, 5, 1))

    def forward(self, x: Tensor, classes: Tensor) -> Tensor:
        scores = F.log_softmax(self.body(x), dim=1)
        return scores.gather(1, classes[:, None]).mean((1, 2, 3))


class MultiResolution(nn.Module):
    """GigaGAN- and StackGAN-like: three resolutions, each with its own critic, logits side by side, one conditioned."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.critics = nn.ModuleList(nn.Sequential(nn.Conv2d(3, 4, 3), nn.LeakyReLU(0.2)) for _ in range(3))
        self.heads = nn.ModuleList(nn.Linear(4, 1) for _ in range(3))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        logits = []
        for critic, head in zip(self.critics, self.heads, strict=True):
            h = critic(x).sum([2, 3])
            logits.append(head(h) + (h * self.embed(y)).sum(1, keepdim=True))
            x = F.interpolate(x, scale_factor=0.5, mode="bilinear", align_corners=False)
        return torch.stack(logits, dim=1).squeeze(2)


class CUT(nn.Module):
    """A PatchGAN over patches that were cut out and laid into the batch, logits of one image side by side again."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4), nn.LeakyReLU(0.2), nn.Conv2d(4, 1, 3))

    def forward(self, x: Tensor) -> Tensor:
        size, channels, height, width = x.shape
        y = x.view(size, channels, 2, height // 2, 2, width // 2).permute(0, 2, 4, 1, 3, 5)
        y = y.contiguous().view(size * 4, channels, height // 2, width // 2)
        return self.body(y).view(size, 4, -1).mean(2)


def _condition(count: int) -> Tensor:
    return noise(count, 2, 21, 17)


def _label_map(count: int) -> Tensor:
    return torch.arange(count * 10 * 6).view(count, 10, 6) * 7 % 5


def _instance(channels: int) -> nn.Module:
    return nn.InstanceNorm2d(channels, affine=True, track_running_stats=True)


_PATCHES, _IMAGE, _SMALL = (2, 3, 21, 17), (3, 3, 16, 12), (4, 3, 10, 8)
CRITICS = {
    "pix2pix-batch-norm-training": Critic(lambda: PatchGAN(nn.BatchNorm2d), _PATCHES, _condition, training=True),
    "pix2pix-instance-norm-map": Critic(lambda: PatchGAN(nn.InstanceNorm2d), _PATCHES, _condition),
    "pix2pix-no-norm-map": Critic(lambda: PatchGAN(lambda channels: nn.Identity()), _PATCHES, _condition),
    "cyclegan": Critic(lambda: CycleGAN(nn.InstanceNorm2d), _IMAGE, idle=("2.bias",)),
    "cyclegan-tracked-instance-norm": Critic(lambda: CycleGAN(_instance), _IMAGE, training=True, idle=("2.bias",)),
    "cyclegan-tracked-instance-norm-eval": Critic(lambda: CycleGAN(_instance), _IMAGE),
    "pixelgan": Critic(lambda: PixelGAN(nn.BatchNorm2d), (2, 3, 5, 4), training=True, idle=("2.bias",)),
    "pixelgan-eval": Critic(lambda: PixelGAN(nn.BatchNorm2d), (2, 3, 5, 4)),
    "pix2pixhd": Critic(MultiScale, _PATCHES, _condition, training=True),
    "spade-mean": Critic(lambda: MultiScale(mean=True), _PATCHES, _condition),
    "munit": Critic(MUNIT, _IMAGE),
    "stargan1-map": Critic(lambda: StarGAN1(mean=False), _IMAGE, idle=("cls",)),
    "stargan1-mean": Critic(lambda: StarGAN1(mean=True), _IMAGE, idle=("cls",)),
    "stargan2": Critic(StarGAN2, _SMALL, labels),
    "stargan2-gather": Critic(lambda: StarGAN2("gather"), _SMALL, labels),
    "srgan": Critic(lambda: SRGAN(sigmoid=True), _SMALL, training=True),
    "esrgan": Critic(SRGAN, _SMALL, training=True),
    "esrgan-relativistic": Critic(
        lambda: SRGAN(sigmoid=True, relative=True), _SMALL, training=True, idle=("classifier.2.bias",)
    ),
    "relativistic-average": Critic(Relativistic, _SMALL, idle=("critic.3.bias",)),
    "unet-gan-map": Critic(UNetMap, _SMALL),
    "unet-gan-map-batch-norm": Critic(lambda: UNetMap(norm=True), _SMALL, training=True, idle=("down2.bias",)),
    "oasis": Critic(OASIS, (3, 3, 10, 6), _label_map),
    "gigagan-resolutions": Critic(MultiResolution, _IMAGE, labels),
    "patches-in-the-batch": Critic(CUT, _IMAGE, idle=("body.0.bias",)),
}
