"""GN-GAN (Wu et al., ICCV 2021) with and without consistency regularisation, and its faster follow-up."""

import dataclasses
from typing import Any

from gnfast.config.config import Config
from gnfast.config.presets.preset import STL10, Preset

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
REPORTED = {
    "cifar10-cnn": "IS 7.71, FID 19.31 (train), 23.52 (test)",
    "cifar10-resnet": "IS 8.49, FID 11.13 (train), 15.33 (test)",
    "cifar10-biggan": "IS 9.22, FID 10.05 (test)",
    "stl10-cnn": "IS 9.00, FID 30.18 (50k), 32.41 (10k)",
    "stl10-resnet": "IS 9.60, FID 26.14 (50k), 28.12 (10k)",
    "celebahq-128": "FID 14.78 (3k, images 27001 to 30000)",
    "celebahq-256": "FID 7.67 (10k, all images)",
    "church-256": "FID 5.405 (10k)",
    "cifar10-cnn-cr": "IS 8.04, FID 18.59 (train), 22.89 (test)",
    "cifar10-resnet-cr": "IS 8.72, FID 9.55 (train), 13.71 (test)",
    "cifar10-biggan-cr": "IS 9.35, FID 4.86 (train)",
    "stl10-cnn-cr": "IS 9.00, FID 27.61 (50k), 29.53 (10k)",
    "stl10-resnet-cr": "IS 9.74, FID 23.62 (50k), 25.80 (10k)",
}
OPEN = (
    "The paper reports the best of the evaluations over five seeds. SN-GAN's CNN critic (its Table 3, "
    "--model sngan-cnn) is narrower than the one of GN-GAN's code."
)


def presets() -> dict[str, Preset]:
    """GN-GAN's experiments by name, then those of its follow-up."""
    found = {}
    for name in EXPERIMENTS:
        found |= experiment("gngan", "GN-GAN", name, CODE, REPORTED, OPEN)
    return found | _faster()


def experiment(
    family: str, title: str, name: str, source: str, reported: dict[str, str], open: str, **changes: Any
) -> dict[str, Preset]:
    """An experiment, and the same with consistency regularisation where the code has that."""
    what, config = EXPERIMENTS[name]
    config = dataclasses.replace(config, **changes)
    plain = Preset(f"{title} on {what}", config, source, PUBLISHED, reported[name], open)
    if name in LARGE:
        return {f"{family}-{name}": plain}
    summary = f"{title} with consistency regularisation on {what}"
    regularised = plain.but(summary, reported=reported[f"{name}-cr"], consistency=5.0)
    return {f"{family}-{name}": plain, f"{family}-{name}-cr": regularised}


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
