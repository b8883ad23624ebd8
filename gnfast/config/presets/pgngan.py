"""PGN-GAN (Xia, 2023) with and without consistency regularisation, as its code has it and as its paper says."""

import dataclasses

from gnfast.config.presets import gngan
from gnfast.config.presets.preset import Preset

CODE = "official code (sumorday/EDGAN-PyTorch)"
PAPER = "paper (Xia, 2023)"
REPORTED = {
    "cifar10-cnn": "IS 7.83, FID 18.675 (train)",
    "cifar10-resnet": "IS 8.506, FID 11.597 (train)",
    "cifar10-biggan": "",
    "stl10-cnn": "IS 9.340, FID 27.378",
    "stl10-resnet": "IS 9.895, FID 23.588",
    "celebahq-128": "FID 14.66",
    "celebahq-256": "FID 6.186",
    "church-256": "",
    "cifar10-cnn-cr": "IS 8.12, FID 18.938 (train)",
    "cifar10-resnet-cr": "IS 8.909, FID 9.079 (train)",
    "cifar10-biggan-cr": "IS 9.471, FID 5.495 (train)",
    "stl10-cnn-cr": "IS 9.207, FID 26.758",
    "stl10-resnet-cr": "IS 9.800, FID 21.803",
}
OPEN = (
    "Code and Algorithm 1 have ‖1 - ∇f‖ in the denominator (--method pgn), Table I and the proof ‖∇f‖ (--method "
    "pgn-table); the bound on the gradient is proved for the latter. The scores do not say which."
)


def presets() -> dict[str, Preset]:
    """PGN-GAN's experiments by name; those that end in -paper take the paper's side where it differs from the code."""
    found = {}
    for name, (what, _) in gngan.EXPERIMENTS.items():
        found |= gngan.experiment("pgngan", "PGN-GAN", name, CODE, REPORTED, OPEN, method="pgn")
        if name in gngan.UNCONDITIONAL:
            changes = {"method": "pgn-table", "loss": "hinge", "init": "kaiming-normal"}
            if name.startswith("stl10"):
                changes["steps"] = 500_000
            by_paper = dataclasses.replace(found[f"pgngan-{name}"], source=PAPER)
            found[f"pgngan-{name}-paper"] = by_paper.but(
                f"PGN-GAN as its paper says on {what}", reported=REPORTED[name], **changes
            )
    return found
