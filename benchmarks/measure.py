"""How the benchmarks measure: time, peak memory, operations, and what they were measured on."""

import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

Step = Callable[[], object]


def interleaved_ms(steps: dict[str, Step], rounds: int = 15, warmup: int = 2) -> dict[str, dict[str, float]]:
    """Wall-clock milliseconds of each step: median and quartiles over rounds.

    The steps take turns within a round, so that a machine that drifts slows all of them alike and ratios hold.
    """
    samples: dict[str, list[float]] = {name: [] for name in steps}
    for round_index in range(warmup + rounds):
        for name, step in steps.items():
            synchronize()
            start = time.perf_counter()
            step()
            synchronize()
            if round_index >= warmup:
                samples[name].append(1e3 * (time.perf_counter() - start))
    return {name: _quartiles(values) for name, values in samples.items()}


def peak_bytes(step: Step, net: torch.nn.Module) -> int:
    """The most bytes that tensors allocated by the step occupy at one time, the gradients of `net` included."""
    step()
    # The step would free the gradients of the one before, which this count has not seen come.
    net.zero_grad(set_to_none=True)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    occupied = peak = 0
    events = (event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]")
    for event in sorted(events, key=lambda event: event.start_ns()):
        occupied += event.nbytes()
        peak = max(peak, occupied)
    return peak


def count_flops(step: Step) -> int:
    """Floating-point operations of the step's convolutions and matrix products, as PyTorch counts them."""
    # A first run traces the network, whose shapes come from running operations without data; those are not work.
    step()
    with _FlopCounter() as counter:
        step()
    return counter.total


class _FlopCounter(TorchDispatchMode):
    """PyTorch's formulas without the module tracking of its FlopCounterMode, which breaks `torch.autograd.grad`."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=result)
        return result


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """||actual - expected|| / ||expected||."""
    return ((actual - expected).norm() / expected.norm()).item()


def typical_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """The median over samples of the relative error.

    Where rounding puts a pre-activation on the other side of zero, the input gradient of that sample jumps. It happens
    to any two implementations in low precision, and to few samples, which a norm over the batch would let dominate.
    """
    difference = (actual - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1)
    return difference.median().item()


def synchronize() -> None:
    """Waits for the device, so that the host clock can be read."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def environment() -> dict[str, Any]:
    """Device, versions and threads: what a figure needs beside it."""
    from gnfast.kernels import backends, build_info

    described = {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else _processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "build": build_info(),
        "backends": backends(),
    }
    if torch.cuda.is_available():
        described |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    return described


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as info:
            return next(line.split(":", 1)[1].strip() for line in info if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _quartiles(values: list[float]) -> dict[str, float]:
    low, median, high = statistics.quantiles(values, n=4)
    return {"median_ms": round(median, 3), "q25_ms": round(low, 3), "q75_ms": round(high, 3), "rounds": len(values)}
