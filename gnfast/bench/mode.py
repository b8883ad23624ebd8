"""How a step runs, not what it computes: memory layout, precision, and the liberties that libraries may take."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch

PRECISIONS = ("float32", "tf32", "bfloat16")


@dataclass(frozen=True)
class Mode:
    """One way of running PyTorch. The defaults are PyTorch's own, which is what the papers' code runs with.

    Attributes:
        layout: of images and convolution weights.
        autocast: the low precision of products, or None; weights and images stay float32.
        conv_tf32, matmul_tf32: whether a GPU may round the factors of float32 products to 10 bits.
        search: whether cuDNN tries its algorithms and keeps the fastest.
    """

    layout: torch.memory_format = torch.contiguous_format
    autocast: torch.dtype | None = None
    conv_tf32: bool = True
    matmul_tf32: bool = False
    search: bool = False

    @contextlib.contextmanager
    def active(self, device: torch.device) -> Iterator[None]:
        """PyTorch's global switches as this mode has them, and back."""
        cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
        before = cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark
        cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark = self.conv_tf32, self.matmul_tf32, self.search
        try:
            with torch.autocast(device.type, self.autocast, enabled=self.autocast is not None):
                yield
        finally:
            cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark = before


PAPERS = Mode()
"""As the papers' code runs: contiguous, float32, PyTorch's defaults."""


def tuned(precision: str) -> Mode:
    """As one would run it today: channels_last, one of `PRECISIONS` (bfloat16 by autocast), cuDNN's search."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision: got {precision!r}, wanted one of {', '.join(PRECISIONS)}")
    rounded = precision == "tf32"
    autocast = torch.bfloat16 if precision == "bfloat16" else None
    return Mode(torch.channels_last, autocast, conv_tf32=rounded, matmul_tf32=rounded, search=True)
