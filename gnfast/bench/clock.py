"""Time: of steps that take turns, by the host's clock, and of one call, by the device's."""

import statistics
import time
from collections.abc import Callable

import torch

Step = Callable[[], object]
Times = dict[str, float]


def interleaved_ms(steps: dict[str, Step], rounds: int = 15, warmup: int = 2) -> dict[str, Times]:
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
    return {name: _summary(values, "ms") for name, values in samples.items()}


def device_us(function: Step, device: torch.device | str = "cuda", budget_s: float = 0.3) -> Times:
    """Microseconds of one call on the device: median and quartiles.

    On a GPU the calls of one sample are issued back to back, enough of them that the launch of the first does not
    count; L2 is left warm, so a tensor that fits it is served from there. On a CPU it is the host's time.
    """
    clock = _cuda_us if torch.device(device).type == "cuda" else _host_us
    for _ in range(3):
        function()
    calls = max(1, min(1000, int(5e3 / max(clock(function, 5), 0.1))))
    samples = []
    deadline = time.perf_counter() + budget_s
    while len(samples) < 3 or (time.perf_counter() < deadline and len(samples) < 50):
        samples.append(clock(function, calls))
    return _summary(samples, "us")


def synchronize() -> None:
    """Waits for the device, so that the host clock can be read."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _cuda_us(function: Step, calls: int) -> float:
    torch.cuda.synchronize()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(calls):
        function()
    end.record()
    end.synchronize()
    return 1e3 * start.elapsed_time(end) / calls


def _host_us(function: Step, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        function()
    return 1e6 * (time.perf_counter() - start) / calls


def _summary(values: list[float], unit: str) -> Times:
    low, median, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    rounded = {name: round(v, 3) for name, v in (("median", median), ("q25", low), ("q75", high))}
    return {f"{name}_{unit}": value for name, value in rounded.items()} | {"rounds": len(values)}
