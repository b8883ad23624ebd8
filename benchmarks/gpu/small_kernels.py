"""Kernels that take microseconds: sign bits against what they replace, and what a launch costs."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

import gnfast
from benchmarks.gpu.section import Context, Row
from gnfast.bench.clock import device_us
from gnfast.bench.graph import captured
from gnfast.kernels import leaky_relu_mask, leaky_relu_pack
from gnfast.kernels.sign_bits import plain

threshold_backward = torch.ops.aten.threshold_backward


class Operation(NamedTuple):
    """A call, the bytes that it moves at least, and the operation of PyTorch's that it is compared with."""

    call: Callable[[], object]
    bytes: int
    replaces: str


def sign_bit_operations(x: Tensor) -> dict[str, Operation]:
    """Sign-bit operations and PyTorch's by name; those in place repeat on their own output, which costs the same."""
    t, in_place = torch.randn_like(x), x.clone()
    bits = leaky_relu_pack(x)[1]
    least = 2 * x.nbytes + bits.nbytes
    return {
        "relu": Operation(lambda: torch.relu(x), 2 * x.nbytes, "relu"),
        "relu_": Operation(lambda: torch.relu_(in_place), 2 * x.nbytes, "relu_"),
        "pack": Operation(lambda: leaky_relu_pack(x), least, "relu"),
        "pack_": Operation(lambda: leaky_relu_pack(in_place, inplace=True), least, "relu_"),
        "pack, plain PyTorch": Operation(lambda: plain.pack(x, 0.0), least, "relu"),
        "threshold_backward": Operation(lambda: threshold_backward(t, x, 0), 3 * x.nbytes, "threshold_backward"),
        "t * (x > 0)": Operation(lambda: t * (x > 0), 3 * x.nbytes, "t * (x > 0)"),
        "mask": Operation(lambda: leaky_relu_mask(t, bits), least, "threshold_backward"),
        "mask_": Operation(lambda: leaky_relu_mask(in_place, bits, inplace=True), least, "t * (x > 0)"),
        "mask, plain PyTorch": Operation(lambda: plain.mask(t, bits, 0.0), least, "threshold_backward"),
    }


def check_sign_bits(x: Tensor) -> None:
    """Raises AssertionError unless both operations give on x what PyTorch's give."""
    t = torch.randn_like(x)
    y, bits = leaky_relu_pack(x)
    assert torch.equal(y, torch.relu(x)), "leaky_relu_pack differs from torch.relu"
    assert torch.equal(bits, plain.pack(x, 0.0)[1]), "leaky_relu_pack: wrong bits"
    assert torch.equal(leaky_relu_mask(t, bits), threshold_backward(t, x, 0)), "leaky_relu_mask: wrong cotangent"


def sign_bits(context: Context) -> Iterator[Row]:
    """leaky_relu_pack and leaky_relu_mask against the PyTorch operations that they replace."""
    shapes = [(2, 3, 4, 4)] if context.quick else [(64, 512, 4, 4), (64, 128, 32, 32), (256, 128, 64, 64)]
    for shape in shapes:
        for dtype in (torch.float32, torch.bfloat16):
            x = torch.randn(shape, device=context.device).to(dtype)
            check_sign_bits(x)
            operations = sign_bit_operations(x)
            for name in ("pack", "pack_", "mask", "mask_"):
                ours, baseline = operations[name], operations[name].replaces
                times, base = (
                    device_us(call, context.device, budget_s=context.budget(0.1))
                    for call in (ours.call, operations[baseline].call)
                )
                yield {
                    "name": name,
                    "shape": list(shape),
                    "dtype": str(dtype).removeprefix("torch."),
                    "bytes": ours.bytes,
                    **times,
                    "baseline": baseline,
                    "baseline_median_us": base["median_us"],
                    "ratio_to_baseline": round(times["median_us"] / base["median_us"], 3),
                    "fraction_of_bandwidth_floor": context.fraction_of_bandwidth(ours.bytes, times["median_us"]),
                }


def launches(context: Context) -> Iterator[Row]:
    """The price of a kernel that does nothing worth mentioning: launched from Python, and as a node of a CUDA graph.

    And of a `CapturedStep` of two such kernels, by the host's clock: what a step takes of Python's time.
    """
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
