"""Devices by the names that commands take, and the way to them."""

import os

import torch
from torch import Tensor


def resolve_device(name: str) -> torch.device:
    """`auto` to a GPU where there is one, any other name to that device."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"--device: got {name!r}, wanted auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda") or (device.type == "cuda" and not torch.cuda.is_available()):
        raise ValueError(f"--device: got {name!r}, wanted a device that this PyTorch ({torch.__version__}) has")
    return device


def use_threads(asked: int | None, otherwise: int) -> None:
    """Has PyTorch use so many CPU threads, `otherwise` where None are asked for; 0 leaves its choice."""
    if asked is not None and asked < 0:
        raise ValueError(f"--threads: got {asked}, wanted a whole number of at least 0")
    # What a run says may be of another machine, or of a file that says anything.
    if count := min(otherwise, os.cpu_count() or 1) if asked is None else asked:
        torch.set_num_threads(count)


def moved(tensor: Tensor, device: torch.device | str) -> Tensor:
    """The tensor on `device`, copied without a wait for what a GPU is doing.

    From ordinary memory the driver would stage the copy and may first wait for the stream. The pinned tensor may go at
    once: PyTorch's allocator of pinned memory hands its memory out again only when the copy from it has ended.
    """
    if torch.device(device).type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
