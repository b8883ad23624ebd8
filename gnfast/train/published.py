"""Checkpoints of the papers' code, as state dicts of gnfast's networks.

Read are those of GN-GAN (basiclab/GNGAN-PyTorch) and PGN-GAN (sumorday/EDGAN-PyTorch), which have one format, of Faster
GN-GAN (basiclab/Faster-GNGAN-PyTorch), and of mimicry's SN-GAN (kwotsin/mimicry), one network a file. Keys are renamed,
and then compared, shapes included, with every network that the code has; the one that fits is what was trained.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor

from gnfast import models
from gnfast.errors import InputError
from gnfast.io.tensors import load_tensors
from gnfast.train import published_keys
from gnfast.train.published_keys import State

_LONGEST_KEY = 200
# BigGAN's critic of 128 pixels has 88 million.
_MOST_NUMBERS = 1 << 27


class Published(TypedDict):
    """What `load_published` found.

    The networks are `models.build(model, resolution=..., channels=..., z_dim=..., classes=...)`; a state that the file
    does not have is None.
    """

    source: str
    """Whose format the file has."""
    model: str
    """A name in `models.REGISTRY`."""
    resolution: int
    """Side of the images in pixels."""
    channels: int
    """Image channels."""
    z_dim: int
    """Length of the latent vector; 128 where only the critic is there."""
    classes: int
    """Number of classes, 0 without labels."""
    spectral_norm: bool
    """The critic's state is that of `gnfast.spectral_norm_(critic)`."""
    step: int | None
    """Generator updates done, if the file says it."""
    generator: State | None
    ema: State | None
    critic: State | None


@dataclass(frozen=True)
class _Source:
    """A format: the file's keys of the three networks, how their keys are renamed, and which networks there are."""

    name: str
    roles: dict[str, str]
    rename_generator: Callable[[State], State]
    rename_critic: Callable[[State], State]
    networks: tuple[tuple[str, int], ...]


def load_published(path: Path | str, resolution: int | None = None) -> Published:
    """Reads a checkpoint of one of the papers' codes.

    Networks with these states compute what the code's compute. Singular vectors of spectral normalisation are brought
    to length 1, since the moving average of those codes runs over them as well.
    A Faster GN-GAN critic is stored with the scales of its rescaling apart: the state holds the weights as they are
    stored, and the last layer (and the one before attention) times the product of the scales, which gives the logits
    that the code computes. A mimicry critic without spectral normalisation is taken for GraN-GAN's, with sum pooling;
    WGAN-GP's has the same keys.

    Args:
        path: the file; it is read with `weights_only=True`, on the CPU.
        resolution: side of the images in pixels, which is needed where the file fits several (mimicry's critics of 48
            and 64 pixels have the same weights).

    Returns:
        the states, and the arguments of `models.build` for them.

    Raises:
        OSError: no such file, or it cannot be opened.
        InputError: not a checkpoint, of no known format, with keys or shapes that no network of the format has (they
            are listed), or one that fits networks of several resolutions.
    """
    path = Path(path)
    saved = _read(path)
    source = next((s for s in SOURCES if any(key in saved for key in s.roles.values())), None)
    if source is not None:
        found = {role: _state(path, saved, key) for role, key in source.roles.items() if key in saved}
    elif "model_state_dict" in saved:
        source, state = MIMICRY, _state(path, saved, "model_state_dict")
        found = {"generator" if "l1.weight" in state else "critic": state}
    elif {"preset", "data", "state"} <= saved.keys():
        folder = path.absolute().parent
        run = f" ({folder.parent})" if folder.name == "checkpoints" else ""
        raise InputError(f"{path}: a checkpoint of gnfast train; wanted its run folder{run} or an exported generator")
    else:
        raise InputError(
            f"{path}: no known format; it has {_listed(saved)}, wanted net_G, ema_G, net_D (GN-GAN, PGN-GAN), "
            "G, G_ema, D (Faster GN-GAN) or model_state_dict (mimicry)"
        )
    states = {
        role: published_keys.parametrized(
            (source.rename_critic if role == "critic" else source.rename_generator)(state)
        )
        for role, state in found.items()
    }
    sizes = _sizes(states, saved.get("fixed_z"))
    spectral = any("parametrizations" in key for key in states.get("critic", {}))
    wrong = {
        (model, side): _differences(states, model, side, spectral, sizes)
        for model, side in source.networks
        if resolution is None or side == resolution
        if models.REGISTRY[model].conditional == (sizes["classes"] > 0)
    }
    fitting = [network for network, differences in wrong.items() if not differences]
    if not fitting:
        raise InputError(f"{path}: {source.name}'s format, but {_nearest(wrong, states, resolution)}")
    if len(fitting) > 1:
        raise InputError(
            f"{path}: fits {' and '.join(f'{model} at {side} pixels' for model, side in fitting)}; give `resolution`"
        )
    [(model, side)] = fitting
    step = saved.get("step", saved.get("global_step"))
    return Published(
        source=source.name,
        model=model,
        resolution=side,
        **sizes,
        spectral_norm=spectral,
        step=int(step) if isinstance(step, int | float) and math.isfinite(step) else None,
        generator=states.get("generator"),
        ema=states.get("ema"),
        critic=states.get("critic"),
    )


def _read(path: Path) -> dict[str, Any]:
    saved = load_tensors(path)
    if not isinstance(saved, dict) or not all(isinstance(key, str) for key in saved):
        raise InputError(f"{path}: holds a {type(saved).__name__}, wanted a dict of states")
    return saved


def _state(path: Path, saved: dict[str, Any], key: str) -> State:
    """One network's state, without the prefix that DistributedDataParallel gives."""
    state = saved[key]
    is_state = isinstance(state, dict) and all(
        isinstance(name, str) and len(name) < _LONGEST_KEY and isinstance(value, Tensor)
        for name, value in state.items()
    )
    if not is_state:
        raise InputError(f"{path}: {key} is not a state dict of tensors")
    # A tensor in a file may be one number that is seen any number of times.
    if (count := sum(value.numel() for value in state.values())) > _MOST_NUMBERS:
        raise InputError(f"{path}: {key} has {count:,} numbers, more than any network here")
    return {key.removeprefix("module."): value for key, value in state.items()}


def _sizes(states: dict[str, State], fixed_z: Any) -> dict[str, int]:
    """Channels, z_dim and classes, from the shapes of the first and last layers."""
    generator = states.get("generator") or states.get("ema") or {}
    critic = states.get("critic", {})
    sizes = {"channels": 3, "z_dim": 128, "classes": 0}
    for name, state, layer, dim in (
        ("channels", critic, "main.0", 1),
        ("channels", critic, "model.0.residual.0", 1),
        ("channels", generator, "output.2", 0),
        ("channels", generator, "main.11", 1),
        ("z_dim", generator, "linear", 1),
        ("classes", critic, "embedding", 0),
        ("classes", generator, "blocks.0.norm1.gain", 0),
        ("classes", generator, "shared", 0),
    ):
        weight = state.get(f"{layer}.weight", state.get(f"{layer}.parametrizations.weight.original"))
        if isinstance(weight, Tensor) and weight.ndim > dim and weight.shape[dim]:
            sizes[name] = weight.shape[dim]
    if "shared.weight" in generator:
        # The linear layer sees one of the parts; their length does not tell what remains of the latent vector.
        parts = 1 + len({key.split(".")[1] for key in generator if key.startswith("blocks.")})
        sizes["z_dim"] = (
            fixed_z.shape[1] if isinstance(fixed_z, Tensor) and fixed_z.ndim == 2 else sizes["z_dim"] * parts
        )
    return sizes


def _differences(
    states: dict[str, State], model: str, resolution: int, spectral: bool, sizes: dict[str, int]
) -> list[str]:
    """What keeps the states from being those of a network, a line for each key."""
    try:
        with torch.device("meta"):
            generator, critic = models.build(model, resolution=resolution, **sizes)
    except (ValueError, RuntimeError, ArithmeticError) as error:
        return [f"none is built with {', '.join(f'{name} {size}' for name, size in sizes.items())} ({error})"]
    lines = []
    for role, state in states.items():
        wanted = (critic if role == "critic" else generator).state_dict()
        if role == "critic" and spectral:
            wanted = _with_spectral_norm(wanted)
        lines += [f"{role} {line}" for line in published_keys.mismatches(state, wanted)]
    return lines


def _with_spectral_norm(state: State) -> State:
    """The state of a critic after `spectral_norm_`, keys and shapes alone."""
    result = {}
    for key, value in state.items():
        if value.ndim > 1:
            place = f"{key.removesuffix('.weight')}.parametrizations.weight"
            result[f"{place}.original"] = value
            result[f"{place}.0._u"], result[f"{place}.0._v"] = value.flatten(1)[:, 0], value[0].flatten()
        else:
            result[key] = value
    return result


def _nearest(wrong: dict[tuple[str, int], list[str]], states: dict[str, State], resolution: int | None) -> str:
    if not wrong:
        asked = "" if resolution is None else f" at {resolution} pixels"
        return f"it has no such network{asked}; keys: {_listed(key for state in states.values() for key in state)}"
    (model, side), lines = min(wrong.items(), key=lambda item: len(item[1]))
    return f"of its networks {model} at {side} pixels is nearest, and {len(lines)} keys do not match: {_listed(lines)}"


def _listed(items: Iterable[str], most: int = 20) -> str:
    items = [str(item) for item in items]
    return ", ".join(items[:most]) + (f", and {len(items) - most} more" if len(items) > most else "")


_PAPERS = (("dcgan", 32), ("dcgan", 48), *(("resnet", side) for side in (32, 48, 128, 256)))

SOURCES = (
    _Source(
        "GN-GAN",
        {"generator": "net_G", "ema": "ema_G", "critic": "net_D"},
        published_keys.gngan_generator,
        published_keys.gngan_critic,
        (*_PAPERS, ("biggan", 32)),
    ),
    _Source(
        "Faster GN-GAN",
        {"generator": "G", "ema": "G_ema", "critic": "D"},
        published_keys.faster_generator,
        published_keys.faster_critic,
        (*_PAPERS, *(("biggan-faster", side) for side in (32, 64, 128))),
    ),
)
MIMICRY = _Source(
    "mimicry",
    # One network a file, always under the same key.
    {},
    published_keys.mimicry_generator,
    published_keys.mimicry_critic,
    tuple(("mimicry-resnet", side) for side in (32, 48, 64, 128)),
)
