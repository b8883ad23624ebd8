"""Multi-scale structural similarity: how alike two images are, and with that a generator's images of one class."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from gnfast.data import to_uint8
from gnfast.errors import require_int

# Wang et al., "Multi-scale structural similarity for image quality assessment" (2003): a weight for each scale, from
# the finest on, and the constants of SSIM (Wang et al., 2004) for pixels from 0 to 255.
WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
WINDOW, SIGMA = 11, 1.5
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
# The smallest side of which five scales are left.
LEAST = 1 << (len(WEIGHTS) - 1)
PAIRS = 100
"""Pairs of images of each class that `intra_class_ms_ssim` compares."""


def ms_ssim(x: Tensor, y: Tensor) -> Tensor:
    """MS-SSIM of pairs of images, 1 for equal ones.

    Contrast and structure at five scales, each half the size of the one before, and luminance at the last; means over
    positions and channels. Where an image is smaller than the window of 11×11, the window and its σ shrink with it, as
    in the code of TensorFlow's models: five scales of images below 161 pixels would be undefined otherwise. A negative
    mean counts as 0.

    Args:
        x, y: (B, C, H, W), of at least 16×16 pixels: uint8, or floating point in [-1, 1].

    Returns:
        (B,) float64.

    Raises:
        ValueError: other shapes, or smaller images.
    """
    if x.dim() != 4 or x.shape != y.shape or min(x.shape[2:]) < LEAST:
        wanted = f"two batches (B, C, H, W) of one shape, H and W at least {LEAST}"
        raise ValueError(f"x and y: got {tuple(x.shape)} and {tuple(y.shape)}, wanted {wanted}")
    x, y = _levels(x), _levels(y)
    result = torch.ones(len(x), dtype=torch.float64, device=x.device)
    for scale, weight in enumerate(WEIGHTS):
        if scale:
            # The last row and column of an odd side stand for a pair of their own.
            x, y = (F.avg_pool2d(images, 2, ceil_mode=True) for images in (x, y))
        luminance, contrast = _parts(x, y)
        similarity = contrast * luminance if scale == len(WEIGHTS) - 1 else contrast
        result *= similarity.mean((1, 2, 3)).clamp(min=0) ** weight
    return result


def intra_class_ms_ssim(
    generate: Callable[[Tensor], Tensor], classes: int, *, pairs: int = PAIRS, batch_size: int = 128
) -> float:
    """How alike a class-conditional generator's images of one class are: near 0 for many kinds, 1 if all are the same.

    The mean MS-SSIM of pairs of independently generated images of a class, averaged over the classes; images are
    rounded to uint8.

    Source: Odena et al., "Conditional image synthesis with auxiliary classifier GANs" (2017); SN-GAN, section 4.2.

    Args:
        generate: (batch_size,) int64 labels, of as many classes as fit, to images (batch_size, C, H, W) in [-1, 1].
        classes: how many there are, >= 1.
        pairs: of each class, >= 1.
        batch_size: images at a time, >= 2: always whole batches, for batch norm's statistics.

    Raises:
        ValueError: a count below its least, or images that `ms_ssim` refuses.
    """
    for name, value, least in (("classes", classes, 1), ("pairs", pairs, 1), ("batch_size", batch_size, 2)):
        require_int(name, value, least)
    total, similarity = 2 * pairs * classes, 0.0
    rest = None
    for start in range(0, total, batch_size):
        # Both images of a pair, then those of the next class.
        labels = torch.arange(start, start + batch_size) // 2 % classes
        images = to_uint8(generate(labels))[: total - start]
        images = images if rest is None else torch.cat([rest, images])
        even = len(images) // 2 * 2
        similarity += float(ms_ssim(images[:even:2], images[1:even:2]).sum())
        rest = images[even:]
    return similarity / (pairs * classes)


def _levels(images: Tensor) -> Tensor:
    """Float64 from 0 to 255."""
    return images.double() if images.dtype == torch.uint8 else (images.double() + 1) * 127.5


def _parts(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Luminance, and contrast times structure, (B, C, h, w), wherever the window fits."""
    size = min(WINDOW, *x.shape[2:])
    place = torch.arange(size, dtype=torch.float64, device=x.device) - (size - 1) / 2
    window = torch.exp(-(place**2) / (2 * (SIGMA * size / WINDOW) ** 2))
    window /= window.sum()
    maps = torch.stack([x, y, x * x, y * y, x * y]).flatten(0, 2).unsqueeze(1)
    maps = F.conv2d(F.conv2d(maps, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))
    mean_x, mean_y, xx, yy, xy = maps.view(5, *x.shape[:2], *maps.shape[2:])
    luminance = (2 * mean_x * mean_y + C1) / (mean_x**2 + mean_y**2 + C1)
    contrast = (2 * (xy - mean_x * mean_y) + C2) / (xx - mean_x**2 + yy - mean_y**2 + C2)
    return luminance, contrast
