"""Small critics: smooth activations, DCGAN and its kin, samples that see each other, joint and energy critics."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.critics.classics import LabelMap, dcgan
from tests.critics.critic import Critic, Lambda, labels, noise, pixel_norm


def convolutional(activation: Callable[[], nn.Module]) -> nn.Module:
    """Two convolutions and two linear layers."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        activation(),
        nn.Conv2d(4, 5, 4, 2, 1),
        activation(),
        nn.Flatten(),
        nn.Linear(60, 6),
        activation(),
        nn.Linear(6, 1),
    )


class Siren(nn.Module):
    """Sines with a frequency of 3 (Sitzmann et al., 2020), over Fourier features (Tancik et al., 2020) if wanted."""

    def __init__(self, features: bool = False) -> None:
        super().__init__()
        self.first, self.second, self.out = nn.Linear(24 if features else 12, 7), nn.Linear(7, 6), nn.Linear(6, 1)
        self.features = features
        self.register_buffer("frequencies", torch.randn(12, 12))

    def forward(self, x: Tensor) -> Tensor:
        h = x.flatten(1)
        if self.features:
            h = 2 * torch.pi * 0.1 * h @ self.frequencies
            h = torch.cat([torch.sin(h), torch.cos(h)], dim=-1)
        return self.out(torch.sin(3.0 * self.second(torch.sin(3.0 * self.first(h)))))


class Snake(nn.Module):
    """x + sin²(αx)/α with learned α (Ziyin et al., 2020; BigVGAN's activation)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(channels))

    def forward(self, h: Tensor) -> Tensor:
        alpha = torch.exp(self.alpha).view(1, -1, 1)
        return h + (1.0 / (alpha + 1e-9)) * torch.sin(h * alpha).pow(2)


class MinibatchDiscrimination(nn.Module):
    """Each sample learns how near the others' features are: exp of negative L1 distances (Salimans et al., 2016)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.LeakyReLU(0.2))
        self.T = nn.Parameter(0.3 * torch.randn(6, 4, 3))
        self.out = nn.Linear(6 + 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        m = h.mm(self.T.view(6, -1)).view(-1, 4, 3)
        distances = torch.abs(m.unsqueeze(0) - m.unsqueeze(1)).sum(3)
        near = torch.exp(-distances).sum(0) - 1
        return self.out(torch.cat([h, near], 1))


class PacGAN(nn.Module):
    """Samples in packs of two, side by side as channels; one logit for each pack, given to both (Lin et al., 2018)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(6, 5, 3), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(40, 1))

    def forward(self, x: Tensor) -> Tensor:
        packed = x.view(x.size(0) // 2, 2 * x.size(1), x.size(2), x.size(3))
        return self.body(packed).repeat_interleave(2, dim=0)


class Joint(nn.Module):
    """A pair of image and code (VEEGAN, Srivastava et al., 2017; ALI and BiGAN), the code given or encoded."""

    def __init__(self, encode: bool) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.Tanh())
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.Softplus(), nn.Linear(5, 3)) if encode else None
        self.joint = nn.Sequential(nn.Linear(9, 7), nn.ReLU(), nn.Dropout(0.2), nn.Linear(7, 1))

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        code = z if self.encoder is None else self.encoder(x) + 0.1 * z
        return self.joint(torch.cat([self.image(x), code], dim=1))


class Reconstruction(nn.Module):
    """An energy: how far an autoencoder's output is from x (EBGAN, Zhao et al., 2017; BEGAN with the L1 distance)."""

    def __init__(self, power: int) -> None:
        super().__init__()
        self.encode, self.decode, self.power = nn.Conv2d(3, 5, 3, 2, 1), nn.ConvTranspose2d(5, 3, 4, 2, 1), power

    def forward(self, x: Tensor) -> Tensor:
        difference = self.decode(F.elu(self.encode(x))) - x
        if self.power == 1:
            return difference.abs().mean((1, 2, 3))
        return (difference**2).flatten(1).mean(1).sqrt()


class BilinearPooling(nn.Module):
    """The products of all pairs of features, signed roots, normalised (Lin et al., 2015)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 4, 3), nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = F.softplus(self.conv(x)).flatten(2)
        pooled = (torch.bmm(h, h.transpose(1, 2)) / h.size(2)).flatten(1)
        pooled = torch.sqrt(pooled + 1e-5)
        return self.out(F.normalize(pooled))


class BilinearLayers(nn.Module):
    """nn.Bilinear of two x-dependent features, and a quadratic form by einsum."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.both = nn.Linear(12, 4), nn.Linear(12, 3), nn.Bilinear(4, 3, 1)
        self.form = nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.left(x.flatten(1)), torch.relu(self.right(x.flatten(1)))
        return self.both(a, b) + torch.einsum("bi,ij,bj->b", a, self.form, a).unsqueeze(1)


class FastGAN(nn.Module):
    """GLU, channels excited by an earlier stage, and a decoder of features that is not used (Liu et al., 2021)."""

    def __init__(self, glu: str = "function") -> None:
        super().__init__()
        self.stem, self.down1, self.down2 = nn.Conv2d(3, 4, 3, 1, 1), nn.Conv2d(4, 8, 4, 2, 1), nn.Conv2d(4, 6, 4, 2, 1)
        self.norm = nn.BatchNorm2d(8)
        self.excite = nn.Sequential(
            nn.AdaptiveAvgPool2d(2), nn.Conv2d(4, 6, 2), nn.SiLU(), nn.Conv2d(6, 6, 1), nn.Sigmoid()
        )
        self.decoder = nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(6, 3, 3, 1, 1), nn.Tanh())
        self.out, self.glu = nn.Conv2d(6, 1, (2, 3)), glu

    def forward(self, x: Tensor) -> Tensor:
        first = F.leaky_relu(self.stem(x), 0.2)
        h = self.norm(self.down1(first))
        if self.glu == "function":
            h = F.glu(h, dim=1)
        else:
            half = h.size(1) // 2
            h = h[:, :half] * torch.sigmoid(h[:, half:])
        h = self.down2(h) * self.excite(first)
        self.decoder(h)
        return self.out(F.leaky_relu(h, 0.2)).view(-1)


class Projected(nn.Module):
    """A frozen feature network, random mixing of its scales, one critic per scale, logits side by side.

    Sauer et al., 2021 (Projected GAN): frozen weights, batch norm in eval mode in the features.
    """

    def __init__(self) -> None:
        super().__init__()
        self.feature1 = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU6())
        self.feature2 = nn.Sequential(nn.Conv2d(4, 5, 3, 2, 1), nn.BatchNorm2d(5), nn.Hardswish())
        self.mix = nn.Conv2d(5, 4, 1)
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Conv2d(4, 3, 3), nn.LeakyReLU(0.2), nn.Conv2d(3, 1, 1)) for _ in "12"
        )
        self.feature1.requires_grad_(False)
        self.feature2.requires_grad_(False)
        self.mix.requires_grad_(False)

    def train(self, mode: bool = True) -> "Projected":
        super().train(mode)
        self.feature1.eval()
        self.feature2.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        first = self.feature1(x)
        second = self.mix(self.feature2(first))
        mixed = first + F.interpolate(second, scale_factor=2.0, mode="bilinear", align_corners=True)
        maps = [head(h).flatten(1) for head, h in zip(self.heads, (mixed, second), strict=True)]
        return torch.cat(maps, dim=1)


class InfoGAN(nn.Module):
    """A shared trunk with batch norm; the logit, and the code's head beside it (Chen et al., 2016)."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Sequential(
            nn.Conv2d(3, 4, 4, 2, 1), nn.LeakyReLU(0.1), nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.LeakyReLU(0.1)
        )
        self.fc, self.logit, self.code = nn.Linear(12, 7), nn.Linear(7, 1), nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = F.leaky_relu(self.fc(self.shared(x).flatten(1)), 0.1)
        code = self.code(h)
        mean, variance = code[:, :2], code[:, 2:].exp()
        (mean, variance)
        return torch.sigmoid(self.logit(h)).squeeze()


class Sphere(nn.Module):
    """Features projected onto a sphere by the inverse stereographic map, the distance to the north pole (SphereGAN).

    Park and Kwon, 2019.
    """

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.LeakyReLU(0.2), nn.Linear(6, 4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        square = h.pow(2).sum(dim=1, keepdim=True)
        north = (square - 1) / (square + 1)
        return torch.acos(north.clamp(-1 + 1e-6, 1 - 1e-6)).view(-1)


class Distances(nn.Module):
    """A critic by distances to learned prototypes, softly the nearest (cdist, logsumexp)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.Tanh())
        self.prototypes = nn.Parameter(torch.randn(4, 5))

    def forward(self, x: Tensor) -> Tensor:
        distance = ((self.body(x)[:, None] - self.prototypes) ** 2).sum(-1)
        return -torch.logsumexp(-distance, dim=1)


class FiLM(nn.Module):
    """Features scaled and shifted by another branch that sees x too (Perez et al., 2018), standardised before."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.film, self.out = nn.Conv2d(3, 4, 3), nn.Linear(3, 8), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        h = (h - h.mean(dim=(2, 3), keepdim=True)) / (h.var(dim=(2, 3), keepdim=True, unbiased=False) + 1e-5).sqrt()
        gamma, beta = self.film(x.mean([2, 3])).chunk(2, dim=-1)
        h = F.relu((1 + gamma[:, :, None, None]) * h + beta[:, :, None, None])
        return self.out(h.mean([2, 3]))


class Moments(nn.Module):
    """Mean, standard deviation and entropy of features as statistics (texture critics), and the batch's deviation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 4, 3), nn.Linear(13, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        p = F.softmax(h.flatten(2), dim=-1)
        entropy = -(p * F.log_softmax(h.flatten(2), dim=-1)).sum(-1)
        batch = torch.std(h, dim=0).mean().expand(len(x), 1)
        return self.out(torch.cat([h.mean([2, 3]), h.std(dim=(2, 3)), entropy, batch], dim=1))


class Reweighted(nn.Module):
    """Samples weighted by a softmax over the batch (importance-weighted critics)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.ELU(), nn.Linear(6, 2))

    def forward(self, x: Tensor) -> Tensor:
        f, weight = self.body(x).unbind(1)
        return f * torch.softmax(weight, dim=0) * len(x)


def layer_normed() -> nn.Module:
    """WGAN-GP's MLP: linear layers with layer norm."""
    blocks = nn.Linear(12, 7), nn.LayerNorm(7), nn.LeakyReLU(0.2), nn.Linear(7, 6), nn.LayerNorm(6), nn.LeakyReLU(0.2)
    return nn.Sequential(nn.Flatten(), *blocks, nn.Linear(6, 1))


def response_normed() -> nn.Module:
    """AlexNet's local response norm."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.LocalResponseNorm(3, alpha=0.5, beta=0.75, k=2.0), nn.MaxPool2d(2),
        nn.Conv2d(6, 5, 3), nn.ReLU(), nn.LocalResponseNorm(2), nn.Flatten(), nn.Linear(5, 1),
    )  # fmt: skip


def snake() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(2), nn.Conv1d(3, 4, 3), Snake(4), nn.Conv1d(4, 5, 3, 2), Snake(5), nn.Flatten(), nn.Linear(60, 1)
    )


def batch_normed_mlp() -> nn.Module:
    """A perceptron with BatchNorm1d, without bias or affine weights at the second."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(12, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 5, bias=False),
        nn.BatchNorm1d(5, affine=False, momentum=None), nn.Softplus(), nn.Linear(5, 1),
    )  # fmt: skip


class Normed(nn.Module):
    """f / (1 + ‖features‖): the critic normalises itself."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.out = nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.ReLU()), nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        return self.out(h) / (1 + h.norm(dim=1, keepdim=True))


def _codes(count: int) -> Tensor:
    return noise(count, 3)


_FEW, _IMAGE, _DCGAN = (4, 3, 2, 2), (3, 3, 8, 6), (3, 3, 25, 17)
_ACTIVATIONS = {
    "silu": nn.SiLU,
    "softplus": lambda: nn.Softplus(beta=2.0),
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "gelu-tanh": lambda: nn.GELU("tanh"),
    "mish": nn.Mish,
    "tanh": nn.Tanh,
    # PyTorch rounds 1 / alpha to float32 in the derivative.
    "celu": lambda: nn.CELU(0.5),
    "selu": nn.SELU,
    "sigmoid": nn.Sigmoid,
    "softsign": nn.Softsign,
    "hardswish": nn.Hardswish,
    "log-sigmoid": nn.LogSigmoid,
    "square": lambda: Lambda(torch.square),
    "pixel-normed-softplus": lambda: nn.Sequential(nn.Softplus(), Lambda(pixel_norm)),
}
CRITICS = {
    f"convolutional-{name}": Critic(lambda a=make: convolutional(a), _IMAGE) for name, make in _ACTIVATIONS.items()
}
CRITICS |= {
    "siren": Critic(Siren, _FEW),
    "fourier-features": Critic(lambda: Siren(features=True), _FEW),
    "snake": Critic(snake, (3, 3, 4, 7)),
    "dcgan-training": Critic(dcgan, _DCGAN, training=True),
    "dcgan-training-sigmoid": Critic(lambda: dcgan().append(nn.Sigmoid()), _DCGAN, training=True),
    "dcgan-training-no-running-statistics": Critic(lambda: dcgan(track_running_stats=False), _DCGAN, training=True),
    "conditional-dcgan-training": Critic(LabelMap, _DCGAN, labels, training=True),
    "infogan": Critic(InfoGAN, _IMAGE, training=True, idle=("code", "shared.2.bias")),
    "minibatch-discrimination": Critic(MinibatchDiscrimination, _FEW),
    "pacgan": Critic(PacGAN, (4, 3, 6, 4)),
    "joint-given-code": Critic(lambda: Joint(encode=False), _FEW, _codes, training=True),
    "veegan-encoded": Critic(lambda: Joint(encode=True), _FEW, _codes),
    "ebgan": Critic(lambda: Reconstruction(2), _IMAGE),
    "began": Critic(lambda: Reconstruction(1), _IMAGE),
    "bilinear-pooling": Critic(BilinearPooling, _IMAGE),
    "bilinear-layers": Critic(BilinearLayers, _FEW),
    "fastgan": Critic(FastGAN, (3, 3, 8, 12), training=True, idle=("decoder", "down1.bias")),
    "fastgan-eval": Critic(lambda: FastGAN(glu="slices"), (3, 3, 8, 12), idle=("decoder",)),
    "projected-gan": Critic(Projected, (3, 3, 16, 12), training=True),
    "spheregan": Critic(Sphere, _FEW),
    "prototypes": Critic(Distances, _FEW),
    "film": Critic(FiLM, _IMAGE, idle=("conv.bias",)),
    "moments": Critic(Moments, _IMAGE),
    "softmax-over-the-batch": Critic(Reweighted, _FEW),
    "wgan-gp-layer-norm-mlp": Critic(layer_normed, _FEW),
    "local-response-norm": Critic(response_normed, (3, 3, 6, 7)),
    "batch-norm-mlp": Critic(batch_normed_mlp, _FEW, training=True, idle=("1.bias",)),
    "batch-norm-mlp-eval": Critic(batch_normed_mlp, _FEW),
    "self-normed": Critic(Normed, _FEW),
}
