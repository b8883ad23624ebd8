"""Resizing images on their device, as TensorFlow 1, PyTorch and Pillow do it.

The first and the last are linear maps along rows and along columns: two products with small matrices.
"""

import math
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

    Args:
        images: (N, C, H, W) float32 or float64.
        size: side of the result in pixels.

    Returns:
        (N, C, size, size), of the same dtype; it overshoots the range of `images` a little.
    """
    return _apply(images, size, _bicubic_pil_weights)


def _apply(images: Tensor, size: int, weights: Callable[[int, int], list[list[float]]]) -> Tensor:
    # In float64, where no setting of the process trades digits for speed; the network takes a thousand times longer.
    rows, columns = (
        torch.tensor(weights(length, size), dtype=torch.float64, device=images.device) for length in images.shape[-2:]
    )
    return (rows @ (images.double() @ columns.T)).to(images.dtype)


@lru_cache(maxsize=32)
def _bilinear_tf1_weights(length: int, size: int) -> list[list[float]]:
    """(size, length): row i holds what each input pixel gives to output pixel i."""
    weights = [[0.0] * length for _ in range(size)]
    for i, row in enumerate(weights):
        low, part = divmod(i * length / size, 1)
        low = int(low)
        row[low] += 1 - part
        row[min(low + 1, length - 1)] += part
    return weights


@lru_cache(maxsize=32)
def _bicubic_pil_weights(length: int, size: int) -> list[list[float]]:
    """(size, length): row i holds what each input pixel gives to output pixel i."""
    scale = length / size
    stretch = max(scale, 1.0)
    weights = [[0.0] * length for _ in range(size)]
    for i, row in enumerate(weights):
        centre = (i + 0.5) * scale
        first = max(0, math.floor(centre - 2 * stretch + 0.5))
        last = min(length, math.floor(centre + 2 * stretch + 0.5))
        values = [_cubic((j + 0.5 - centre) / stretch) for j in range(first, last)]
        row[first:last] = [value / sum(values) for value in values]
    return weights


def _cubic(x: float, a: float = -0.5) -> float:
    """Keys' cubic convolution kernel with the slope that Pillow takes."""
    x = abs(x)
    if x < 1:
        return ((a + 2) * x - (a + 3)) * x * x + 1
    if x < 2:
        return (((x - 5) * x + 8) * x - 4) * a
    return 0.0
