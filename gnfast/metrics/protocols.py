"""How images become the Inception network's input. Each choice moves the scores, so that each result names its own."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gnfast.data import to_uint8
from gnfast.metrics.resize import bicubic_pil, bilinear_tf1, bilinear_torch

SIZE = 299


@dataclass(frozen=True)
class Protocol:
    """One way of preparing images.

    Args:
        name: how results call it.
        resize: (N, C, H, W) float32 in 0..255 and a side to (N, C, side, side).
        shift, scale: the network sees (v - shift) / scale of the resized values v.
        clip: whether resized values are cut to 0..255 first.
        quantise: whether floating-point images are rounded to uint8; if not, they are measured as they are.
        batch_statistics: whether a generator must sample with its batch's statistics in batch norm; False leaves that
            to the caller.
        source: whose numbers it reproduces.
    """

    name: str
    resize: Callable[[Tensor, int], Tensor]
    shift: float
    scale: float
    source: str
    clip: bool = False
    quantise: bool = True
    batch_statistics: bool = False

    def pixels(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W), uint8 or floating point in [-1, 1], as uint8 or, where not quantised, as float32."""
        if images.dtype == torch.uint8:
            return images
        return to_uint8(images) if self.quantise else images.float()

    def prepare(self, images: Tensor) -> Tensor:
        """The network's input.

        Args:
            images: (N, 1 or 3, H, W), from `pixels`; a grey channel is repeated.

        Returns:
            (N, 3, 299, 299) float32, about [-1, 1].
        """
        values = images.float() if images.dtype == torch.uint8 else (images + 1) * 127.5
        values = self.resize(values, SIZE)
        if self.clip:
            values = values.clamp(0, 255)
        return ((values - self.shift) / self.scale).expand(-1, 3, -1, -1)


_CURVES = "the curves of GN-GAN's code, not its tables"
PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("tf", bilinear_tf1, 128.0, 128.0, "TTUR's TensorFlow code: the numbers that papers report"),
        Protocol("torch", bilinear_torch, 127.5, 127.5, "pytorch-fid"),
        Protocol("clean", bicubic_pil, 128.0, 128.0, "clean-fid", clip=True),
        Protocol("paper-gn", bilinear_torch, 127.5, 127.5, _CURVES, quantise=False, batch_statistics=True),
    )
}
"""By name: `tf`, `torch`, `clean`, `paper-gn`; docs/evaluation.md says whose numbers each gives."""


def find_protocol(name: str) -> Protocol:
    """The protocol of that name; ValueError where there is none."""
    if name not in PROTOCOLS:
        raise ValueError(f"protocol: got {name!r}, wanted one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]
