"""What the machine at hand can do: its best product and its best copy, measured."""

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
    """The ceilings in a mode's precision.

    Args:
        device: where.
        mode: its precision and layout.
        quick: smaller products and copies, a rougher answer.
    """
    with mode.active(device):
        return Ceilings(
            max(product_rate(device, mode, quick), convolution_rate(device, mode, quick)), copy_rate(device, quick)
        )


def product_rate(device: torch.device, mode: Mode, quick: bool = False) -> float:
    """FLOP/s of a square matrix product: 8192³ on a GPU, 1536³ on a CPU."""
    side = 256 if quick else 8192 if device.type == "cuda" else 1536
    a, b = torch.randn(2, side, side, device=device).to(mode.autocast or torch.float32)
    return 2 * side**3 / device_us(lambda: a @ b, device, _budget_s(quick))["median_us"] * 1e6


def convolution_rate(device: torch.device, mode: Mode, quick: bool = False) -> float:
    """FLOP/s of a 3×3 convolution of 128 channels at 32×32 (256 channels on a GPU)."""
    channels, batch = (256, 64) if device.type == "cuda" and not quick else (128, 2 if quick else 16)
    dtype = mode.autocast or torch.float32
    x = torch.randn(batch, channels, 32, 32, device=device).to(dtype, memory_format=mode.layout)
    weight = torch.randn(channels, channels, 3, 3, device=device).to(dtype, memory_format=mode.layout)
    times = device_us(lambda: torch.conv2d(x, weight, padding=1), device, _budget_s(quick))
    return 2 * batch * 32**2 * channels**2 * 9 / times["median_us"] * 1e6


def copy_rate(device: torch.device, quick: bool = False) -> float:
    """Bytes per second, read and written, of a copy too large for any cache: 1 GiB on a GPU, 256 MiB on a CPU."""
    size = 1 << (22 if quick else 30 if device.type == "cuda" else 28)
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / device_us(lambda: target.copy_(source), device, _budget_s(quick))["median_us"] * 1e6


def _budget_s(quick: bool) -> float:
    return 0.05 if quick else 0.3
