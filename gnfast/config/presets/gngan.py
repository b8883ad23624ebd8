"""GN-GAN (Wu et al., ICCV 2021) with and without consistency regularisation, what it compares with, its follow-up."""

import dataclasses
from typing import Any

from gnfast.config.config import Config
from gnfast.config.presets.preset import OURS, STL10, Preset

PAPER = "paper (Wu et al., ICCV 2021)"
CODE = "official code (basiclab/GNGAN-PyTorch)"
FASTER_CODE = "official code (basiclab/Faster-GNGAN-PyTorch)"
# What the official code fixes; the rest of `Config` concerns this program.
PUBLISHED = (
    *("data", "resolution", "channels", "split", "flip", "model", "width", "z_dim", "classes", "method", "loss"),
    *("steps", "n_dis", "batch_d", "batch_g", "optimizer", "lr_d", "lr_g", "betas", "lr_decay", "ema_decay"),
    *("ema_start", "consistency", "sample_every", "n_samples", "sample_bn", "eval_every", "n_fake"),
)

CIFAR10_CNN = Config(data="cifar10", resolution=32, model="dcgan", loss="non-saturating")
CIFAR10_RESNET = dataclasses.replace(CIFAR10_CNN, model="resnet", loss="hinge", lr_d=4e-4, n_dis=5, lr_decay="linear")
CIFAR10_BIGGAN = dataclasses.replace(
    CIFAR10_CNN,
    model="biggan",
    classes=10,
    loss="hinge",
    lr_g=1e-4,
    betas=(0.0, 0.999),
    n_dis=4,
    batch_d=50,
    batch_g=50,
    steps=125_000,
    ema_start=1000,
)
STL10_CNN = dataclasses.replace(CIFAR10_CNN, **STL10)
STL10_RESNET = dataclasses.replace(CIFAR10_RESNET, **STL10)
CELEBAHQ_128 = dataclasses.replace(
    CIFAR10_RESNET,
    data="celebahq",
    resolution=128,
    lr_d=2e-4,
    lr_decay="none",
    steps=100_000,
    ema_start=10_000,
    eval_every=1000,
    n_fake=3000,
    eval_split="test",
)
CELEBAHQ_256 = dataclasses.replace(CELEBAHQ_128, split="all", resolution=256, n_fake=10_000, eval_split="")
CHURCH_256 = dataclasses.replace(CELEBAHQ_256, data="lsun-church", split="train", ema_start=20_000)

UNCONDITIONAL = {
    "cifar10-cnn": ("CIFAR-10, CNN pair", CIFAR10_CNN),
    "cifar10-resnet": ("CIFAR-10, ResNet pair", CIFAR10_RESNET),
    "stl10-cnn": ("STL-10 at 48x48, CNN pair", STL10_CNN),
    "stl10-resnet": ("STL-10 at 48x48, ResNet pair", STL10_RESNET),
}
LARGE = {
    "celebahq-128": ("CelebA-HQ at 128x128", CELEBAHQ_128),
    "celebahq-256": ("CelebA-HQ at 256x256", CELEBAHQ_256),
    "church-256": ("LSUN church at 256x256", CHURCH_256),
}
EXPERIMENTS = {**UNCONDITIONAL, "cifar10-biggan": ("CIFAR-10, BigGAN pair, 10 classes", CIFAR10_BIGGAN), **LARGE}
OPEN = "The paper reports the mean of five seeds, each at its best FID."
OPEN_CNN = (
    f"{OPEN} It says that its CNN is SN-GAN's, whose Table 3 has another critic than GN-GAN's code (--model sngan-cnn)."
)
ASSUMED = "The paper does not give this experiment's settings: those of GN-GAN in its code are assumed."
# In place of GN on the same networks: what the paper says, and what is assumed. The critic's learning rate is the
# generator's, from which the paper raises it for GN; five critic updates are those of Gulrajani et al. (2017).
BASELINES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "sn": ("SN-GAN", {"spectral_norm": True}, {"loss": "hinge"}),
    "wgan-gp": ("WGAN-GP", {"loss": "wasserstein", "penalty": "1-gp"}, {"n_dis": 5}),
    "gan": ("GAN", {"loss": "non-saturating"}, {}),
}


def presets() -> dict[str, Preset]:
    """GN-GAN's experiments by name, what it compares with, and those of its follow-up."""
    found = {}
    for name in EXPERIMENTS:
        found |= experiment("gngan", "GN-GAN", name, CODE, OPEN_CNN if name.endswith("cnn") else OPEN)
    return found | _baselines(found) | _layered(found["gngan-cifar10-cnn"]) | _faster()


def experiment(family: str, title: str, name: str, source: str, open: str, **changes: Any) -> dict[str, Preset]:
    """An experiment, and the same with consistency regularisation where the code has that."""
    what, config = EXPERIMENTS[name]
    plain = Preset(f"{title} on {what}", dataclasses.replace(config, **changes), source, PUBLISHED, open=open)
    return _with_consistency(f"{family}-{name}", plain)


def _with_consistency(name: str, plain: Preset, source: str = "") -> dict[str, Preset]:
    if plain.config.data in ("celebahq", "lsun-church"):
        return {name: plain}
    summary = f"{plain.summary}, with consistency regularisation"
    return {name: plain, f"{name}-cr": plain.but(summary, source=source, consistency=5.0)}


def _baselines(gn: dict[str, Preset]) -> dict[str, Preset]:
    """SN-GAN on the networks of every experiment, WGAN-GP and GAN on those of Table 3."""
    found = {}
    for name, (what, config) in EXPERIMENTS.items():
        for key, (title, told, assumed) in BASELINES.items():
            if key != "sn" and name not in UNCONDITIONAL:
                continue
            summary = f"{title} on {what}, for comparison with GN-GAN"
            rate = {"lr_d": config.lr_g} if config.lr_d != config.lr_g else {}
            plain = gn[f"gngan-{name}"].but(summary, source=PAPER, method="none", **rate, **told)
            plain = dataclasses.replace(plain.but(summary, source=OURS, **assumed), open=ASSUMED)
            whole = f"gngan-{name}-{key}"
            found |= _with_consistency(whole, plain, OURS) if key == "sn" else {whole: plain}
    return found


def _layered(cnn: Preset) -> dict[str, Preset]:
    """Figure 3: the Wasserstein loss with plain networks of n layers (--model layered-n), and SN in place of GN."""
    gn = cnn.but("GN-GAN on CIFAR-10, plain networks, Wasserstein loss", source=PAPER, loss="wasserstein")
    gn = dataclasses.replace(gn.but(gn.summary, source=OURS, model="layered-3"), open=ASSUMED)
    sn = gn.but("SN-GAN on CIFAR-10, plain networks, Wasserstein loss", method="none", spectral_norm=True)
    return {"gngan-cifar10-layered": gn, "gngan-cifar10-layered-sn": sn}


def _faster() -> dict[str, Preset]:
    switch = "The code leaves the rescaling to a switch; --rescale none and glorot are its other positions."

    def faster(what: str, config: Config, open: str = switch, needs: str = "", **changes: Any) -> Preset:
        config = dataclasses.replace(config, rescale="initial", **changes)
        published = (*PUBLISHED, "rescale", "init")
        return Preset(f"Faster GN-GAN on {what}", config, FASTER_CODE, published, open=open, needs=needs)

    found = {f"faster-gngan-{name}": faster(what, config) for name, (what, config) in EXPERIMENTS.items()}
    for scene in ("bedroom", "horse"):
        found[f"faster-gngan-{scene}-256"] = faster(f"LSUN {scene} at 256x256", CHURCH_256, data=f"lsun-{scene}")
    imagenet = {
        "needs": "--data: give the folder, zip or tar of ImageNet's training images in one folder per class",
        "data": "",
        "classes": 1000,
        "model": "biggan-faster",
        "steps": 100_000,
        "ema_start": 20_000,
    }
    as_published = {"resolution": 64, "z_dim": 120, "batch_d": 128, "batch_g": 128, "lr_d": 4e-4}
    assumed = "The batch size and the decay of this experiment are taken from CIFAR-10's."
    return found | {
        "faster-gngan-imagenet-64": faster(
            "ImageNet at 64x64, BigGAN pair", CIFAR10_BIGGAN, **imagenet, **as_published
        ),
        "faster-gngan-imagenet-128": faster(
            "ImageNet at 128x128, BigGAN pair", CIFAR10_BIGGAN, assumed, **imagenet, resolution=128
        ),
    }
