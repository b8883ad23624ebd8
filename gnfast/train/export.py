"""A generator as one safetensors file: the weights, and in its metadata all that drawing from it takes.

Every metadata value is JSON: the run's settings under their own names, `gnfast` (the version that wrote the file),
`preset`, `step`, `weights`, `scores` (the evaluation before the step) and `sha256` of the weights, which the format
itself does not check.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import gnfast
from gnfast.config.config import Config, as_json, from_json
from gnfast.errors import InputError
from gnfast.io.files import atomic_write, open_regular
from gnfast.runs.average import unmoved
from gnfast.runs.checkpoint import Place, RunError, locate
from gnfast.runs.record import WEIGHTS, score_names
from gnfast.train.networks import build_networks, require_fit
from gnfast.train.published import MIMICRY, load_published
from gnfast.train.saved import open_saved

Weights = Literal[*WEIGHTS]

PUBLISHED_SUFFIXES = (".pt", ".pth")

# These say where a run was made, not what its generator is.
LOCAL = {"data_root", "extractor_weights", "run_dir", "device", "threads"}


@dataclass(frozen=True)
class Snapshot:
    """A generator with its origin.

    Attributes:
        source: the run folder or the file that it is from, for messages.
        config: the settings of its run.
        state: its state dict, on the CPU.
        weights: the moving average, or the generator itself.
        about: `preset`, `step` and `scores`.
    """

    source: Path
    config: Config
    state: dict[str, Tensor]
    weights: Weights
    about: dict[str, Any]

    def build(self) -> nn.Module:
        """The generator, on the CPU and without gradients, in the mode that its run samples in.

        Raises:
            RunError: the weights are not those of the network that the settings describe.
        """
        self.require_fit()
        if bad := [name for name, value in self.state.items() if not torch.isfinite(value).all()]:
            raise RunError(f"{self.source}: the weights are of no use: NaN or infinity in {', '.join(bad[:3])}")
        generator, _ = build_networks(self.config)
        generator.load_state_dict(self.state)
        return generator.requires_grad_(False).train(self.config.sample_bn == "batch")

    @property
    def unmoved(self) -> str:
        """One line where this is a moving average that has hardly left its first weights; else empty."""
        line = unmoved(as_json(self.config), self.about["step"]) if self.weights == "ema" else ""
        how = "of the run takes" if self.source.suffix == ".safetensors" else "takes"
        return line and f"{line}; --raw {how} the generator itself"

    def require_fit(self) -> None:
        """Raises RunError unless the weights are those of the network that the settings describe."""
        try:
            require_fit(self.config, generator=self.state)
        except ValueError as error:
            message = f"{self.source}: the weights do not fit a {self.config.model} generator: {error}"
            raise RunError(message) from error


def snapshot(source: Path, weights: Weights | None = None, best: bool = False) -> Snapshot:
    """The generator of a run's checkpoint, of a file that `export` wrote, or of one of the papers' code.

    Args:
        source: a run folder, whose newest checkpoint is taken, RUN/checkpoints/FILE.pt, a safetensors file, or a .pt
            file that `load_published` reads.
        weights: the moving average (what a run gives if None) or the generator itself; a file may have but one of them.
        best: take the best checkpoint of a run folder.

    Raises:
        RunError: neither a run with a checkpoint nor such a file, or a damaged one, or a file with the other weights.
    """
    if place := locate(source, best):
        return _of_run(source, place, weights or "ema")
    _require_file(source)
    return (_of_published if source.suffix in PUBLISHED_SUFFIXES else _of_file)(source, weights)


def export(source: Path, out: Path, weights: Weights | None = None, best: bool = False) -> Path:
    """Writes a generator as a safetensors file.

    Args:
        source, weights, best: as in `snapshot`.
        out: the file to write, FILE.safetensors; its folder is made.

    Returns:
        The file written.

    Raises:
        ValueError: `out` has another ending.
        RunError: as from `snapshot`, or the file cannot be written.
    """
    if out.suffix != ".safetensors":
        raise ValueError(f"--out: got {str(out)!r}, wanted FILE.safetensors")
    taken = snapshot(source, weights, best)
    # Which is refused where nothing could be drawn from it.
    taken.build()
    settings = {name: value for name, value in as_json(taken.config).items() if name not in LOCAL}
    # A path says more about its owner than about the images.
    settings["data"] = Path(taken.config.data).name
    # Copies, since the format knows neither strides nor tensors that share memory.
    state = {name: value.detach().clone(memory_format=torch.contiguous_format) for name, value in taken.state.items()}
    about = {"gnfast": gnfast.__version__, "weights": taken.weights, **taken.about, "sha256": _digest(state)}
    metadata = {name: json.dumps(value) for name, value in {**settings, **about}.items()}
    try:
        with atomic_write(out) as part:
            save_file(state, part, metadata=metadata)
    except (OSError, SafetensorError) as error:
        raise RunError(f"{out} cannot be written: {error}") from error
    return out


def load_generator(path: Path | str) -> nn.Module:
    """The generator in a file that `export` wrote: `load_generator("G.safetensors")(torch.randn(64, z_dim))`.

    Returns:
        A module on the CPU that maps (B, z_dim) latents, and (B,) labels if it is conditional, to
        (B, channels, resolution, resolution) in [-1, 1]; it needs no gradient. It comes in the mode that its run
        samples in: `training` is True where batch norm uses the statistics of each batch, as the papers' code does.

    Raises:
        RunError: the file is missing, damaged, or not one that `export` wrote.
    """
    _require_file(Path(path))
    return _of_file(Path(path), None).build()


def _require_file(path: Path) -> None:
    try:
        open_regular(path).close()
    except FileNotFoundError as error:
        raise RunError(
            f"{path} is not there: wanted a run folder, a file of `gnfast export` or a checkpoint of the papers' code"
        ) from error
    except (InputError, OSError) as error:
        raise RunError(str(error)) from error


def _of_run(source: Path, place: Place, weights: Weights) -> Snapshot:
    record, config, state = open_saved(place)
    rows = [row for row in record.rows if row["step"] <= state["step"] and score_names([row])]
    about = {"preset": record.preset, "step": state["step"], "scores": rows[-1] if rows else {}}
    return Snapshot(source, config, state["generator" if weights == "raw" else "ema"], weights, about)


def _of_published(path: Path, weights: Weights | None) -> Snapshot:
    try:
        found = load_published(path)
    except ValueError as error:
        raise RunError(str(error)) from error
    present = {"ema": found["ema"], "raw": found["generator"]}
    present = {name: state for name, state in present.items() if state is not None}
    chosen = weights or next(iter(present), "ema")
    if chosen not in present:
        raise RunError(f"{path} holds {' and '.join(present) or 'no generator'}, not {chosen} weights")
    settings = {name: found[name] for name in ("model", "resolution", "channels", "z_dim", "classes")}
    # mimicry switches its generators to evaluation before it measures them; the other codes never do.
    config = Config(data="", **settings, sample_bn="running" if found["source"] == MIMICRY else "batch")
    about = {"preset": found["source"], "step": found["step"] or 0, "scores": {}}
    return Snapshot(path, config, present[chosen], chosen, about)


def _of_file(path: Path, weights: Weights | None) -> Snapshot:
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:  # Damaged bytes lead to more than SafetensorError.
        raise RunError(f"{path} is damaged or not a file of `gnfast export` ({error})") from error
    if "gnfast" not in metadata:
        raise RunError(f"{path} is a safetensors file, but not one of `gnfast export`")
    try:
        about = {name: json.loads(value) for name, value in metadata.items()}
        if not set(_ABOUT) <= set(about) or not all(_ABOUT[name](about[name]) for name in _ABOUT):
            raise ValueError(f"wanted {', '.join(_ABOUT)}")
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path} is damaged: its metadata are not those of `gnfast export` ({error})") from error
    if weights not in (None, about["weights"]):
        raise RunError(f"{path} holds {about['weights']} weights, not {weights}; export those from the run")
    known = {field.name for field in dataclasses.fields(Config)}
    try:
        config = from_json({name: value for name, value in about.items() if name in known})
    except ValueError as error:
        raise RunError(f"{path}: its settings are not those of a run: {error}") from error
    # `export` writes no path, and what others wrote is not followed.
    config = dataclasses.replace(config, data=Path(config.data).name)
    origin = {name: about[name] for name in ("preset", "step", "scores")}
    found = Snapshot(path, config, state, about["weights"], origin)
    # Before all of a file is read that may say that it is larger than any disk.
    found.require_fit()
    if about["sha256"] != _digest(state):
        raise RunError(f"{path} is damaged: its weights are not those that were written")
    return found


# What a file says besides the settings, and how to tell.
_ABOUT: dict[str, Callable[[Any], bool]] = {
    "weights": lambda value: value in WEIGHTS,
    "preset": lambda value: isinstance(value, str),
    "step": lambda value: type(value) is int and value >= 0,
    "scores": lambda value: isinstance(value, dict),
    "sha256": lambda value: isinstance(value, str),
}


def _digest(state: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
