"""The settings that are worth a name: the papers' experiments, and one that a laptop finishes in minutes."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from gnfast.train.config import Config

CODE = "official code (basiclab/GNGAN-PyTorch, config/{})"
OURS = "gnfast"

# What the official code fixes for all its 32- and 48-pixel experiments; the rest of `Config` concerns this program.
PUBLISHED = (
    *("data", "resolution", "channels", "split", "flip", "model", "width", "z_dim", "method", "loss", "steps", "n_dis"),
    *("batch_d", "batch_g", "lr_d", "lr_g", "betas", "lr_decay", "ema_decay", "ema_start"),
    *("sample_every", "n_samples", "sample_bn", "eval_every", "n_fake"),
)


@dataclass(frozen=True)
class Preset:
    """A named `Config` with its origin.

    Attributes:
        summary: one line for the table.
        config: the settings.
        source: where the published settings come from.
        published: names of the settings that `source` gives; all others are gnfast's choice.
        needs: what the user has to provide, as a message, if `config.data` is empty.
    """

    summary: str
    config: Config
    source: str = OURS
    published: tuple[str, ...] = ()
    needs: str = ""

    def source_of(self, name: str) -> str:
        """Where the value of one setting comes from."""
        return self.source if name in self.published else OURS


def _gngan(summary: str, file: str, config: Config, needs: str = "") -> Preset:
    # What the user provides has no published value.
    published = tuple(name for name in PUBLISHED if config.data or name not in ("data", "split"))
    return Preset(summary, config, CODE.format(file), published, needs)


SNGAN_PAPER = "paper (Miyato et al., ICLR 2018)"
# What the paper states; flips, the moving average, the size of the generator's batch and sampling are not there.
SNGAN_PUBLISHED = (
    *("data", "resolution", "split", "model", "width", "z_dim", "method", "spectral_norm", "k_sn", "learn_scale"),
    *("loss", "steps", "n_dis", "batch_d", "lr_d", "lr_g", "betas"),
)
# Table 1 of the paper: learning rate, β₁, β₂, n_dis.
SNGAN_SETTINGS = {
    "a": (1e-4, 0.5, 0.9, 5),
    "b": (1e-4, 0.5, 0.999, 1),
    "c": (2e-4, 0.5, 0.999, 1),
    "d": (1e-3, 0.5, 0.9, 5),
    "e": (1e-3, 0.5, 0.999, 5),
    "f": (1e-3, 0.9, 0.999, 5),
}


def _sngan(summary: str, config: Config, needs: str = "", **changes: Any) -> Preset:
    published = tuple(name for name in SNGAN_PUBLISHED if config.data or name not in ("data", "split"))
    return Preset(summary, dataclasses.replace(config, **changes), SNGAN_PAPER, published, needs)


def _sngan_settings(name: str, summary: str, config: Config, needs: str = "") -> dict[str, Preset]:
    """The preset under its own name with setting C, and under name-a to name-f with each of the paper's settings."""
    presets = {name: _sngan(f"{summary}, setting C", config, needs)}
    for letter, (rate, beta1, beta2, n_dis) in SNGAN_SETTINGS.items():
        changes = {"lr_d": rate, "lr_g": rate, "betas": (beta1, beta2), "n_dis": n_dis}
        presets[f"{name}-{letter}"] = _sngan(f"{summary}, setting {letter.upper()}", config, needs, **changes)
    return presets


CIFAR10_CNN = Config(data="cifar10", resolution=32, model="dcgan", loss="non-saturating")
CIFAR10_RESNET = dataclasses.replace(CIFAR10_CNN, model="resnet", loss="hinge", lr_d=4e-4, n_dis=5, lr_decay="linear")
STL10 = {"data": "", "resolution": 48}
SNGAN_CIFAR10_CNN = Config(
    data="cifar10",
    resolution=32,
    flip=False,
    model="dcgan",
    method="none",
    spectral_norm=True,
    loss="hinge",
    steps=100_000,
    batch_d=64,
    batch_g=64,
    lr_d=2e-4,
    lr_g=2e-4,
    betas=(0.5, 0.999),
    ema_decay=0.0,
)
SNGAN_CIFAR10_RESNET = dataclasses.replace(SNGAN_CIFAR10_CNN, model="sngan-resnet", betas=(0.0, 0.9), n_dis=5)
STL10_NEEDS = (
    "--data: give a folder, zip or tar with the 100,000 images of STL-10's `unlabeled` part, which are resized to 48x48"
)

PRESETS: dict[str, Preset] = {
    "digits": Preset(
        "real handwritten digits (scikit-learn); minutes on a CPU",
        Config(
            data="digits",
            resolution=16,
            channels=1,
            flip=False,
            model="small",
            z_dim=64,
            loss="hinge",
            steps=3000,
            batch_d=64,
            batch_g=64,
            lr_d=1e-3,
            lr_g=1e-3,
            betas=(0.5, 0.9),
            ema_decay=0.995,
            ema_start=100,
            sample_every=250,
            n_samples=64,
            eval_every=500,
            extractor="digits-classifier",
            n_fake=1797,
            checkpoint_every=250,
        ),
    ),
    "gngan-cifar10-cnn": _gngan("GN-GAN on CIFAR-10, CNN pair", "GN-GAN_CIFAR10_CNN.txt", CIFAR10_CNN),
    "gngan-cifar10-resnet": _gngan("GN-GAN on CIFAR-10, ResNet pair", "GN-GAN_CIFAR10_RES.txt", CIFAR10_RESNET),
    "gngan-stl10-cnn": _gngan(
        "GN-GAN on STL-10 at 48x48, CNN pair",
        "GN-GAN_STL10_CNN.txt",
        dataclasses.replace(CIFAR10_CNN, **STL10),
        STL10_NEEDS,
    ),
    "gngan-stl10-resnet": _gngan(
        "GN-GAN on STL-10 at 48x48, ResNet pair",
        "GN-GAN_STL10_RES.txt",
        dataclasses.replace(CIFAR10_RESNET, **STL10),
        STL10_NEEDS,
    ),
    **_sngan_settings("sngan-cifar10-cnn", "SN-GAN on CIFAR-10, CNN pair", SNGAN_CIFAR10_CNN),
    "sngan-cifar10-resnet": _sngan("SN-GAN on CIFAR-10, ResNet pair", SNGAN_CIFAR10_RESNET),
    **_sngan_settings(
        "sngan-stl10-cnn",
        "SN-GAN on STL-10 at 48x48, CNN pair",
        dataclasses.replace(SNGAN_CIFAR10_CNN, **STL10),
        STL10_NEEDS,
    ),
    "sngan-stl10-resnet": _sngan(
        "SN-GAN on STL-10 at 48x48, ResNet pair",
        dataclasses.replace(SNGAN_CIFAR10_RESNET, **STL10),
        STL10_NEEDS,
    ),
}
