"""Spectral normalisation of all layers, forward and backward, against PyTorch's parametrization in the same run:

    python benchmarks/bench_spectral.py [--threads 2] [--rounds 15]     ratios; exit status 1 if a bound is missed
    make bench                                                          the rows one by one

A step reads every layer's weight in training mode (one power iteration each) and takes all gradients back to the
parameters. Results are checked against PyTorch's before anything is timed.
"""

import argparse
import copy
import sys
from collections.abc import Callable

import pytest
import torch
from measure import interleaved_ms
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm as torch_spectral_norm

import gnfast
from gnfast import models

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
BOUND = 0.50


def sn_gan_layers() -> list[nn.Module]:
    """The convolutions and the linear of the CNN critic for 32×32."""
    _, critic = models.build("dcgan", resolution=32)
    return [layer for layer in critic.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]


def ladder_layers() -> list[nn.Module]:
    """3×3 convolutions, 64 to 1024 channels."""
    return [nn.Conv2d(c, 2 * c, 3, padding=1) for c in (64, 128, 256, 512)]


NETWORKS = {"SN-GAN CNN": sn_gan_layers, "ladder 64-1024": ladder_layers}


class Weights(nn.Module):
    """A model whose forward reads the weight of each of its layers, and does nothing else."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self) -> list[Tensor]:
        return [layer.weight for layer in self.layers]


def make(network: str, layout: torch.memory_format, dtype: torch.dtype, device: str) -> dict[str, Weights]:
    """The same layers normalised in each way."""
    torch.manual_seed(0)
    plain = Weights(NETWORKS[network]()).to(device=device, dtype=dtype, memory_format=layout)
    ways = {way: copy.deepcopy(plain) for way in ("PyTorch", "gnfast, per layer", "gnfast, model")}
    for way, normalize in (("PyTorch", torch_spectral_norm), ("gnfast, per layer", gnfast.spectral_norm)):
        for layer in ways[way].layers:
            normalize(layer)
    gnfast.spectral_norm_(ways["gnfast, model"])
    for way in ways.values():
        way.load_state_dict(ways["PyTorch"].state_dict())
    return ways


def step(net: Weights, directions: list[Tensor]) -> None:
    """Forward and backward of the normalisation alone."""
    net.zero_grad(set_to_none=True)
    torch.autograd.backward(net(), directions)


def directions_for(net: Weights) -> list[Tensor]:
    return [torch.randn_like(layer.parametrizations.weight.original) for layer in net.layers]


def check(ways: dict[str, Weights], directions: list[Tensor]) -> None:
    """Raises AssertionError unless all ways give the same weights and gradients."""
    results = {}
    for way, net in ways.items():
        net = copy.deepcopy(net)
        weights = net()
        net.zero_grad()
        torch.autograd.backward(weights, directions)
        gradients = [layer.parametrizations.weight.original.grad for layer in net.layers]
        results[way] = [x.detach().double() for x in (*weights, *gradients)]
    dtype = directions[0].dtype
    for way, tensors in results.items():
        for actual, expected in zip(tensors, results["PyTorch"], strict=True):
            error = ((actual - expected).norm() / expected.norm()).item()
            assert error < 100 * torch.finfo(dtype).eps, f"{way} differs from PyTorch by {error:.1e}"


def prepared_steps(network: str, layout: torch.memory_format, dtype: torch.dtype, device: str) -> dict[str, Callable]:
    """way -> a step, after its results were found to agree."""
    ways = make(network, layout, dtype, device)
    directions = directions_for(ways["PyTorch"])
    check(ways, directions)
    return {way: lambda net=net: step(net, directions) for way, net in ways.items()}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("way", ["PyTorch", "gnfast, per layer", "gnfast, model"])
def bench_spectral_norm(benchmark, device, network, layout, way):
    function = prepared_steps(network, layout, torch.float32, device)[way]

    def timed():
        function()
        if device == "cuda":
            torch.cuda.synchronize()

    benchmark.group = f"spectral norm {device} {network} {layout}"
    benchmark(timed)


def main() -> int:
    parser = argparse.ArgumentParser(description="Times spectral normalisation against PyTorch's on the CPU.")
    parser.add_argument("--threads", type=int, help="threads (default: PyTorch's)")
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds per comparison")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    print(f"{torch.get_num_threads()} threads, PyTorch {torch.__version__}, float32, forward and backward")
    missed = False
    for network in NETWORKS:
        for layout in (torch.contiguous_format, torch.channels_last):
            times = interleaved_ms(prepared_steps(network, layout, torch.float32, "cpu"), arguments.rounds)
            baseline = times["PyTorch"]["median_ms"]
            ratio = times["gnfast, model"]["median_ms"] / baseline
            missed |= ratio > BOUND
            described = ", ".join(f"{way} {t['median_ms']:.2f} ms" for way, t in times.items())
            verdict = "ok" if ratio <= BOUND else "MISSED"
            print(f"{network:15} {layout!s:25} {ratio:.3f} ≤ {BOUND:.2f} {verdict:7} {described}", flush=True)
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
