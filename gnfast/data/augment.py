"""Augmentations on the device, for consistency regularisation (Zhang et al., ICLR 2020): flip and translation."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gnfast.data.dataset import DataError
from gnfast.interop.device import moved


class Shifts(NamedTuple):
    """How each image of a batch is changed.

    Attributes:
        mirrored: (B,) bool, left and right change places; this comes before the translation.
        down: (B,) int64, pixels by which an image is moved down; up where it is negative.
        right: (B,) int64, the same to the right.
    """

    mirrored: Tensor
    down: Tensor
    right: Tensor


def draw_shifts(
    count: int, height: int, width: int, generator: torch.Generator, *, flip: float = 0.5, translate: float = 0.2
) -> Shifts:
    """Flips with probability `flip`, and translations uniform in ±`translate` of the size, rounded to whole pixels.

    GN-GAN's code draws in the same way, with torchvision's RandomHorizontalFlip and RandomAffine. The largest
    translations are therefore rarer than the others: at 32 pixels, 6 has probability 0.9 / 12.8, and 5 has 1 / 12.8.

    Args:
        count: B, how many images.
        height, width: of the images, in pixels.
        generator: the CPU's.
        flip: probability, 0..1.
        translate: largest translation as a fraction of the size, 0..1.

    Raises:
        DataError: `flip` or `translate` is not from 0 to 1.
    """
    for name, value in (("flip", flip), ("translate", translate)):
        if not 0 <= value <= 1:
            raise DataError(f"{name}: got {value!r}, wanted a number from 0 to 1")
    return shifts_from(torch.rand(3, count, generator=generator), torch.tensor([[height], [width]]), flip, translate)


def shifts_from(uniform: Tensor, sizes: Tensor, flip: float = 0.5, translate: float = 0.2) -> Shifts:
    """What `draw_shifts` makes of (3, B) numbers from [0, 1), on their device; `sizes` is [[height], [width]] there."""
    down, right = ((2 * uniform[1:] - 1) * translate * sizes).round_().long()
    return Shifts(uniform[0] < flip, down, right)


def apply_shifts(images: Tensor, shifts: Shifts, fill: float = -1.0) -> Tensor:
    """The images mirrored and moved as `shifts` says; what becomes free is `fill`.

    Args:
        images: (B, C, H, W), on any device.
        shifts: B of them.
        fill: the value of pixels from outside. -1 is black for images in [-1, 1]: the zeros that GN-GAN's code fills
            with are those of the scale 0..255.

    Returns:
        As `images`, contiguous.

    Raises:
        DataError: `images` and `shifts` differ in number, or `images` has not four dimensions.
    """
    if images.dim() != 4 or len(images) != len(shifts.down):
        raise DataError(f"images: got {tuple(images.shape)}, wanted ({len(shifts.down)}, C, H, W), as many as shifts")
    _, channels, height, width = images.shape
    mirrored, down, right = (moved(part, images.device) for part in shifts)
    rows = torch.arange(height, device=images.device) - down[:, None]
    columns = torch.arange(width, device=images.device) - right[:, None]
    is_inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None]
    columns = torch.where(mirrored[:, None], width - 1 - columns, columns)
    # One more pixel after each channel's last is where all that comes from outside is taken from.
    extended = F.pad(images.flatten(2), (0, 1), value=fill)
    origins = torch.where(is_inside, rows[:, :, None] * width + columns[:, None], height * width)
    return extended.gather(2, origins.flatten(1)[:, None].expand(-1, channels, -1)).view(images.shape)


def flip_and_translate(images: Tensor, generator: torch.Generator, *, rank: int = 0, world: int = 1) -> Tensor:
    """Images changed as GN-GAN's consistency regularisation does: flip with probability ½, translation up to 0.2.

    Args:
        images: (B, C, H, W) in [-1, 1], on any device: the rank-th of `world` equal parts of a batch.
        generator: the CPU's, in the same state in all processes; it moves by the whole batch.
        rank, world: which of the processes this is, and how many share a batch.

    Returns:
        (B, C, H, W), contiguous.
    """
    count, _, height, width = images.shape
    part = slice(rank * count, (rank + 1) * count)
    shifts = draw_shifts(count * world, height, width, generator)
    return apply_shifts(images, Shifts(*(drawn[part] for drawn in shifts)))
