"""Resizing images on their device, as TensorFlow 1, PyTorch and Pillow do it.

The first and the last are linear maps along rows and along columns: two products with small matrices.
"""

from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor


def bilinear_tf1(images: Tensor, size: int) -> Tensor:
    """TensorFlow 1's `resize_bilinear(align_corners=False)`: pixel i reads position i · in / out, without a half.

    Args:
        images: (N, C, H, W) float32 or float64.
        size: side of the result in pixels.

    Returns:
        (N, C, size, size), of the same dtype. Nothing is averaged when the image shrinks.
    """
    return _apply(images, size, _bilinear_tf1_weights)


def bilinear_torch(images: Tensor, size: int) -> Tensor:
    """PyTorch's bilinear `interpolate(align_corners=False)`, with half-pixel centres; arguments as for the others."""
    return F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)


def bicubic_pil(images: Tensor, size: int) -> Tensor:
    """Pillow's bicubic filter on floating-point channels (mode "F"), which widens when the image shrinks.

    Arguments as for the others; the result overshoots the range of `images` a little.
    """
    return _apply(images, size, _bicubic_pil_weights)


def _apply(images: Tensor, size: int, weights: Callable[[int, int], Tensor]) -> Tensor:
    # In float64, where no setting of the process trades digits for speed; the network takes a thousand times longer.
    rows, columns = (weights(length, size).to(images.device) for length in images.shape[-2:])
    return (rows @ (images.double() @ columns.T)).to(images.dtype)


@lru_cache(maxsize=32)
@torch.inference_mode(False)
def _bilinear_tf1_weights(length: int, size: int) -> Tensor:
    """(size, length) float64: row i holds what each input pixel gives to output pixel i."""
    place = torch.arange(size, dtype=torch.float64) * length / size
    low = place.long()
    part = (place - low)[:, None]
    weights = torch.zeros(size, length, dtype=torch.float64).scatter_(1, low[:, None], 1 - part)
    return weights.scatter_add_(1, (low + 1).clamp_(max=length - 1)[:, None], part)


@lru_cache(maxsize=32)
@torch.inference_mode(False)
def _bicubic_pil_weights(length: int, size: int) -> Tensor:
    """(size, length) float64: row i holds what each input pixel gives to output pixel i."""
    scale = length / size
    stretch = max(scale, 1.0)
    centre = (torch.arange(size, dtype=torch.float64)[:, None] + 0.5) * scale
    # The kernel is 0 where it ends, two steps from the centre.
    weights = _cubic((torch.arange(length, dtype=torch.float64) + 0.5 - centre) / stretch)
    return weights / weights.sum(1, keepdim=True)


def _cubic(x: Tensor, a: float = -0.5) -> Tensor:
    """Keys' cubic convolution kernel with the slope that Pillow takes."""
    x = x.abs()
    inner = ((a + 2) * x - (a + 3)) * x * x + 1
    outer = (((x - 5) * x + 8) * x - 4) * a
    return torch.where(x < 1, inner, torch.where(x < 2, outer, 0.0))
