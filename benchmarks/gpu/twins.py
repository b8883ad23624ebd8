"""What exists twice, side by side: the times that decide which of the two stays (CONTRIBUTING.md)."""

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
from gnfast.bench.baselines import repaired
from gnfast.bench.clock import device_us
from gnfast.bench.critic_steps import critic_step, double_backward, four_passes
from gnfast.bench.critics import shipped
from gnfast.bench.gate import NO_BUDGET, error_of, typical_error, within
from gnfast.bench.graph import captured
from gnfast.bench.mode import tuned
from gnfast.kernels import backend

Calls = dict[str, Callable[[], object]]


def twins(context: Context) -> Iterator[Row]:
    """Each call by each backend that runs here, after its result was found to agree; steps are captured."""
    device = torch.device(context.device)
    for operation, calls in (("sign_bits", _sign_bits), ("spectral", _spectral), ("mlp", _small_critics)):
        for name in backend.choices(operation, device.type):
            with mock.patch.dict(backend.CHOSEN, {(operation, device.type): (name,)}):
                for what, call in calls(context, device).items():
                    yield {"name": what, "backend": name, **device_us(call, device, budget_s=context.budget(0.1))}
    for branches in ("0", "1"):
        with mock.patch.dict(os.environ, GNFAST_BRANCH=branches):
            for what, call in _critics(context, device).items():
                row = {"name": what, "backend": "two branches" if branches == "1" else "one after the other"}
                yield row | device_us(call, device, budget_s=context.budget(0.1))


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
    mode = tuned("bfloat16")
    for name in ("CNN 32", "ResNet 32"):
        chosen = shipped(name, width=0.05 if context.quick else 1.0)
        for batch in (2,) if context.quick else (16, 128):
            net = chosen.critic(torch.float32, mode.layout, device)
            x = chosen.images(batch, torch.float32, mode.layout, device)
            with mode.active(device):
                step = captured(partial(critic_step, four_passes, net, x), device)
                error = typical_error(step().values, critic_step(repaired, net, x).values)
            if not error < 0.5:
                raise AssertionError(f"{name}: the step differs from double backward by {error:.2g}")
            calls[f"{name} critic step, {batch} images, bfloat16"] = step
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
