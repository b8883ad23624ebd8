"""Checkpoints of the papers' code, as state dicts of gnfast's networks.

Read are those of GN-GAN (basiclab/GNGAN-PyTorch) and PGN-GAN (sumorday/EDGAN-PyTorch), which have one format, of Faster
GN-GAN (basiclab/Faster-GNGAN-PyTorch), and of mimicry's SN-GAN (kwotsin/mimicry), one network a file. Keys are renamed,
and then compared, shapes included, with every network that the code has; the one that fits is what was trained.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

from torch import Tensor

from gnfast import models
from gnfast.config.config import Config
from gnfast.errors import InputError
from gnfast.io.tensors import is_state, load_tensors
from gnfast.train import published_keys
from gnfast.train.networks import mismatches, outlines
from gnfast.train.published_keys import State, renamed

_LONGEST_KEY = 200
# BigGAN's critic of 128 pixels has 88 million.
_MOST_NUMBERS = 1 << 27
MIMICRY = "mimicry"
_ONLY = "model_state_dict"


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
    """A format: where a file has the three networks, how their keys are renamed, and which networks there are."""

    name: str
    roles: Callable[[dict[str, Any]], dict[str, str]]
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
    saved = load_tensors(path)
    if not isinstance(saved, dict) or not all(isinstance(key, str) for key in saved):
        raise InputError(f"{path}: holds a {type(saved).__name__}, wanted a dict of states")
    source, roles = _recognised(path, saved)
    states = {}
    for role, key in roles.items():
        rename = source.rename_critic if role == "critic" else source.rename_generator
        states[role] = published_keys.parametrized(rename(_state(path, saved, key)))
    spectral = any("parametrizations" in key for key in states.get("critic", {}))
    settings = {**_sizes(states, saved.get("fixed_z")), "spectral_norm": spectral}
    model, side = _fitting(path, source, states, settings, resolution)
    step = saved.get("step", saved.get("global_step"))
    return Published(
        source=source.name,
        model=model,
        resolution=side,
        **settings,
        step=int(step) if isinstance(step, int | float) and math.isfinite(step) else None,
        generator=states.get("generator"),
        ema=states.get("ema"),
        critic=states.get("critic"),
    )


def _recognised(path: Path, saved: dict[str, Any]) -> tuple[_Source, dict[str, str]]:
    """The format of a file, and its keys of the networks that it has."""
    for source in SOURCES:
        roles = {role: key for role, key in source.roles(saved).items() if key in saved}
        if roles:
            return source, roles
    if {"preset", "data", "state"} <= saved.keys():
        folder = path.absolute().parent
        run = f" ({folder.parent})" if folder.name == "checkpoints" else ""
        raise InputError(f"{path}: a checkpoint of gnfast train; wanted its run folder{run} or an exported generator")
    raise InputError(
        f"{path}: no known format; it has {_listed(saved)}, wanted net_G, ema_G, net_D (GN-GAN, PGN-GAN), "
        "G, G_ema, D (Faster GN-GAN) or model_state_dict (mimicry)"
    )


def _state(path: Path, saved: dict[str, Any], key: str) -> State:
    """One network's state, without the prefix that DistributedDataParallel gives."""
    state = saved[key]
    if not is_state(state) or not all(len(name) < _LONGEST_KEY for name in state):
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


def _fitting(
    path: Path, source: _Source, states: dict[str, State], settings: dict[str, Any], resolution: int | None
) -> tuple[str, int]:
    """The network and the side of its images that the states belong to."""
    wrong = {
        (model, side): _differences(states, {**settings, "model": model, "resolution": side})
        for model, side in source.networks
        if resolution is None or side == resolution
        if models.REGISTRY[model].conditional == (settings["classes"] > 0)
    }
    fitting = [network for network, differences in wrong.items() if not differences]
    if not fitting:
        raise InputError(f"{path}: {source.name}'s format, but {_nearest(wrong, states, resolution)}")
    if len(fitting) > 1:
        raise InputError(
            f"{path}: fits {' and '.join(f'{model} at {side} pixels' for model, side in fitting)}; give `resolution`"
        )
    return fitting[0]


def _differences(states: dict[str, State], settings: dict[str, Any]) -> list[str]:
    """What keeps the states from being those of a network, a line for each key."""
    try:
        generator, critic = outlines(Config(data="", **settings))
    except ValueError as error:
        sizes = ", ".join(f"{name} {settings[name]}" for name in ("channels", "z_dim", "classes"))
        return [f"none is built with {sizes} ({error})"]
    wanted = {"generator": generator, "ema": generator, "critic": critic}
    return [f"{role} {line}" for role, state in states.items() for line in mismatches(state, wanted[role].state_dict())]


def _nearest(wrong: dict[tuple[str, int], list[str]], states: dict[str, State], resolution: int | None) -> str:
    if not wrong:
        asked = "" if resolution is None else f" at {resolution} pixels"
        return f"it has no such network{asked}; keys: {_listed(key for state in states.values() for key in state)}"
    (model, side), lines = min(wrong.items(), key=lambda item: len(item[1]))
    return f"of its networks {model} at {side} pixels is nearest, and {len(lines)} keys do not match: {_listed(lines)}"


def _listed(items: Iterable[str], most: int = 20) -> str:
    items = [str(item) for item in items]
    return ", ".join(items[:most]) + (f", and {len(items) - most} more" if len(items) > most else "")


def _dict(found: Any) -> dict[str, Any]:
    return found if isinstance(found, dict) else {}


_PAPERS = (("dcgan", 32), ("dcgan", 48), *(("resnet", side) for side in (32, 48, 128, 256)))

SOURCES = (
    _Source(
        "GN-GAN",
        lambda saved: {"generator": "net_G", "ema": "ema_G", "critic": "net_D"},
        partial(renamed, rules=published_keys.GNGAN_GENERATOR),
        partial(renamed, rules=published_keys.GNGAN_CRITIC),
        (*_PAPERS, ("biggan", 32)),
    ),
    _Source(
        "Faster GN-GAN",
        lambda saved: {"generator": "G", "ema": "G_ema", "critic": "D"},
        published_keys.faster_generator,
        published_keys.faster_critic,
        (*_PAPERS, *(("biggan-faster", side) for side in (32, 64, 128))),
    ),
    _Source(
        MIMICRY,
        # One network a file, always under the same key.
        lambda saved: {"generator" if "l1.weight" in _dict(saved.get(_ONLY)) else "critic": _ONLY},
        partial(renamed, rules=published_keys.MIMICRY_GENERATOR),
        partial(renamed, rules=published_keys.MIMICRY_CRITIC),
        tuple(("mimicry-resnet", side) for side in (32, 48, 64, 128)),
    ),
)
