"""PGN-GAN (Xia, 2023) with and without consistency regularisation, as its code has it and as its paper says."""

from gnfast.config.presets import gngan
from gnfast.config.presets.preset import Preset

CODE = "official code (sumorday/EDGAN-PyTorch)"
PAPER = "paper (Xia, 2023)"
OPEN = (
    "Code and Algorithm 1 have ‖1 - ∇f‖ in the denominator (--method pgn), Table I and the proof ‖∇f‖ (--method "
    "pgn-table); the bound on the gradient is proved for the latter. The scores do not say which; they stand with the "
    "presets that end in -paper."
)
# What the text has and its code has not, without labels and with; the loss on CIFAR-10 and STL-10. It has no LSUN.
BY_PAPER = {"method": "pgn-table", "init": "kaiming-normal"}
BY_PAPER_BIGGAN = {"method": "pgn-table"}


def presets() -> dict[str, Preset]:
    """PGN-GAN's experiments by name; those that end in -paper take the paper's side where it differs from the code."""
    found = {}
    for name in gngan.EXPERIMENTS:
        by_code = gngan.experiment("pgngan", "PGN-GAN", name, CODE, OPEN, method="pgn")
        changes = BY_PAPER_BIGGAN if name == "cifar10-biggan" else BY_PAPER
        if name in gngan.UNCONDITIONAL:
            changes = {**changes, "loss": "hinge"} | ({"steps": 500_000} if name.startswith("stl10") else {})
        found |= by_code
        for whole, preset in by_code.items() if name != "church-256" else ():
            found[f"{whole}-paper"] = preset.but(f"{preset.summary}, as its paper says", source=PAPER, **changes)
    return found
