"""The optimisers of both networks, as a step of a run and one that is a CUDA graph need them."""

import torch
from torch import Tensor, nn

from gnfast.config.config import Config


def optimizer_for(config: Config, net: nn.Module, rate: float, device: torch.device) -> torch.optim.Optimizer:
    if config.optimizer == "rmsprop":
        return torch.optim.RMSprop(net.parameters(), rate)
    # One kernel for all weights where PyTorch has it; the same formula as the plain one.
    return torch.optim.Adam(net.parameters(), rate, config.betas, config.adam_eps, fused=device.type in ("cpu", "cuda"))


def decay(step: int | Tensor, start: int, end: int) -> float | Tensor:
    """The factor on learning rates after `step` steps, a number or a tensor on a device: 1 to `start`, 0 at `end`."""
    if isinstance(step, Tensor):
        return ((end - step.double()) / (end - start)).clamp(max=1)
    return min(1.0, (end - step) / (end - start))


def set_rate(optimizer: torch.optim.Optimizer, rate: float | Tensor) -> None:
    for group in optimizer.param_groups:
        if isinstance(rate, Tensor):
            group["lr"].copy_(rate.squeeze())
        elif isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def prepare(optimizer: torch.optim.Optimizer, device: torch.device, captured: bool) -> None:
    """Steps and rates where a captured step wants them, on the device, or where others do."""
    for group in optimizer.param_groups:
        group["capturable"] = captured
        group["lr"] = torch.tensor(float(group["lr"]), device=device) if captured else float(group["lr"])
    if captured:
        for state in optimizer.state.values():
            state["step"] = state["step"].to(device, torch.float32)
