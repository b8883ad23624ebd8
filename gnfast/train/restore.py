"""What a checkpoint holds of a state, and what one must hold before a run takes anything over from it."""

from typing import Any

import torch
from torch import Tensor

from gnfast.errors import InputError
from gnfast.train.ring import between


def assembled(tensors: dict[str, Any], small: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint holds of a state, from `State.tensors` and `State.small` or copies of them."""
    pending = between(tensors["losses"], small["logged"], small["step"])
    optimizers = {
        name: tensors[name]
        | {"param_groups": [a | b for a, b in zip(tensors[name]["param_groups"], groups, strict=True)]}
        for name, groups in small["groups"].items()
    }
    return {
        "step": small["step"],
        "generator": tensors["generator"],
        "critic": tensors["critic"],
        **optimizers,
        "scaler_d": small["scaler_d"],
        "scaler_g": small["scaler_g"],
        "batches": small["batches"],
        "ema": tensors["ema"],
        "noise": small["noise"],
        "pending": [row.clone() for row in pending],
    }


def settings_of(group: dict[str, Any]) -> dict[str, Any]:
    """The numbers of an optimiser's group; a rate that is a tensor is on the device."""
    return {name: value for name, value in group.items() if name != "params" and not isinstance(value, Tensor)}


def require_like(name: str, own: Any, got: Any) -> None:
    """That a part of a checkpoint has the kinds, keys and shapes of our own.

    Raises:
        InputError: it has not; the message names the first difference.
    """
    if isinstance(own, Tensor):
        if not isinstance(got, Tensor) or (got.shape, got.dtype) != (own.shape, own.dtype):
            raise InputError(f"{name}: got {_told(got)}, wanted {_told(own)}")
    elif isinstance(own, dict):
        keys = got.keys() if isinstance(got, dict) else set()
        if keys != own.keys():
            odd = sorted(map(str, own.keys() ^ keys))[0]
            raise InputError(f"{name} {'lacks' if odd in own else 'has an unknown'} {odd[:100]!r}")
        for key, value in own.items():
            require_like(f"{name}.{key}", value, got[key])
    elif type(got) is not type(own):
        raise InputError(f"{name}: got {_told(got)}, wanted {_told(own)}")


def _told(value: Any) -> str:
    return f"{tuple(value.shape)} of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__


def moments(name: str, optimizer: torch.optim.Optimizer, saved: Any) -> dict[int, dict[str, Tensor]]:
    """What an optimiser remembers of each weight, laid out in memory like the weight: fused kernels take that on trust.

    Raises:
        InputError: it is of another optimiser, or of other weights.
    """
    weights = [weight.detach() for group in optimizer.param_groups for weight in group["params"]]
    names = ("exp_avg", "exp_avg_sq") if isinstance(optimizer, torch.optim.Adam) else ("square_avg",)
    entries = saved.get("state") if isinstance(saved, dict) else None
    if not isinstance(entries, dict) or not all(type(i) is int and 0 <= i < len(weights) for i in entries):
        raise InputError(f"{name} is not of {len(weights)} weights")
    kept = {}
    for index, entry in entries.items():
        own = {"step": torch.tensor(0.0), **dict.fromkeys(names, weights[index])}
        require_like(f"{name}[{index}]", own, entry)
        laid_out = {key: torch.empty_like(weights[index]).copy_(entry[key]) for key in names}
        kept[index] = {"step": entry["step"], **laid_out}
    return kept
