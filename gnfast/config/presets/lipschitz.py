"""How does Lipschitz regularization influence GAN training? (Qin et al., ECCV 2020): losses under k_SN and k_GP."""

import dataclasses

from gnfast.config.presets.preset import CIFAR10, Preset

PAPER = "paper (Qin et al., ECCV 2020)"
PUBLISHED = (
    *("data", "resolution", "method", "spectral_norm", "k_sn", "alpha", "loss", "penalty", "penalty_weight", "k_gp"),
    *("steps", "n_dis", "batch_d", "batch_g", "optimizer", "lr_d", "lr_g"),
)
# At width 2 its convolutions have DCGAN's 128, 256 and 512 channels.
CNN = dataclasses.replace(
    CIFAR10,
    model="layered-3",
    width=2.0,
    activation="leaky-relu",
    spectral_norm=True,
    optimizer="rmsprop",
    lr_d=5e-5,
    lr_g=5e-5,
)
DATA = {
    "mnist": ("MNIST at 32x32", {"data": "mnist", "channels": 1}),
    "cifar10": ("CIFAR-10", {}),
    "celeba": ("CelebA at 64x64", {"data": "celeba", "split": "all", "resolution": 64}),
}
LOSSES = {
    "ns": "non-saturating",
    "ls": "least-squares",
    "ls-centred": "least-squares-centred",
    "w": "wasserstein",
    "cos": "cosine",
    "exp": "exponential",
}
OPEN = (
    "The networks are in the supplement, which was not available; the text says standard CNNs, and K ≈ k_SN⁴. Assumed: "
    "three convolutions and a linear layer. The paper varies --k-sn, --k-gp (in the -gp presets) and --alpha. Of "
    "RMSProp it gives the learning rate alone."
)


def presets() -> dict[str, Preset]:
    """Every loss on every data set, with spectral normalisation, and with a gradient penalty instead."""
    found = {}
    for data, (where, settings) in DATA.items():
        for name, loss in LOSSES.items():
            config = dataclasses.replace(CNN, **settings, loss=loss)
            preset = Preset(f"{loss} loss under k_SN on {where}", config, PAPER, PUBLISHED, open=OPEN)
            found[f"lipschitz-{data}-{name}"] = preset
            found[f"lipschitz-{data}-{name}-gp"] = preset.but(
                f"{loss} loss under k_GP on {where}", spectral_norm=False, penalty="1-gp"
            )
    return found
