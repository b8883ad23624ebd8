"""Every setting of a training run, in one frozen dataclass whose docstrings are the command line's help."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Config:
    """The settings of one run; a preset is an instance of this class."""

    data: str
    """Where the real images come from: `digits`, `cifar10`, or the path of a folder, zip or tar of images."""
    resolution: int
    """Side of the square images in pixels; images of another size are resized to it."""
    channels: int = 3
    """Image channels: 3 for colour, 1 for grey."""
    split: str = "train"
    """Which part of a named data set to train on."""
    flip: bool = True
    """Mirror each real image left to right with probability one half."""
    download: bool = True
    """Fetch a named data set's official archive when it is not there yet; its checksum is verified."""
    data_root: str = ""
    """Where a named data set's archive is or will be kept; gnfast's cache folder if empty."""

    model: Literal["dcgan", "dcgan-table3", "resnet", "sngan-resnet", "small"] = "dcgan"
    """The papers' CNN, the same with the critic of GN-GAN's Table 3, GN-GAN's ResNet, SN-GAN's, a small CNN."""
    width: float = 1.0
    """Factor on every hidden channel count; below 1 for a quick look, 1 for the papers' networks."""
    z_dim: int = 128
    """Length of the latent vector, drawn from N(0, I)."""

    method: Literal["gn", "gn0", "gn1", "gran", "pgn", "pgn-table", "none"] = "gn"
    """The critic's normaliser: GN-GAN's (ζ = |f|, 0, 1), GraN-GAN's, PGN-GAN's by its code or its table; or none."""
    tau: float | None = None
    """GraN's τ: the normalised critic's Lipschitz constant is at most 1/τ; 1 if not given."""
    eps: float | None = None
    """GraN's ε, which smooths small gradients; 0.1 if not given."""
    spectral_norm: bool = False
    """Spectral normalisation of every layer of the critic, one power iteration per forward."""
    k_sn: float = 1.0
    """The spectral norm that spectral normalisation gives to each weight."""
    learn_scale: bool = False
    """A learned factor on each spectrally normalised weight."""
    loss: Literal["hinge", "non-saturating", "wasserstein"] = "hinge"
    """GAN loss on the critic's normalised output."""
    steps: int = 200_000
    """Generator updates in the whole run."""
    n_dis: int = 1
    """Critic updates before each generator update."""
    batch_d: int = 64
    """Real images per critic update; as many generated ones join them in the same pass."""
    batch_g: int = 128
    """Generated images per generator update."""
    lr_d: float = 2e-4
    """Adam's learning rate for the critic."""
    lr_g: float = 2e-4
    """Adam's learning rate for the generator."""
    betas: tuple[float, float] = (0.0, 0.9)
    """Adam's two decay rates, for both networks."""
    lr_decay: Literal["none", "linear"] = "none"
    """Learning-rate schedule: constant, or linear from the full rate at the first step to 0 after the last."""
    ema_decay: float = 0.9999
    """Decay per step of the generator's moving average (weights and batch-norm buffers)."""
    ema_start: int = 0
    """Step before which the moving average is a plain copy."""
    seed: int = 0
    """Seeds initialisation, latents, shuffling and flips."""

    impl: Literal["auto", "reference"] = "auto"
    """Normalisation by gnfast, or for comparison by plain PyTorch: double backward, its own spectral norm."""
    rewrite: bool = True
    """Merge convolutions with the pooling or upsampling beside them where that saves work (not with `reference`)."""
    device: str = "auto"
    """`auto` (a GPU where there is one), `cpu`, `cuda`, `cuda:1`, …"""
    memory_format: Literal["channels_last", "contiguous"] = "channels_last"
    """Layout of images and convolution weights in memory; channels_last is faster on CPUs and GPUs."""
    threads: int = 0
    """CPU threads; 0 leaves PyTorch's choice. Another number can change the last bits of the results."""

    run_dir: str = ""
    """The run folder; runs/PRESET if empty. Repeating the command continues a run that stopped."""
    log_every: int = 10
    """Steps between rows of metrics.jsonl; a row holds means over the steps since the last."""
    sample_every: int = 500
    """Steps between sample grids; 0 for one at the end only."""
    n_samples: int = 64
    """Images in a sample grid; their latents stay fixed over the run."""
    sample_bn: Literal["batch", "running"] = "batch"
    """Batch norm in the generator when it samples: the batch's statistics, as in the papers' code, or running ones."""
    eval_every: int = 5000
    """Steps between Fréchet distances, beside one at the start and one at the end; 0 for those two only."""
    extractor: str = "none"
    """Feature extractor for the Fréchet distance (see `gnfast.metrics`), or `none` for no evaluation."""
    n_fake: int = 50_000
    """Generated images per Fréchet distance."""
    checkpoint_every: int = 1000
    """Steps between checkpoints, beside one at the end; the newest two are kept."""
    tensorboard: bool = True
    """Write TensorBoard event files too."""

    def __post_init__(self) -> None:
        for name in ("resolution", "channels", "z_dim", "steps", "n_dis", "batch_d", "batch_g", "log_every"):
            _require(self, name, getattr(self, name) >= 1, "at least 1")
        for name in ("n_samples", "n_fake"):
            # Two images are the least that batch statistics and a covariance are defined for.
            _require(self, name, getattr(self, name) >= 2, "at least 2")
        for name in ("sample_every", "eval_every", "checkpoint_every", "threads", "ema_start"):
            _require(self, name, getattr(self, name) >= 0, "0 or more")
        for name in ("lr_d", "lr_g", "width", "k_sn"):
            value = getattr(self, name)
            _require(self, name, value > 0 and math.isfinite(value), "a positive number")
        for name in ("tau", "eps"):
            value = getattr(self, name)
            _require(self, name, value is None or (self.method == "gran" and value > 0), "a positive number, with gran")
        _require(self, "channels", self.channels in (1, 3), "1 or 3")
        _require(self, "betas", all(0 <= beta < 1 for beta in self.betas), "two numbers in [0, 1)")
        _require(self, "ema_decay", 0 <= self.ema_decay < 1, "a number in [0, 1)")


# What may differ when a run is continued: it changes where and how a run is computed and recorded, not what it learns.
# The data set is compared by its content, not by its path.
FREE = {
    *("data", "download", "data_root", "impl", "rewrite", "device", "memory_format", "threads", "run_dir", "log_every"),
    *("sample_every", "sample_bn", "eval_every", "extractor", "n_fake", "checkpoint_every", "tensorboard"),
}


def differences(saved: dict[str, Any], config: Config) -> list[str]:
    """The settings that keep `config` from continuing a run, as lines "--name: run has A, command says B".

    Args:
        saved: the run's settings as its config.json holds them.
        config: the settings of the repeated command.
    """
    # A run of a version that did not have a setting yet had its default.
    defaults = {f.name: f.default for f in dataclasses.fields(Config) if f.default is not dataclasses.MISSING}
    saved, wanted = defaults | saved, as_json(config)
    names = [name for name in wanted if name not in FREE]
    if config.lr_decay == "none":
        # Without a schedule that depends on it, the length of a run is only where it stops.
        names.remove("steps")
    return [
        f"--{name.replace('_', '-')}: the run has {saved.get(name)!r}, the command says {wanted[name]!r}"
        for name in names
        if saved.get(name) != wanted[name]
    ]


def as_json(config: Config) -> dict[str, Any]:
    """The settings as JSON values: what config.json holds."""
    return {name: list(v) if isinstance(v, tuple) else v for name, v in dataclasses.asdict(config).items()}


def from_json(saved: dict[str, Any]) -> Config:
    """The inverse of `as_json`."""
    return Config(**{name: tuple(value) if isinstance(value, list) else value for name, value in saved.items()})


def _require(config: Config, name: str, ok: bool, wanted: str) -> None:
    if not ok:
        raise ValueError(f"--{name.replace('_', '-')}: got {getattr(config, name)}, want {wanted}")
