"""What the machine at hand can do: its best product and its best copy, measured.

A machine that is busy, or whose clock has yet to rise, does less in some seconds than in others. So the least time of
a call counts, and what is measured again later is joined by `best`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from gnfast.bench.clock import device_us
from gnfast.bench.mode import Mode
from gnfast.kernels import winograd


@dataclass(frozen=True)
class Ceilings:
    """Measured rates of one device in one precision.

    Attributes:
        flop_per_s: of the fastest of a large matrix product and a 3×3 convolution, PyTorch's and gnfast's. Winograd's
            algorithm does less arithmetic than is counted, which is that of the convolution as it is defined.
        bytes_per_s: of a copy too large for any cache, bytes read and bytes written.
    """

    flop_per_s: float
    bytes_per_s: float

    def __str__(self) -> str:
        return f"{self.flop_per_s / 1e9:,.0f} GFLOP/s in products, {self.bytes_per_s / 1e9:,.0f} GB/s in copies"

    def best(self, other: "Ceilings") -> "Ceilings":
        """The higher of two measurements of each."""
        return Ceilings(max(self.flop_per_s, other.flop_per_s), max(self.bytes_per_s, other.bytes_per_s))


@torch.no_grad()
def measure(device: torch.device, mode: Mode, quick: bool = False) -> Ceilings:
    """The ceilings in a mode's precision. `quick` sees that all works: its copies are of a cache, not of memory."""
    on_gpu, dtype = device.type == "cuda", mode.autocast or torch.float32

    def rate(work: float, call: Callable[[], object]) -> float:
        return work / device_us(call, device, 0.05 if quick else 0.3)["least_us"] * 1e6

    with mode.active(device):
        side = 256 if quick else 8192 if on_gpu else 1536
        a, b = torch.randn(2, side, side, device=device).to(dtype)
        product = rate(2 * side**3, lambda: a @ b)

        batch, channels, pixels = (2, 128, 32) if quick else (64, 256, 32) if on_gpu else (16, 256, 16)
        x = torch.randn(batch, channels, pixels, pixels, device=device).to(dtype, memory_format=mode.layout)
        weight = torch.randn(channels, channels, 3, 3, device=device).to(dtype, memory_format=mode.layout)
        flops = 2 * batch * pixels**2 * channels**2 * 9
        convolution = rate(flops, lambda: torch.conv2d(x, weight, padding=1))
        arguments = ((1, 1), (1, 1), (1, 1), False, (0, 0), 1)
        if winograd.fits(x, weight, arguments, x.shape[2:]):
            convolution = max(convolution, rate(flops, lambda: winograd.conv2d(x, weight, None, arguments)))

        # Too large for any cache.
        source = torch.ones(1 << (22 if quick else 30 if on_gpu else 28), dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        copy = rate(2 * source.nbytes, lambda: target.copy_(source))
    return Ceilings(max(product, convolution), copy)
