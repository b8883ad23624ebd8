"""Every setting of a training run, in one frozen dataclass whose docstrings are the command line's help."""

import dataclasses
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from gnfast.config.older import current
from gnfast.config.precision import same
from gnfast.config.together import together
from gnfast.engine.heads import METHODS
from gnfast.engine.penalties import PENALTIES
from gnfast.losses import LOSSES
from gnfast.metrics.protocols import PROTOCOLS
from gnfast.models import ACTIVATIONS, REGISTRY, SCHEMES

# The extractor that is chosen where a run starts; its config.json has the choice.
AUTO = "auto"


class Only(NamedTuple):
    """Which values of its type a setting may have, as a test and in words."""

    holds: Callable[[Any], bool]
    wanted: str


Count = Annotated[int, Only(lambda n: n >= 1, "a whole number of at least 1")]
Interval = Annotated[int, Only(lambda n: n >= 0, "a whole number of at least 0")]
# A file that asks for more images would take all memory, or have no end; two are the least that batch statistics and a
# covariance are defined for.
Batch = Annotated[int, Only(lambda n: 1 <= n <= 1 << 14, f"a whole number from 1 to {1 << 14}")]
Images = Annotated[int, Only(lambda n: 2 <= n <= 1 << 14, f"a whole number from 2 to {1 << 14}")]
# The losses of so many steps are kept.
Logged = Annotated[int, Only(lambda n: 1 <= n <= 100_000, "a whole number from 1 to 100000")]
Measured = Annotated[int, Only(lambda n: 2 <= n <= 1_000_000, "a whole number from 2 to 1000000")]
Positive = Annotated[float, Only(lambda x: x > 0, "a positive number")]
Factor = Annotated[float, Only(lambda x: x >= 0, "0 or a positive number")]
Share = Annotated[float, Only(lambda x: 0 <= x <= 1, "a number from 0 to 1")]
Decay = Annotated[float, Only(lambda x: 0 <= x < 1, "a number in [0, 1)")]


@dataclass(frozen=True)
class Config:
    """The settings of one run; a preset is an instance of this class."""

    data: str
    """Where the real images come from: a name that `gnfast data list` shows, or the path of a folder or archive."""
    resolution: Count
    """Side of the square images in pixels; images of another size are resized to it."""
    channels: Literal[1, 3] = 3
    """Image channels: 3 for colour, 1 for grey."""
    crop: int | Literal["square"] | None = None
    """Side in pixels of the central square that is cut out before resizing, or `square` for the largest; None for what
    the data set is known for."""
    split: str = "train"
    """Which part of a named data set to train on."""
    flip: bool = True
    """Mirror each real image left to right with probability one half."""
    download: bool = True
    """Fetch a named data set's official archive when it is not there yet; its checksum is verified."""
    data_root: str = ""
    """Where a named data set's archive is or will be kept; gnfast's cache folder if empty."""

    model: Literal[*REGISTRY] = "dcgan"
    """The networks: the CNN of GN-GAN's code (or SN-GAN's), GN-GAN's ResNet, SN-GAN's, mimicry's (GraN-GAN), BigGAN
    (needs --classes, as SN-GAN's sngan-concat, -projection and -ac), a small CNN, or a plain pair of some depth."""
    init: Literal[*SCHEMES] = "default"
    """Initialisation of every weight; `default` leaves each network its own."""
    init_d: Literal[*SCHEMES] = "default"
    """Initialisation of the critic's weights, after --init."""
    classes: Interval = 0
    """Classes of a class-conditional pair, as many as the data set has; 0 trains without labels."""
    width: Positive = 1.0
    """Factor on every hidden channel count; below 1 for a quick look, 1 for the papers' networks."""
    width_g: Positive = 1.0
    """A further factor on the generator's."""
    width_d: Positive = 1.0
    """A further factor on the critic's."""
    last_width: Positive = 1.0
    """A further factor on the channels of the critic's last convolution (SN-GAN's Fig. 4; the papers' CNN only)."""
    activation: Literal["default", *ACTIVATIONS] = "default"
    """The critic's activation, in place of each of its own; curved ones (ELU, Softplus) take six passes."""
    norm_d: Literal["none", "batch", "layer"] = "none"
    """Batch or layer normalisation without gains in the critic, baselines of SN-GAN's."""
    z_dim: Count = 128
    """Length of the latent vector, drawn from N(0, I)."""

    method: Literal[*METHODS, "none"] = "gn"
    """The critic's normaliser: GN-GAN's (ζ = |f|, 0, 1), GraN-GAN's, PGN-GAN's by its code or its table; or none."""
    tau: Positive | None = None
    """GraN's τ: the normalised critic's Lipschitz constant is at most 1/τ; 1 if not given."""
    eps: Positive | None = None
    """GraN's ε, which smooths small gradients; 0.1 if not given."""
    spectral_norm: bool = False
    """Spectral normalisation of every layer of the critic, one power iteration per forward."""
    k_sn: Positive = 1.0
    """The spectral norm that spectral normalisation gives to each weight."""
    learn_scale: bool = False
    """A learned factor on each weight of norm 1, spectral or Frobenius, or on each of its rows of norm 1."""
    stable_rank: Share = 0.0
    """Stable rank normalisation with spectral normalisation: at most this share of each weight's full rank (Sanyal et
    al., ICLR 2020); 0 does without."""
    weight_norm: Literal["none", "unit", "learned", "frobenius"] = "none"
    """Normalisation of each weight of the critic, for comparison: rows of norm 1 (SN-GAN, eq. 25), rows with a learned
    norm (Salimans and Kingma, 2016), or a Frobenius norm of 1 (SN-GAN, eq. 26)."""
    orthonormal: Factor = 0.0
    """Factor of orthonormal regularisation, ‖WᵀW - I‖² over the critic's weights (SN-GAN, eq. 14)."""
    rescale: Literal["none", "initial", "glorot"] = "none"
    """Compute critic updates with each of its weights scaled to its first norm, or to Glorot's standard deviation times
    √2 (Faster GN-GAN): GN's output is the same, in a range that floating point likes better."""
    weight_clip: Factor = 0.0
    """After every critic update, clip the weights of its convolutions and linear layers to ± this; 0 does not."""
    loss: Literal[*LOSSES] = "hinge"
    """GAN loss on the critic's normalised output."""
    alpha: Positive = 1.0
    """Domain scaling: L(αx) / α in place of L(x)."""
    penalty: Literal["none", *PENALTIES] = "none"
    """Gradient penalty on the critic before its normalisation: ½‖∇f‖² at real images, ‖∇f‖² or (‖∇f‖ - k)² between real
    and generated ones."""
    penalty_weight: Factor = 10.0
    """Factor λ of the penalty."""
    k_gp: Factor = 1.0
    """The gradient norm k that costs nothing in `1-gp`."""
    consistency: Factor = 0.0
    """Factor λ of consistency regularisation: the squared change of the normalised critic when real images are flipped
    and shifted by up to a fifth; 0 does without."""
    auxiliary: Factor = 0.0
    """Factor of the critic's classification loss on real images (AC-GAN; a tenth of it on generated ones for the
    generator); 0 does without. Needs a model with a classifier."""
    steps: Count = 200_000
    """Generator updates in the whole run."""
    n_dis: Count = 1
    """Critic updates before each generator update."""
    batch_d: Batch = 64
    """Real images per critic update; as many generated ones join them in the same pass."""
    batch_g: Batch = 128
    """Generated images per generator update."""
    accumulate: Count = 1
    """Parts into which each batch is cut to save memory; their gradients add up to the whole batch's. The generator's
    batch norm sees one part at a time."""
    optimizer: Literal["adam", "rmsprop"] = "adam"
    """Adam, or RMSProp with PyTorch's smoothing of 0.99, which has no use for --betas."""
    lr_d: Positive = 2e-4
    """The critic's learning rate."""
    lr_g: Positive = 2e-4
    """The generator's learning rate."""
    betas: tuple[Decay, Decay] = (0.0, 0.9)
    """Adam's two decay rates, for both networks."""
    adam_eps: Positive = 1e-8
    """Adam's ε, which is added to the root of the second moment."""
    lr_decay: Literal["none", "linear"] = "none"
    """Learning-rate schedule: constant, or linear from the full rate at --lr-decay-start to 0 at --lr-decay-end."""
    lr_decay_start: Interval = 0
    """Step up to which the rate of `linear` is the full one."""
    lr_decay_end: Interval = 0
    """Step at which the rate of `linear` is 0, for a run that stops before; the end of the run if 0."""
    ema_decay: Decay = 0.9999
    """Decay per step of the generator's moving average (weights and batch-norm buffers)."""
    ema_start: Interval = 0
    """Step before which the moving average is a plain copy."""
    seed: int = 0
    """Seeds initialisation, latents, shuffling and flips."""
    precision: Literal["auto", "tf32", "float32", "float64", "bfloat16", "float16"] = "auto"
    """Arithmetic of both networks: `auto` (bfloat16 on GPUs from compute capability 8.0 on, else float32), float32 with
    TF32 products where a GPU has them, full float32, float64, or autocast to a 16-bit type, with loss scaling for
    float16 (weights and losses stay float32)."""
    sync_bn: bool = True
    """With several processes, batch norm over all of them, so that 2 x 32 images are as 1 x 64."""

    impl: Literal["auto", "reference"] = "auto"
    """Normalisation by gnfast, or for comparison by plain PyTorch: double backward, its own spectral norm."""
    rewrite: bool = True
    """Merge convolutions with the pooling or upsampling next to them where that saves work (not with `reference`)."""
    device: str = "auto"
    """`auto` (a GPU where there is one), `cpu`, `cuda`, `cuda:1`, …"""
    memory_format: Literal["channels_last", "contiguous"] = "channels_last"
    """Layout of images and convolution weights in memory; channels_last is faster on CPUs and GPUs."""
    cuda_graph: bool = True
    """Replay each step as one CUDA graph (on GPUs, without loss scaling and rescaling)."""
    threads: Interval = 0
    """CPU threads; 0 leaves PyTorch's choice. Another number can change the last bits of the results."""
    deterministic: bool = False
    """Only GPU algorithms that give the same bits every time; slower. CPUs need no such switch."""

    run_dir: str = ""
    """The run folder; runs/PRESET if empty. Repeating the command continues a run that stopped."""
    log_every: Logged = 10
    """Steps between rows of metrics.jsonl; a row holds means over the steps since the last."""
    sample_every: Interval = 500
    """Steps between sample grids; 0 for one at the end only."""
    n_samples: Images = 64
    """Images in a sample grid; their latents stay fixed over the run."""
    sample_bn: Literal["batch", "running"] = "batch"
    """Batch norm in the generator when it samples: the batch's statistics, as in the papers' code, or running ones."""
    eval_every: Interval = 5000
    """Steps between Fréchet distances, apart from one at the start and one at the end; 0 for those two only."""
    extractor: str = AUTO
    """Feature extractor for the Fréchet distance: `inception` (FID), `classifier`, `pixels-8x8` (rough, needs nothing),
    `module:function`; `none` does not evaluate. `auto` takes Inception on a GPU where its weights are on this machine,
    else a classifier where images have labels (on a CPU of at most 5000 generated images), and does not evaluate a run
    of fewer steps than --eval-every."""
    extractor_weights: str = ""
    """File with the extractor's weights; looked for in gnfast's cache folder, or fetched, if empty."""
    protocol: Literal[*PROTOCOLS] = "tf"
    """How images are resized and rounded for Inception (see docs/evaluation.md)."""
    n_fake: Measured = 50_000
    """Generated images per Fréchet distance."""
    n_real: Interval = 0
    """Real images per Fréchet distance, evenly spread over the data set; 0 for all of them."""
    eval_split: str = ""
    """The part of the data set that generated images are compared with; the training images if empty."""
    validation_split: str = ""
    """The part of the data set whose critic loss is logged beside training's (SN-GAN's Fig. 15); none if empty."""
    probe_every: Interval = 500
    """Steps between measurements of gradient norms, singular values and the loss's domain (see `gnfast analyze`); 0 for
    none."""
    checkpoint_every: Interval = 1000
    """Steps between checkpoints, and at the end; the newest two are kept, and the best by Fréchet distance."""
    tensorboard: bool = True
    """Write TensorBoard event files too."""
    wandb: str = ""
    """Project of Weights & Biases that gets the same numbers, the sample grids and the settings; none if empty. Needs
    `pip install wandb`."""

    def __post_init__(self) -> None:
        require_kinds(vars(self))
        for name, holds, wanted in together(self):
            if not holds:
                raise _wrong(name, getattr(self, name), wanted)


# What may differ when a run is continued: it changes where and how a run is computed and recorded, not what it learns.
# The data set is compared by its content, not by its path.
FREE = {
    *("data", "download", "data_root", "impl", "rewrite", "device", "memory_format", "threads", "run_dir", "log_every"),
    *("sample_every", "sample_bn", "eval_every", "extractor", "extractor_weights", "protocol", "n_fake", "n_real"),
    *("eval_split", "validation_split", "deterministic", "probe_every", "checkpoint_every", "tensorboard"),
    *("cuda_graph", "wandb"),
}
_KINDS = get_type_hints(Config, include_extras=True)
_DEFAULTS = {f.name: f.default for f in dataclasses.fields(Config) if f.default is not dataclasses.MISSING}


def option(name: str) -> str:
    """A setting's name as the command line has it."""
    return f"--{name.replace('_', '-')}"


def differences(saved: dict[str, Any], config: Config) -> list[str]:
    """The settings that keep `config` from continuing a run, as lines "--name: run has A, command says B".

    Args:
        saved: the run's settings as its config.json holds them.
        config: the settings of the repeated command. Precisions are the same if they are the same on its device.
    """
    # A run of a version that did not have a setting yet had its default, which of one has changed.
    saved, wanted = _DEFAULTS | {"precision": "tf32"} | current(saved), as_json(config)
    names = [name for name in wanted if name not in FREE]
    if config.lr_decay == "none" or config.lr_decay_end:
        # Without a schedule that depends on it, the length of a run is only where it stops.
        names.remove("steps")
    if same(saved["precision"], config.precision, config.device):
        names.remove("precision")
    return [
        f"{option(name)}: the run has {reprlib.repr(saved.get(name))}, the command says {wanted[name]!r}"
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
    settings = {name: tuple(value) if isinstance(value, list) else value for name, value in current(saved).items()}
    require_kinds(settings)
    if missing := _KINDS.keys() - _DEFAULTS.keys() - settings.keys():
        raise ValueError(f"{option(min(missing))}: missing")
    return Config(**settings)


def require_kinds(settings: Mapping[str, Any]) -> None:
    """That settings have the names, the types and the values that `Config` is annotated with.

    Raises:
        ValueError: one has not; the message begins with the option.
    """
    for name, value in settings.items():
        if name not in _KINDS:
            raise ValueError(f"{option(name)}: this version of gnfast has no such setting")
        if not _fits(value, _KINDS[name]):
            raise _wrong(name, value, _told(_KINDS[name]))


def decisive(config: Config) -> dict[str, Any]:
    """The settings, as JSON values, that decide what is learnt."""
    return {name: value for name, value in as_json(config).items() if name not in FREE}


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value is of the kind that a field of `Config` is annotated with."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _fits(value, parts[0]) and parts[1].holds(value)
    if origin is Literal:
        return type(value) is type(parts[0]) and value in parts
    if origin is tuple:
        return isinstance(value, tuple) and len(value) == len(parts) and all(map(_fits, value, parts))
    if parts:
        return any(_fits(value, part) for part in parts)
    if kind is float:
        return isinstance(value, float | int) and not isinstance(value, bool) and abs(value) < 1e300
    return isinstance(value, kind) and not (kind is int and (isinstance(value, bool) or abs(value) >= 2**63))


def _told(kind: Any) -> str:
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return parts[1].wanted
    if origin is Literal:
        return "one of " + ", ".join(map(repr, parts))
    if origin is tuple:
        return f"{len(parts)} values, each {_told(parts[0])}"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "none"}
    return " or ".join(names.get(part) or _told(part) for part in parts or (kind,))


def _wrong(name: str, value: Any, wanted: str) -> ValueError:
    return ValueError(f"{option(name)}: got {reprlib.repr(value)}, wanted {wanted}")
