"""Devices by the names that commands take."""

import torch


def resolve_device(name: str) -> torch.device:
    """`auto` to a GPU where there is one, any other name to that device."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"--device: got {name!r}, want auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda") or (device.type == "cuda" and not torch.cuda.is_available()):
        raise ValueError(f"--device: got {name!r}, but this PyTorch ({torch.__version__}) has no such device")
    return device
