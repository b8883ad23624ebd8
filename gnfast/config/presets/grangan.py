"""GraN-GAN (Bhaskara et al., WACV 2022), GraND and GraNC, and the models that it compares them with."""

import dataclasses
from typing import Any

from gnfast.config.presets.preset import CIFAR10, OURS, STL10, Preset, adam

PAPER = "paper (Bhaskara et al., WACV 2022)"
MIMICRY = "code (kwotsin/mimicry), which the paper uses"
PUBLISHED = (
    *("data", "resolution", "method", "spectral_norm", "loss", "penalty", "k_gp", "steps", "n_dis", "batch_d"),
    *("optimizer", "lr_d", "lr_g", "betas", "adam_eps", "n_fake"),
)
BY_MIMICRY = ("split", "crop", "flip", "model", "width", "z_dim", "penalty_weight", "batch_g", "lr_decay", "ema_decay")
# The paper has these for CIFAR-10 alone.
RATES = ("n_dis", "lr_d", "lr_g")
NSGAN = dataclasses.replace(CIFAR10, model="mimicry-resnet", lr_d=2e-4, lr_g=2e-4, lr_decay="linear", n_dis=5)
DATA = {
    "cifar10": ("CIFAR-10", {}),
    "cifar100": ("CIFAR-100", {"data": "cifar100"}),
    "stl10": ("STL-10 at 48x48", STL10),
    "bedroom-128": (
        "LSUN bedroom at 128x128",
        {"data": "lsun-bedroom", "crop": 256, "resolution": 128, "n_dis": 2},
    ),
    "celeba-128": (
        "CelebA at 128x128",
        {"data": "celeba", "split": "all", "resolution": 128, "n_dis": 2, "lr_decay": "none"},
    ),
}
K = 0.83
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "grand": ("GraND", {"method": "gran", "tau": 1 / K}),
    "granc": ("GraNC", {"method": "gran", "tau": 1 / K, "loss": "soft-hinge"}),
    "nsgan": ("NSGAN", {}),
    "nsgan-gp": ("NSGAN-GP", {"penalty": "1-gp"}),
    "nsgan-sn": ("NSGAN-SN", {"spectral_norm": True}),
    "wgan-gp": ("WGAN-GP", {"loss": "wasserstein", "penalty": "1-gp"}),
    "sngan-mimicry": ("SNGAN", {"loss": "hinge", "spectral_norm": True}),
}
# The rows with †: another Lipschitz constant than 1. With Adam, a factor K on f is L(Kx) / K together with ε / K.
TUNED = {"penalty": {"k_gp": K}, "spectral_norm": {"alpha": K, "adam_eps": 1e-8 / K}}
# Robustness (Fig. 2 of the paper).
SETTINGS = {
    "A": adam(1e-4, 0.5, 0.9, 5),
    "B": adam(2e-4, 0.5, 0.999, 1),
    "C": adam(1e-3, 0.5, 0.999, 5),
    "D": adam(1e-3, 0.9, 0.999, 5),
    "E": adam(2e-4, 0.0, 0.9, 5),
}
OPEN = (
    "ε, and τ beyond CIFAR-10's 1 / 0.83, are in the supplement, which was not available: 0.1 and the same τ are "
    "assumed."
)
OPEN_TUNED = "K is in the supplement, which was not available: GraN's 0.83 on CIFAR-10 is assumed."


def presets() -> dict[str, Preset]:
    """Every method on every data set of the paper's tables, and its robustness settings A to E on CIFAR-10.

    Names with -k have a tuned Lipschitz constant (†).
    """
    found = {}
    for name, (title, changes) in METHODS.items():
        for data, (where, settings) in DATA.items():
            config = dataclasses.replace(NSGAN, **settings, **changes)
            published, elsewhere = PUBLISHED, (*BY_MIMICRY, *(RATES if data != "cifar10" else ()))
            if "tau" in changes and data == "cifar10":
                published = (*PUBLISHED, "tau")
            origins = dict.fromkeys(elsewhere, MIMICRY)
            open = OPEN if "tau" in changes else ""
            plain = Preset(f"{title} on {where}", config, PAPER, published, open=open, elsewhere=origins)
            found[f"{name}-{data}"] = plain
            for kind in changes.keys() & TUNED.keys():
                tuned = plain.but(f"{title} with a tuned Lipschitz constant on {where}", source=OURS, **TUNED[kind])
                found[f"{name}-k-{data}"] = dataclasses.replace(tuned, open=OPEN_TUNED)
        for letter, setting in SETTINGS.items():
            summary = f"{title} on CIFAR-10, robustness setting {letter}"
            found[f"{name}-cifar10-{letter.lower()}"] = found[f"{name}-cifar10"].but(summary, **setting)
    return found
