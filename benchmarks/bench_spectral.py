"""Spectral normalisation of all layers, forward and backward, against PyTorch's parametrization in the same run:

    python benchmarks/bench_spectral.py [--threads 2] [--rounds 15]     ratios; exit status 1 if a bound is missed
    make bench                                                          the rows one by one

Results are checked against PyTorch's before anything is timed.
"""

import argparse
import copy
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from gnfast.bench import spectral
from gnfast.bench.agree import error_of
from gnfast.bench.clock import interleaved_ms, synchronize
from gnfast.bench.networks import shipped

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
BOUND = 0.50


def sn_gan_layers() -> list[nn.Module]:
    """The convolutions and the linear of the CNN critic for 32×32."""
    return spectral.layers_of(shipped("CNN 32").critic(torch.float32, torch.contiguous_format))


def ladder_layers() -> list[nn.Module]:
    """3×3 convolutions, 64 to 1024 channels."""
    return [nn.Conv2d(c, 2 * c, 3, padding=1) for c in (64, 128, 256, 512)]


NETWORKS = {"SN-GAN CNN": sn_gan_layers, "ladder 64-1024": ladder_layers}


def check(ways: dict[str, spectral.Weights], directions: list[Tensor]) -> None:
    """Raises AssertionError unless all ways give the same weights and gradients."""
    results = {way: spectral.step(copy.deepcopy(net), directions) for way, net in ways.items()}
    for way, result in results.items():
        error = error_of(result, results[spectral.PYTORCH]).gradients
        assert error < 100 * torch.finfo(directions[0].dtype).eps, f"{way} differs from PyTorch by {error:.1e}"


def prepared_steps(network: str, layout: torch.memory_format, dtype: torch.dtype, device: str) -> dict[str, Callable]:
    """way -> a step, after its results were found to agree."""
    torch.manual_seed(0)
    ways = spectral.make(NETWORKS[network](), layout, dtype, device)
    directions = spectral.directions_for(ways[spectral.PYTORCH])
    check(ways, directions)
    return {way: lambda net=net: spectral.step(net, directions) for way, net in ways.items()}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("way", spectral.WAYS)
def bench_spectral_norm(benchmark, device, network, layout, way):
    function = prepared_steps(network, layout, torch.float32, device)[way]

    def timed():
        function()
        synchronize()

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
            ratio = times[spectral.MODEL]["median_ms"] / times[spectral.PYTORCH]["median_ms"]
            missed |= ratio > BOUND
            described = ", ".join(f"{way} {t['median_ms']:.2f} ms" for way, t in times.items())
            verdict = "ok" if ratio <= BOUND else "MISSED"
            print(f"{network:15} {layout!s:25} {ratio:.3f} ≤ {BOUND:.2f} {verdict:7} {described}", flush=True)
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
