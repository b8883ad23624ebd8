"""The settings that are worth a name: the papers' experiments, and one that a laptop finishes in minutes.

One file per paper; a preset is one entry there.
"""

import dataclasses

from gnfast.config.config import Config
from gnfast.config.papers import reported
from gnfast.config.presets import gngan, grangan, lipschitz, pgngan, sngan
from gnfast.config.presets.preset import Preset

__all__ = ["GROUPS", "PRESETS", "Preset"]

DIGITS = Preset(
    "real handwritten digits (scikit-learn); minutes on a CPU",
    Config(
        data="digits",
        resolution=16,
        channels=1,
        flip=False,
        model="small",
        z_dim=64,
        steps=3000,
        batch_g=64,
        lr_d=1e-3,
        lr_g=1e-3,
        betas=(0.5, 0.9),
        ema_decay=0.995,
        ema_start=100,
        sample_every=250,
        eval_every=500,
        extractor="digits-classifier",
        n_fake=1797,
        checkpoint_every=250,
    ),
)

GROUPS: dict[str, dict[str, Preset]] = {
    "A first look": {"digits": DIGITS},
    "GN-GAN (ICCV 2021) and Faster GN-GAN": gngan.presets(),
    "PGN-GAN (2023)": pgngan.presets(),
    "GraN-GAN (WACV 2022) and the models it compares with": grangan.presets(),
    "SN-GAN (ICLR 2018)": sngan.presets(),
    "Lipschitz regularization (ECCV 2020)": lipschitz.presets(),
}
for found in GROUPS.values():
    found.update({name: dataclasses.replace(p, reported=reported(name, p.config)) for name, p in found.items()})

PRESETS: dict[str, Preset] = {name: preset for group in GROUPS.values() for name, preset in group.items()}
