"""SN-GAN (Miyato et al., ICLR 2018): spectral normalisation and the methods that it is compared with."""

import dataclasses
from typing import Any

from gnfast.config.presets.preset import CIFAR10, OURS, STL10, Preset, adam

PAPER = "paper (Miyato et al., ICLR 2018)"
# What the paper states. It has no sizes of batches, no flips, no moving average, and no part of STL-10.
PUBLISHED = (
    *("data", "resolution", "channels", "model", "width", "width_g", "z_dim", "classes", "method", "spectral_norm"),
    *("k_sn", "learn_scale", "weight_norm", "weight_clip", "norm_d", "orthonormal", "loss", "penalty"),
    *("penalty_weight", "k_gp", "steps", "n_dis", "optimizer", "lr_d", "lr_g", "betas", "n_fake", "n_real"),
)
# Table 1 of the paper.
SETTINGS = {
    "A": adam(1e-4, 0.5, 0.9, 5),
    "B": adam(1e-4, 0.5, 0.999, 1),
    "C": adam(2e-4, 0.5, 0.999, 1),
    "D": adam(1e-3, 0.5, 0.9, 5),
    "E": adam(1e-3, 0.5, 0.999, 5),
    "F": adam(1e-3, 0.9, 0.999, 5),
}
SN: dict[str, Any] = {"spectral_norm": True}
ORTHONORMAL: dict[str, Any] = {"orthonormal": 1.0, "init_d": "orthogonal"}
GP: dict[str, Any] = {"penalty": "1-gp"}
# By name: title, the setting of its row of Table 2, and what it changes.
METHODS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "cnn": ("SN-GAN", "B", SN),
    "weight-clip": ("weight clipping", "C", {"weight_clip": 0.01}),
    "gan-gp": ("GAN-GP", "A", GP),
    "wgan-gp": ("WGAN-GP", "A", GP | {"loss": "wasserstein"}),
    "batch-norm": ("batch normalisation", "C", {"norm_d": "batch"}),
    "layer-norm": ("layer normalisation", "C", {"norm_d": "layer"}),
    "weight-norm": ("weight normalisation", "C", {"weight_norm": "unit"}),
    "orthonormal": ("orthonormal regularisation", "C", ORTHONORMAL),
}
CNN = dataclasses.replace(CIFAR10, model="sngan-cnn", n_fake=5000, n_real=10_000)
RESNET = dataclasses.replace(CNN, model="sngan-resnet", loss="hinge", **adam(2e-4, 0.0, 0.9, 5))
# The generator of Gulrajani et al. (2017) has half the feature maps (App. B.2).
GULRAJANI = dataclasses.replace(RESNET, model="gulrajani-resnet", width_g=0.5, **METHODS["wgan-gp"][2])
IMAGENET = dataclasses.replace(
    RESNET, data="", resolution=128, classes=1000, steps=450_000, lr_decay="linear", lr_decay_start=400_000
)
DATA: dict[str, tuple[str, dict[str, Any]]] = {"cifar10": ("CIFAR-10", {}), "stl10": ("STL-10 at 48x48", STL10)}
IMAGENET_PAIRS: dict[str, tuple[str, dict[str, Any]]] = {
    "": ("label by concatenation", {"model": "sngan-concat"}),
    "-projection": ("projection discriminator", {"model": "sngan-projection"}),
    "-unconditional": ("without labels", {"classes": 0}),
}
RESNETS: dict[str, tuple[str, dict[str, Any]]] = {
    "": ("", SN),
    "-orthonormal": (", orthonormal regularisation", ORTHONORMAL),
    "-ns": (", non-saturating loss", SN | {"loss": "non-saturating"}),
}
BATCH = "The paper does not give the sizes of the batches."
ROWS = (
    f"{BATCH} A row of Table 2 is the best of settings A to F. The paper says which only of SN-GAN (B, footnote 4) and "
    "orthonormal regularisation (C, Fig. 4); A is assumed with a gradient penalty, C for the others."
)
DECAY = dict.fromkeys(("lr_decay", "lr_decay_start"), PAPER)
NEEDS = "--data: give the folder, zip or tar of ImageNet's training images in one folder per class"


def presets() -> dict[str, Preset]:
    """Rows of Table 2; each method with the CNN in settings A to F, name-a to name-f; ResNets; ImageNet; WGAN-GP's."""
    found: dict[str, Preset] = {}

    def add(name: str, summary: str, config: Any, open: str = BATCH, **more: Any) -> None:
        # Of first weights the paper has orthonormal regularisation's alone.
        published = (*PUBLISHED, "init_d") if config.orthonormal else PUBLISHED
        found[f"sngan-{name}"] = Preset(summary, config, PAPER, published, open=open, **more)

    for data, (where, settings) in DATA.items():
        # STL-10's row with the hinge loss has twice the updates.
        hinge = {"loss": "hinge", "steps": 200_000 if data == "stl10" else 100_000, **SETTINGS["B"]}
        add(f"{data}-cnn", f"SN-GAN on {where}, CNN pair", dataclasses.replace(CNN, **settings, **SN, **hinge), ROWS)
        for name, (title, best, changes) in METHODS.items():
            row = f"{data}-cnn-ns" if name == "cnn" else f"{data}-{name}"
            for key, letter in [(row, best), *((f"{data}-{name}-{letter.lower()}", letter) for letter in SETTINGS)]:
                config = dataclasses.replace(CNN, **settings, **changes, **SETTINGS[letter])
                add(key, f"{title} on {where}, CNN pair, setting {letter}", config, ROWS if key == row else BATCH)
        for name, (words, changes) in RESNETS.items():
            config = dataclasses.replace(RESNET, **settings, **changes)
            # The paper trains its ResNets with the hinge loss alone.
            own = {"elsewhere": {"loss": OURS}} if config.loss != "hinge" else {}
            add(f"{data}-resnet{name}", f"SN-GAN's ResNet pair on {where}{words}", config, **own)
    for pair, (title, model) in IMAGENET_PAIRS.items():
        for name in ("", "-orthonormal"):
            words, changes = RESNETS[name]
            config = dataclasses.replace(IMAGENET, **model, **changes)
            summary = f"SN-GAN's ResNet pair on ImageNet at 128x128, {title}{words}"
            add(f"imagenet-128{pair}{name}", summary, config, needs=NEEDS, elsewhere=DECAY)
    assumed = f"{BATCH} The factor of the classification loss is Gulrajani et al.'s: 1, and a tenth for the generator."
    add("cifar10-wgan-gp-resnet", "WGAN-GP on CIFAR-10, ResNet pair of Gulrajani et al.", GULRAJANI)
    labelled = dataclasses.replace(GULRAJANI, model="sngan-ac", classes=10, auxiliary=1.0)
    add("cifar10-ac-wgan-gp", "AC-WGAN-GP on CIFAR-10, ResNet pair, 10 classes", labelled, assumed)
    return found
