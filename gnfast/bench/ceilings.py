"""What the machine at hand can do: its best product and its best copy, measured."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from gnfast.bench.clock import device_us
from gnfast.bench.mode import Mode


@dataclass(frozen=True)
class Ceilings:
    """Measured rates of one device in one precision.

    Attributes:
        flop_per_s: of the faster of a large matrix product and a 3×3 convolution.
        bytes_per_s: of a copy, bytes read and bytes written.
    """

    flop_per_s: float
    bytes_per_s: float

    def __str__(self) -> str:
        return f"{self.flop_per_s / 1e9:,.0f} GFLOP/s in products, {self.bytes_per_s / 1e9:,.0f} GB/s in copies"


@torch.no_grad()
def measure(device: torch.device, mode: Mode, quick: bool = False) -> Ceilings:
    """The ceilings in a mode's precision; `quick` takes smaller products and copies, for a rougher answer."""
    on_gpu, dtype = device.type == "cuda", mode.autocast or torch.float32

    def rate(work: float, call: Callable[[], object]) -> float:
        return work / device_us(call, device, 0.05 if quick else 0.3)["median_us"] * 1e6

    with mode.active(device):
        side = 256 if quick else 8192 if on_gpu else 1536
        a, b = torch.randn(2, side, side, device=device).to(dtype)
        product = rate(2 * side**3, lambda: a @ b)

        channels, batch = (256, 64) if on_gpu and not quick else (128, 2 if quick else 16)
        x = torch.randn(batch, channels, 32, 32, device=device).to(dtype, memory_format=mode.layout)
        weight = torch.randn(channels, channels, 3, 3, device=device).to(dtype, memory_format=mode.layout)
        convolution = rate(2 * batch * 32**2 * channels**2 * 9, lambda: torch.conv2d(x, weight, padding=1))

        # Too large for any cache.
        source = torch.ones(1 << (22 if quick else 30 if on_gpu else 28), dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        copy = rate(2 * source.nbytes, lambda: target.copy_(source))
    return Ceilings(max(product, convolution), copy)
