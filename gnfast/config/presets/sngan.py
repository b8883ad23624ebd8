"""SN-GAN (Miyato et al., ICLR 2018): spectral normalisation, hinge and non-saturating losses, its settings A to F."""

import dataclasses

from gnfast.config.presets.preset import CIFAR10, STL10, Preset, adam

PAPER = "paper (Miyato et al., ICLR 2018)"
# What the paper states; flips, the moving average, the size of the generator's batch and sampling are not there.
PUBLISHED = (
    *("data", "resolution", "split", "model", "width", "z_dim", "method", "spectral_norm", "k_sn", "learn_scale"),
    *("loss", "steps", "n_dis", "batch_d", "optimizer", "lr_d", "lr_g", "betas"),
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
CNN = dataclasses.replace(CIFAR10, model="dcgan", spectral_norm=True, loss="hinge", **SETTINGS["C"])
RESNET = dataclasses.replace(CNN, model="sngan-resnet", betas=(0.0, 0.9), n_dis=5)
DATA = {
    "cifar10": ("CIFAR-10", {}),
    "stl10": ("STL-10 at 48x48", STL10),
}
REPORTED = {
    "cifar10-cnn": "IS 7.58, FID 25.5 (10k real, 5k generated)",
    "stl10-cnn": "IS 8.79, FID 43.2 (10k real, 5k generated)",
    "cifar10-resnet": "IS 8.22, FID 21.7 (10k real, 5k generated)",
    "stl10-resnet": "IS 9.10, FID 40.1 (10k real, 5k generated)",
}


def presets() -> dict[str, Preset]:
    """CNN and ResNet with both losses; the CNN also with each of the paper's settings, name-a to name-f."""
    found = {}
    for data, (where, settings) in DATA.items():
        cnn, resnet = f"{data}-cnn", f"{data}-resnet"
        plain = Preset(
            f"SN-GAN on {where}, CNN pair, setting C",
            dataclasses.replace(CNN, **settings),
            PAPER,
            PUBLISHED,
            REPORTED[cnn],
            "The paper varies the learning rate; the scores are of its best setting.",
        )
        found[f"sngan-{cnn}"] = plain
        found[f"sngan-{cnn}-ns"] = plain.but(f"{plain.summary}, non-saturating loss", loss="non-saturating")
        for letter, setting in SETTINGS.items():
            summary = f"SN-GAN on {where}, CNN pair, setting {letter}"
            found[f"sngan-{cnn}-{letter.lower()}"] = plain.but(summary, **setting)
        summary = f"SN-GAN on {where}, ResNet pair"
        config = dataclasses.replace(RESNET, **settings)
        found[f"sngan-{resnet}"] = Preset(summary, config, PAPER, PUBLISHED, REPORTED[resnet])
        found[f"sngan-{resnet}-ns"] = found[f"sngan-{resnet}"].but(
            f"{summary}, non-saturating loss", loss="non-saturating"
        )
    return found
