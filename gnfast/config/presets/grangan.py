"""GraN-GAN (Bhaskara et al., WACV 2022), GraND and GraNC, and the models that it compares them with."""

import dataclasses

from gnfast.config.presets.preset import CIFAR10, STL10, Preset, adam

PAPER = "paper (Bhaskara et al., WACV 2022)"
PUBLISHED = (
    *("data", "resolution", "model", "width", "z_dim", "method", "spectral_norm", "loss", "penalty", "penalty_weight"),
    *("k_gp", "steps", "n_dis", "batch_d", "batch_g", "optimizer", "lr_d", "lr_g", "betas", "lr_decay", "flip"),
    *("ema_decay", "n_fake"),
)
NSGAN = dataclasses.replace(CIFAR10, model="mimicry-resnet", lr_d=2e-4, lr_g=2e-4, lr_decay="linear", n_dis=5)
LARGE = {"resolution": 128, "n_dis": 2, "lr_decay": "none"}
DATA = {
    "cifar10": ("CIFAR-10", {}),
    "cifar100": ("CIFAR-100", {"data": "cifar100"}),
    "stl10": ("STL-10 at 48x48", STL10),
    "bedroom-128": ("LSUN bedroom at 128x128", {"data": "lsun-bedroom", "crop": 256, **LARGE}),
    "celeba-128": ("CelebA at 128x128", {"data": "celeba", "split": "all", **LARGE}),
}
K = 0.83
METHODS = {
    "grand": ("GraND", {"method": "gran"}),
    "granc": ("GraNC", {"method": "gran", "loss": "soft-hinge"}),
    "nsgan": ("NSGAN", {}),
    "nsgan-gp": ("NSGAN-GP", {"penalty": "1-gp"}),
    "nsgan-sn": ("NSGAN-SN", {"spectral_norm": True}),
    "wgan-gp": ("WGAN-GP", {"loss": "wasserstein", "penalty": "1-gp"}),
    "sngan-mimicry": ("SNGAN", {"loss": "hinge", "spectral_norm": True}),
}
# FID with 50k generated and 50k real images.
REPORTED = {
    "nsgan": (23.750, 30.842, 44.179, None, None),
    "nsgan-gp": (15.813, None, 38.848, None, None),
    "nsgan-sn": (20.998, 25.564, 38.669, 74.926, 14.33),
    "grand": (14.965, 18.978, 35.226, 10.795, 9.377),
    "wgan-gp": (22.927, 27.231, 42.170, 13.562, None),
    "sngan-mimicry": (17.107, 20.739, 38.218, 13.237, 13.466),
    "granc": (16.361, 19.131, 35.770, 12.533, 12.000),
}
# Robustness (Fig. 2 of the paper).
SETTINGS = {
    "A": adam(1e-4, 0.5, 0.9, 5),
    "B": adam(2e-4, 0.5, 0.999, 1),
    "C": adam(1e-3, 0.5, 0.999, 5),
    "D": adam(1e-3, 0.9, 0.999, 5),
    "E": adam(2e-4, 0.0, 0.9, 5),
}
OPEN = "ε, and τ beyond CIFAR-10's 1 / 0.83, are in a supplement that is not at hand: 0.1 and the same τ are assumed."


def presets() -> dict[str, Preset]:
    """Every method on every data set of the paper's tables, and its robustness settings A to E on CIFAR-10."""
    found = {}
    for name, (title, changes) in METHODS.items():
        for (data, (where, settings)), fid in zip(DATA.items(), REPORTED[name], strict=True):
            gran = {"tau": 1 / K} if "method" in changes else {}
            config = dataclasses.replace(NSGAN, **settings, **changes, **gran)
            published = (*PUBLISHED, "tau") if gran and data == "cifar10" else PUBLISHED
            reported = "" if fid is None else f"FID {fid} (50k)"
            found[f"{name}-{data}"] = Preset(
                f"{title} on {where}", config, PAPER, published, reported, OPEN if gran else ""
            )
        for letter, setting in SETTINGS.items():
            summary = f"{title} on CIFAR-10, robustness setting {letter}"
            found[f"{name}-cifar10-{letter.lower()}"] = found[f"{name}-cifar10"].but(summary, **setting)
    return found
