"""Kernels that take microseconds: sign bits against what they replace, and what a launch costs."""

from collections.abc import Iterator
from functools import partial
from typing import Any

from benchmarks.gpu.section import Context, Row


def sign_bits(context: Context) -> Iterator[Row]:
    """leaky_relu_pack and leaky_relu_mask against the PyTorch operations that they replace."""
    import torch

    shapes = [(2, 3, 4, 4)] if context.quick else [(64, 512, 4, 4), (64, 128, 32, 32), (256, 128, 64, 64)]
    for shape in shapes:
        for dtype in (torch.float32, torch.bfloat16):
            yield from _sign_bit_rows(context, shape, dtype)


def _sign_bit_rows(context: Context, shape: tuple[int, ...], dtype: Any) -> Iterator[Row]:
    import torch

    from gnfast.bench.clock import device_us
    from gnfast.kernels import leaky_relu_mask, leaky_relu_pack

    x, t = (torch.randn(shape, device=context.device).to(dtype) for _ in range(2))
    y, bits = leaky_relu_pack(x)
    threshold_backward = torch.ops.aten.threshold_backward
    assert torch.equal(y, torch.relu(x)), "leaky_relu_pack differs from torch.relu"
    assert torch.equal(leaky_relu_mask(t, bits), threshold_backward(t, x, 0)), "leaky_relu_mask: wrong cotangent"

    in_place = x.clone()
    num_bytes = 2 * x.nbytes + bits.nbytes
    rows = {
        ("pack", "relu"): (lambda: leaky_relu_pack(x), lambda: torch.relu(x)),
        ("pack_", "relu_"): (lambda: leaky_relu_pack(in_place, inplace=True), lambda: torch.relu_(in_place)),
        ("mask", "threshold_backward"): (lambda: leaky_relu_mask(t, bits), lambda: threshold_backward(t, x, 0)),
        ("mask_", "t * (x > 0)"): (lambda: leaky_relu_mask(in_place, bits, inplace=True), lambda: t * (x > 0)),
    }
    for (name, baseline), (ours, theirs) in rows.items():
        times, base = (device_us(function, context.device, budget_s=context.budget(0.1)) for function in (ours, theirs))
        yield {
            "name": name,
            "shape": list(shape),
            "dtype": str(dtype).removeprefix("torch."),
            "bytes": num_bytes,
            **times,
            "baseline": baseline,
            "baseline_median_us": base["median_us"],
            "ratio_to_baseline": round(times["median_us"] / base["median_us"], 3),
            "fraction_of_bandwidth_floor": context.fraction_of_bandwidth(num_bytes, times["median_us"]),
        }


def launches(context: Context) -> Iterator[Row]:
    """The price of a kernel that does nothing worth mentioning: launched from Python, and as a node of a CUDA graph.

    And of a `CapturedStep` of two such kernels, by the host's clock: what a step takes of Python's time.
    """
    import torch

    import gnfast
    from gnfast.bench.clock import device_us
    from gnfast.bench.graph import captured

    x, count = torch.zeros(32, device=context.device), 10 if context.quick else 1000

    def additions() -> None:
        for _ in range(count):
            x.add_(1)

    for name, function in (("eager", additions), ("graph", captured(additions, torch.device(context.device)))):
        times = device_us(function, context.device, budget_s=context.budget(0.1))
        yield {"name": name, "launches": count, "us_per_launch": round(times["median_us"] / count, 3), **times}

    for inputs in (2, 12):
        tensors = [torch.zeros(32, device=context.device) for _ in range(inputs)]
        step = gnfast.CapturedStep(lambda given: {"loss": given[0].sum(), "score": given[1].sum()}, context.device)
        for _ in range(step.warmup + 1):
            step(tensors)
        times = device_us(partial(step, tensors), "cpu", budget_s=context.budget(0.1))
        yield {"name": "CapturedStep, time of the host", "inputs": inputs, **times}
