"""The augmentation of consistency regularisation: flips and shifts, drawn on the CPU and applied on the device."""

import torch
from torch import Tensor

REACH = 0.2


def draw_augmentation(count: int, resolution: int, generator: torch.Generator) -> Tensor:
    """(count, 3) int64: whether an image is mirrored, and its shift down and to the right in pixels.

    Mirrored with probability ½; shifts uniform in ± a fifth of the resolution.
    """
    reach = int(REACH * resolution)
    flips = torch.randint(2, (count, 1), generator=generator)
    return torch.cat([flips, torch.randint(-reach, reach + 1, (count, 2), generator=generator)], 1)


def augment(images: Tensor, moves: Tensor) -> Tensor:
    """Images mirrored and then shifted as `moves` says, with zeros where nothing is left; a new tensor.

    Args:
        images: (B, C, H, W) floating point.
        moves: (B, 3) int64 on the same device, from `draw_augmentation`.
    """
    height, width = images.shape[-2:]
    flips, down, right = moves[:, :, None].unbind(1)
    rows = torch.arange(height, device=images.device) - down
    columns = torch.arange(width, device=images.device) - right
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
    columns = torch.where(flips == 1, width - 1 - columns, columns).clamp(0, width - 1)
    sample = torch.arange(len(images), device=images.device)[:, None, None]
    moved = images.permute(0, 2, 3, 1)[sample, rows.clamp(0, height - 1)[:, :, None], columns[:, None, :]]
    return (moved * inside[..., None]).permute(0, 3, 1, 2)
