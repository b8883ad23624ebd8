"""The arithmetic that `--precision` stands for on a device, in one place."""

import torch

from gnfast.interop.device import resolve_device

# Compute capability: tensor cores multiply bfloat16 and TF32 from here on.
_AMPERE = (8, 0)


def resolved(precision: str, device: torch.device) -> str:
    """`auto` is bfloat16 where a GPU multiplies it fast, and float32 elsewhere; TF32 is float32 where there is none."""
    if precision not in ("auto", "tf32"):
        return precision
    modern = device.type == "cuda" and torch.cuda.get_device_capability(device) >= _AMPERE
    return {"auto": "bfloat16", "tf32": "tf32"}[precision] if modern else "float32"


def same(one: str, other: str, device: str) -> bool:
    """Whether two values of `--precision` are the same arithmetic on the device that `--device` names."""
    try:
        return one == other or resolved(one, resolve_device(device)) == resolved(other, resolve_device(device))
    except ValueError:
        # A device of another machine.
        return False
