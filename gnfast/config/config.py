"""Every setting of a training run, in one frozen dataclass whose docstrings are the command line's help."""

import dataclasses
import math
import reprlib
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

LossName = Literal[
    "hinge",
    "soft-hinge",
    "non-saturating",
    "minimax",
    "wasserstein",
    "least-squares",
    "least-squares-centred",
    "cosine",
    "exponential",
]


@dataclass(frozen=True)
class Config:
    """The settings of one run; a preset is an instance of this class."""

    data: str
    """Where the real images come from: a name that `gnfast data list` shows, or the path of a folder or archive."""
    resolution: int
    """Side of the square images in pixels; images of another size are resized to it."""
    channels: int = 3
    """Image channels: 3 for colour, 1 for grey."""
    crop: int | None = None
    """Side in pixels of the central square that is cut out before resizing; None for what the data set is known for."""
    split: str = "train"
    """Which part of a named data set to train on."""
    flip: bool = True
    """Mirror each real image left to right with probability one half."""
    download: bool = True
    """Fetch a named data set's official archive when it is not there yet; its checksum is verified."""
    data_root: str = ""
    """Where a named data set's archive is or will be kept; gnfast's cache folder if empty."""

    model: Literal[
        *("dcgan", "dcgan-table3", "resnet", "sngan-resnet", "mimicry-resnet", "biggan", "biggan-faster", "small"),
        *("layered-3", "layered-6", "layered-9", "layered-3-elu", "layered-3-softplus-1", "layered-3-softplus-20"),
    ] = "dcgan"
    """The networks: the papers' CNN (or with the critic of GN-GAN's Table 3), GN-GAN's ResNet, SN-GAN's, mimicry's
    (GraN-GAN), BigGAN (needs --classes), a small CNN, or its generator with a plain critic of some depth."""
    init: Literal["default", "kaiming-normal", "xavier-uniform", "normal", "orthogonal"] = "default"
    """Initialisation of every weight; `default` leaves each network its own."""
    classes: int = 0
    """Classes of a class-conditional pair, as many as the data set has; 0 trains without labels."""
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
    weight_norm: bool = False
    """Weight normalisation of every layer of the critic (Salimans and Kingma, 2016), for comparison."""
    rescale: Literal["none", "initial", "glorot"] = "none"
    """Compute critic updates with each of its weights scaled to its first norm, or to Glorot's standard deviation times
    √2 (Faster GN-GAN): GN's output is the same, in a range that floating point likes better."""
    weight_clip: float = 0.0
    """After every critic update, clip its weights to ± this; 0 does not."""
    loss: LossName = "hinge"
    """GAN loss on the critic's normalised output."""
    alpha: float = 1.0
    """Domain scaling: L(αx) / α in place of L(x)."""
    penalty: Literal["none", "r1", "0-gp", "1-gp"] = "none"
    """Gradient penalty on the critic before its normalisation: ½‖∇f‖² at real images, ‖∇f‖² or (‖∇f‖ - k)² between real
    and generated ones."""
    penalty_weight: float = 10.0
    """Factor λ of the penalty."""
    k_gp: float = 1.0
    """The gradient norm k that costs nothing in `1-gp`."""
    consistency: float = 0.0
    """Factor λ of consistency regularisation: the squared change of the normalised critic when real images are flipped
    and shifted by up to a fifth; 0 does without."""
    steps: int = 200_000
    """Generator updates in the whole run."""
    n_dis: int = 1
    """Critic updates before each generator update."""
    batch_d: int = 64
    """Real images per critic update; as many generated ones join them in the same pass."""
    batch_g: int = 128
    """Generated images per generator update."""
    accumulate: int = 1
    """Parts into which each batch is cut to save memory; their gradients add up to the whole batch's. The generator's
    batch norm sees one part at a time."""
    optimizer: Literal["adam", "rmsprop"] = "adam"
    """Adam (eps 1e-8), or RMSProp with PyTorch's smoothing of 0.99, which has no use for --betas."""
    lr_d: float = 2e-4
    """The critic's learning rate."""
    lr_g: float = 2e-4
    """The generator's learning rate."""
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
    precision: Literal["tf32", "float32", "float64", "bfloat16", "float16"] = "tf32"
    """Arithmetic of both networks: float32 with TF32 products where a GPU has them, full float32, float64, or autocast
    to a 16-bit type, with loss scaling for float16 (weights and losses stay float32)."""
    sync_bn: bool = True
    """With several processes, batch norm over all of them, so that 2 x 32 images are as 1 x 64."""

    impl: Literal["auto", "reference"] = "auto"
    """Normalisation by gnfast, or for comparison by plain PyTorch: double backward, its own spectral norm."""
    rewrite: bool = True
    """Merge convolutions with the pooling or upsampling beside them where that saves work (not with `reference`)."""
    device: str = "auto"
    """`auto` (a GPU where there is one), `cpu`, `cuda`, `cuda:1`, …"""
    memory_format: Literal["channels_last", "contiguous"] = "channels_last"
    """Layout of images and convolution weights in memory; channels_last is faster on CPUs and GPUs."""
    cuda_graph: bool = True
    """Replay each step as one CUDA graph (on one GPU, without loss scaling and rescaling)."""
    threads: int = 0
    """CPU threads; 0 leaves PyTorch's choice. Another number can change the last bits of the results."""
    deterministic: bool = False
    """Only GPU algorithms that give the same bits every time; slower. CPUs need no such switch."""

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
    """Feature extractor for the Fréchet distance: `inception` (FID), `classifier`, `module:function`; `none` does not
    evaluate."""
    extractor_weights: str = ""
    """File with the extractor's weights; looked for in gnfast's cache folder, or fetched, if empty."""
    protocol: Literal["tf", "torch", "clean", "paper-gn"] = "tf"
    """How images are resized and rounded for Inception (see docs/evaluation.md)."""
    n_fake: int = 50_000
    """Generated images per Fréchet distance."""
    eval_split: str = ""
    """The part of the data set that generated images are compared with; the training images if empty."""
    probe_every: int = 500
    """Steps between measurements of gradient norms, singular values and the loss's domain (see `gnfast analyze`); 0 for
    none."""
    checkpoint_every: int = 1000
    """Steps between checkpoints, beside one at the end; the newest two are kept, and the best by Fréchet distance."""
    tensorboard: bool = True
    """Write TensorBoard event files too."""

    def __post_init__(self) -> None:
        for name in ("resolution", "z_dim", "steps", "n_dis", "batch_d", "batch_g", "accumulate", "log_every"):
            _require(self, name, getattr(self, name) >= 1, "at least 1")
        for name, most in (("batch_d", 1 << 14), ("batch_g", 1 << 14), ("n_samples", 1 << 14), ("n_fake", 1_000_000)):
            # A file that asks for more would take all memory, or have no end.
            _require(self, name, getattr(self, name) <= most, f"at most {most}")
        for name in ("n_samples", "n_fake"):
            # Two images are the least that batch statistics and a covariance are defined for.
            _require(self, name, getattr(self, name) >= 2, "at least 2")
        for name in (
            "sample_every",
            "eval_every",
            "checkpoint_every",
            "probe_every",
            "threads",
            "ema_start",
            "classes",
        ):
            _require(self, name, getattr(self, name) >= 0, "0 or more")
        for name in ("lr_d", "lr_g", "width", "k_sn", "alpha"):
            value = getattr(self, name)
            _require(self, name, value > 0 and math.isfinite(value), "a positive number")
        for name in ("weight_clip", "penalty_weight", "k_gp", "consistency"):
            value = getattr(self, name)
            _require(self, name, value >= 0 and math.isfinite(value), "0 or a positive number")
        for name in ("batch_d", "batch_g"):
            _require(
                self, name, getattr(self, name) % self.accumulate == 0, f"a multiple of --accumulate {self.accumulate}"
            )
        for name in ("tau", "eps"):
            value = getattr(self, name)
            _require(self, name, value is None or (self.method == "gran" and value > 0), "a positive number, with gran")
        _require(self, "channels", self.channels in (1, 3), "1 or 3")
        _require(self, "rescale", self.rescale == "none" or self.method in ("gn", "gn0"), "none, but with gn or gn0")
        _require(self, "weight_norm", not (self.weight_norm and self.spectral_norm), "no, with --spectral-norm")
        _require(self, "betas", all(0 <= beta < 1 for beta in self.betas), "two numbers in [0, 1)")
        _require(self, "ema_decay", 0 <= self.ema_decay < 1, "a number in [0, 1)")


# What may differ when a run is continued: it changes where and how a run is computed and recorded, not what it learns.
# The data set is compared by its content, not by its path.
FREE = {
    *("data", "download", "data_root", "impl", "rewrite", "device", "memory_format", "threads", "run_dir", "log_every"),
    *("sample_every", "sample_bn", "eval_every", "extractor", "extractor_weights", "protocol", "n_fake", "eval_split"),
    *("deterministic", "probe_every", "checkpoint_every", "tensorboard", "cuda_graph"),
}
_KINDS = get_type_hints(Config)
REQUIRED = {field.name for field in dataclasses.fields(Config) if field.default is dataclasses.MISSING}


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
        f"--{name.replace('_', '-')}: the run has {reprlib.repr(saved.get(name))}, the command says {wanted[name]!r}"
        for name in names
        if saved.get(name) != wanted[name]
    ]


def as_json(config: Config) -> dict[str, Any]:
    """The settings as JSON values: what config.json holds."""
    return {name: list(v) if isinstance(v, tuple) else v for name, v in dataclasses.asdict(config).items()}


def from_json(saved: dict[str, Any]) -> Config:
    """The inverse of `as_json`.

    Raises:
        ValueError: an unknown name, or a value of the wrong kind; the message begins with the option.
    """
    settings = {name: tuple(value) if isinstance(value, list) else value for name, value in saved.items()}
    require_kinds(settings)
    if missing := REQUIRED - settings.keys():
        raise ValueError(f"--{min(missing).replace('_', '-')}: missing")
    return Config(**settings)


def require_kinds(settings: dict[str, Any]) -> None:
    """That settings are of the kinds that `Config` is annotated with, which Python itself does not ask for.

    Raises:
        ValueError: an unknown name, or a value of the wrong kind; the message begins with the option.
    """
    for name, value in settings.items():
        option = f"--{name.replace('_', '-')}"
        if name not in _KINDS:
            raise ValueError(f"{option}: this version of gnfast has no such setting")
        if not _fits(value, _KINDS[name]):
            raise ValueError(f"{option}: got {reprlib.repr(value)}, want {_told(_KINDS[name])}")


def decisive(config: Config) -> dict[str, Any]:
    """The settings, as JSON values, that decide what is learnt."""
    return {name: value for name, value in as_json(config).items() if name not in FREE}


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value is of the kind that a field of `Config` is annotated with."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Literal:
        return isinstance(value, str) and value in parts
    if origin is tuple:
        return isinstance(value, tuple) and len(value) == len(parts) and all(map(_fits, value, parts))
    if parts:
        return any(_fits(value, part) for part in parts)
    if kind is float:
        return isinstance(value, float | int) and not isinstance(value, bool) and abs(value) < 1e300
    return isinstance(value, kind) and not (kind is int and (isinstance(value, bool) or abs(value) >= 2**63))


def _told(kind: Any) -> str:
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Literal:
        return "one of " + ", ".join(map(repr, parts))
    if origin is tuple:
        return f"{len(parts)} numbers"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "none"}
    return " or ".join(names[part] for part in parts or (kind,))


def _require(config: Config, name: str, ok: bool, wanted: str) -> None:
    if not ok:
        raise ValueError(f"--{name.replace('_', '-')}: got {getattr(config, name)}, want {wanted}")
