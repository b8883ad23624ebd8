"""What exists twice, side by side: the times that decide which of the two stays (CONTRIBUTING.md)."""

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator
from functools import partial
from unittest import mock

import torch
from torch import nn

from benchmarks.gpu.section import Context, Row
from benchmarks.gpu.small_kernels import check_sign_bits, sign_bit_operations
from gnfast.bench import spectral_ways
from gnfast.bench.case import CAPTURED, Setup
from gnfast.bench.cases import critic_cases
from gnfast.bench.clock import device_us
from gnfast.bench.critic_steps import critic_step, double_backward, four_passes
from gnfast.bench.critics import shipped
from gnfast.bench.gate import NO_BUDGET, Gate, error_of, within
from gnfast.bench.graph import captured
from gnfast.kernels import backend
from gnfast.plan import tracing

Calls = dict[str, Callable[[], object]]


def twins(context: Context) -> Iterator[Row]:
    """Each call by each backend that runs here, after its result was found to agree; steps are captured."""
    device = torch.device(context.device)
    for operation, calls in (("sign_bits", _sign_bits), ("spectral", _spectral), ("mlp", _small_critics)):
        for name in backend.choices(operation, device.type):
            with mock.patch.dict(backend.CHOSEN, {(operation, device.type): (name,)}):
                for what, call in calls(context, device).items():
                    yield {"name": what, "backend": name, **device_us(call, device, budget_s=context.budget(0.1))}
    for way, active in CRITIC_WAYS.items():
        with mock.patch.dict(os.environ, GNFAST_BRANCH="1"), active():
            for what, call in _critics(context, device).items():
                yield {"name": what, "backend": way, **device_us(call, device, budget_s=context.budget(0.1))}


@contextlib.contextmanager
def unshortened() -> Iterator[None]:
    """Plans whose ends are as the network states them (`gnfast/plan/ends.py`)."""
    tracing._plan.cache_clear()
    with mock.patch.object(tracing, "shorten", lambda nodes, output, derived, dtypes: (nodes, tuple(derived), None)):
        yield
    tracing._plan.cache_clear()


CRITIC_WAYS = {
    "two branches": contextlib.nullcontext,
    "one after the other": partial(mock.patch.dict, os.environ, GNFAST_BRANCH="0"),
    "two branches, ends as stated": unshortened,
}


def _sign_bits(context: Context, device: torch.device) -> Calls:
    calls: Calls = {}
    for shape in [(2, 3, 4, 4)] if context.quick else [(64, 512, 4, 4), (256, 128, 64, 64)]:
        for dtype in (torch.float32, torch.bfloat16):
            x = torch.randn(shape, device=device).to(dtype)
            check_sign_bits(x)
            operations = sign_bit_operations(x)
            size = f"{'×'.join(map(str, shape))} {str(dtype).removeprefix('torch.')}"
            calls |= {f"{name}, {size}": operations[name].call for name in ("pack_", "mask_")}
    return calls


def _spectral(context: Context, device: torch.device) -> Calls:
    network = "ladder 8-16" if context.quick else "ladder 64-1024"
    layers = spectral_ways.NETWORKS[network]()
    ways, directions = spectral_ways.make(layers, torch.contiguous_format, torch.float32, device)
    if problem := spectral_ways.disagreement(ways, directions):
        raise AssertionError(problem)
    step = partial(spectral_ways.step, ways[spectral_ways.MODEL], directions)
    return {f"spectral normalisation, {network}": captured(step, device)}


def _critics(context: Context, device: torch.device) -> Calls:
    """Critic steps in bfloat16, of batches that fill a GPU and that do not."""
    calls: Calls = {}
    for name in ("CNN 32", "ResNet 32"):
        for batch in (2,) if context.quick else (16, 128):
            network = shipped(name, width=0.05 if context.quick else 1.0)
            (case,) = critic_cases(network, Setup(device, "bfloat16", batch, graphs=True))
            call = case.prepare(CAPTURED)
            with case.variants[CAPTURED].active(device):
                result = call()
            error, passes = Gate(case).check(CAPTURED, result)
            if not passes:
                raise AssertionError(f"{name}, {batch} images: the step differs from double backward by {error}")
            calls[f"{name} critic step, {batch} images, bfloat16"] = call
    return calls


def _small_critics(context: Context, device: torch.device) -> Calls:
    """Perceptrons as they train on points of the plane, and the largest that has kernels."""
    calls: Calls = {}
    for inputs, width, hidden in ((2, 64, 3), (64, 64, 4)):
        widths = [inputs, *[width] * hidden]
        layers = [layer for a, b in itertools.pairwise(widths) for layer in (nn.Linear(a, b), nn.ReLU())]
        net = nn.Sequential(*layers, nn.Linear(width, 1)).to(device)
        x = torch.randn(6 if context.quick else 256, inputs, device=device)
        error = error_of(critic_step(four_passes, net, x), critic_step(double_backward, net, x))
        if not within(error, NO_BUDGET, "float32"):
            raise AssertionError(f"a perceptron of {hidden} hidden layers differs from double backward by {error}")
        calls[f"perceptron {'-'.join(map(str, widths))}-1"] = captured(
            partial(critic_step, four_passes, net, x), device
        )
    return calls
