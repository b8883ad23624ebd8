"""How does Lipschitz regularization influence GAN training? (Qin et al., ECCV 2020): losses under k_SN and k_GP."""

import dataclasses

from gnfast.config.presets.preset import CIFAR10, Preset

PAPER = "paper (Qin et al., ECCV 2020)"
PUBLISHED = (
    *("data", "resolution", "method", "spectral_norm", "k_sn", "alpha", "loss", "penalty", "penalty_weight", "k_gp"),
    *("steps", "n_dis", "batch_d", "batch_g", "optimizer", "lr_d", "lr_g"),
)
CNN = dataclasses.replace(CIFAR10, model="dcgan", spectral_norm=True, optimizer="rmsprop", lr_d=5e-5, lr_g=5e-5)
DATA = {
    "mnist": ("MNIST at 32x32", {"data": "mnist", "channels": 1}),
    "cifar10": ("CIFAR-10", {}),
    "celeba": ("CelebA at 64x64", {"data": "celeba", "split": "all", "resolution": 64}),
}
# FID on CIFAR-10 with k_SN = 1.
LOSSES = {
    "ns": ("non-saturating", 15.81),
    "ls": ("least-squares", 17.30),
    "ls-centred": ("least-squares-centred", None),
    "w": ("wasserstein", 21.75),
    "cos": ("cosine", 15.88),
    "exp": ("exponential", 16.66),
}
OPEN = (
    "The networks are assumed to be the standard CNNs. The paper varies --k-sn over .2, .25, .5, 1, 5, 10, 50 (--k-gp "
    "in the -gp presets, which have a gradient penalty instead of spectral norm), and --alpha from 1e-25 to 1e11."
)


def presets() -> dict[str, Preset]:
    """Every loss on every data set, with spectral normalisation, and with a gradient penalty instead."""
    found = {}
    for data, (where, settings) in DATA.items():
        for name, (loss, fid) in LOSSES.items():
            config = dataclasses.replace(CNN, **settings, loss=loss)
            reported = f"FID {fid} (k_SN = 1)" if fid and data == "cifar10" else ""
            preset = Preset(f"{loss} loss under k_SN on {where}", config, PAPER, PUBLISHED, reported, OPEN)
            found[f"lipschitz-{data}-{name}"] = preset
            found[f"lipschitz-{data}-{name}-gp"] = preset.but(
                f"{loss} loss under k_GP on {where}", spectral_norm=False, penalty="1-gp"
            )
    return found
