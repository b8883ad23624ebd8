"""Small chains of linear layers and (leaky) ReLUs: what a Plan must be for their kernels.

`implementation("mlp", device_type)` has `forward` and `backward`, or is None where the passes do it in steps.
"""

from typing import NamedTuple

import torch

MAX_HIDDEN = 4
# At 128 the tiles of a weight and of its gradient leave the registers.
MAX_WIDTH = 64


class Chain(NamedTuple):
    """A critic x ↦ W_L … relu(W_1 x + b_1) … + b_L with one slope."""

    slope: float
    weights: tuple[int, ...]
    """Slots of the layers' weights, the output's last."""
    biases: tuple[int | None, ...]


def fits(sizes: list[tuple[int, ...]], dtype: torch.dtype) -> bool:
    """Whether layers of these shapes (out, in) are as small as the kernels want them; the output's comes last."""
    widths = [size for shape in sizes for size in shape]
    return 2 <= len(sizes) <= MAX_HIDDEN + 1 and max(widths) <= MAX_WIDTH and dtype != torch.float64
