"""Time: of steps that take turns, by the host's clock, and of one call, by the device's."""

import contextlib
import gc
import statistics
import time
import timeit
from collections.abc import Callable

import torch

Step = Callable[[], object]
Times = dict[str, float]


def interleaved_ms(
    steps: dict[str, Step],
    rounds: int = 15,
    warmup: int = 2,
    budget_s: float = 0.0,
    most: int = 50,
    around: Callable[[str], contextlib.AbstractContextManager[None]] = lambda name: contextlib.nullcontext(),
) -> dict[str, Times]:
    """Wall-clock milliseconds of each step: median and quartiles over rounds.

    The steps take turns within a round, so that a machine that drifts slows all of them alike and ratios hold. Where
    there is a GPU, each is waited for, and `host_ms` is the median time until its call returned.

    After `warmup` rounds at least `rounds` are timed, and up to `most` in `budget_s` seconds. A step runs in what
    `around` gives for its name, which is not timed.
    """
    samples: dict[str, list[float]] = {name: [] for name in steps}
    returned: dict[str, list[float]] = {name: [] for name in steps}
    done, deadline = -warmup, 0.0
    while done < rounds or (done < most and time.perf_counter() < deadline):
        if done == 0:
            deadline = time.perf_counter() + budget_s
        for name, step in steps.items():
            with around(name):
                synchronize()
                start = time.perf_counter()
                step()
                host = time.perf_counter()
                synchronize()
                end = time.perf_counter()
            if done >= 0:
                samples[name].append(1e3 * (end - start))
                returned[name].append(1e3 * (host - start))
        done += 1
    times = {name: _summary(values, "ms") for name, values in samples.items()}
    if torch.cuda.is_initialized():
        for name, values in returned.items():
            times[name]["host_ms"] = round(statistics.median(values), 3)
    return times


def device_ms(step: Step, host_ms: float) -> float | None:
    """Milliseconds that the GPU takes over one step whose launches all wait in its queue before it begins.

    So Python's time is not in it, nor are gaps in which the device would wait for Python. The step has run before, and
    its call takes `host_ms`. None where the launches did not fit the queue, or the step waits for the device itself:
    then there is no such time. None too where the call takes longer than a tenth of a second.
    """
    if host_ms > 100:
        return None
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    # Clock cycles, of which no GPU has more than 2.5e6 a millisecond: the queue stays closed while Python fills it.
    torch.cuda._sleep(int(2.5e6 * (2 * host_ms + 1)))
    begin.record()
    step()
    end.record()
    queued = not begin.query()
    end.synchronize()
    return round(begin.elapsed_time(end), 4) if queued else None


def back_to_back_ms(step: Step, median_ms: float, budget_s: float) -> float:
    """Milliseconds per step of a GPU that gets one after the other without waiting: what a training run takes.

    Of 2 to 100 steps, about as many as fit the budget where one takes `median_ms` by itself.
    """
    calls = max(2, min(100, int(1e3 * budget_s / max(median_ms, 1e-3))))
    return round(_cuda_us(step, calls) / 1e3, 4)


def device_us(function: Step, device: torch.device | str = "cuda", budget_s: float = 0.3) -> Times:
    """Microseconds of one call on the device: median, quartiles and the least (`least_us`).

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
    return _summary(samples, "us") | {"least_us": min(samples)}


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
    # Which timeit turns off: collecting garbage is a part of what a call costs.
    return 1e6 * timeit.timeit(function, gc.enable, number=calls) / calls


def _summary(values: list[float], unit: str) -> Times:
    quartiles = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    named = zip(("q25", "median", "q75"), quartiles, strict=True)
    return {f"{name}_{unit}": round(value, 3) for name, value in named} | {"rounds": len(values)}
