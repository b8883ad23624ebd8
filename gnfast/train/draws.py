"""What chance decides in a step, and latents drawn on the CPU; `device_draws.py` draws all of it on a GPU."""

from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from gnfast.data.augment import Shifts


class Latents(NamedTuple):
    """Inputs of the generator, and all that its update takes.

    Attributes:
        z: (B, z_dim) from N(0, I).
        y: (B,) uniform labels, or None without classes.
    """

    z: Tensor
    y: Tensor | None


class CriticDraw(NamedTuple):
    """What an update of the critic takes; None stands for what it has no use for.

    Attributes:
        real: (B, C, H, W) real images in [-1, 1].
        labels: (B,) their classes.
        latents: of the generated images.
        place: (B,) in [0, 1]: where a gradient penalty is taken on the line from a real to a generated image.
        shifts: how consistency regularisation changes the real images.
        fake: (B, C, H, W) the generated images, where they are made before the update.
    """

    real: Tensor
    labels: Tensor | None
    latents: Latents
    place: Tensor | None
    shifts: Shifts | None
    fake: Tensor | None = None


Draw = CriticDraw | Latents
T = TypeVar("T")


def move_all(drawn: T, move: Callable[[Tensor], Tensor]) -> T:
    """What was drawn, each of its tensors brought elsewhere by `move`."""
    return pytree.tree_map(lambda tensor: None if tensor is None else move(tensor), drawn)


def latents(count: int, z_dim: int, classes: int, noise: torch.Generator) -> Latents:
    """`count` inputs of a generator, on the CPU in float32."""
    z = torch.randn(count, z_dim, generator=noise)
    return Latents(z, torch.randint(classes, (count,), generator=noise) if classes else None)


def parts(draw: Draw, count: int) -> Iterator[Draw]:
    """A draw in `count` equal parts that follow each other."""
    leaves, structure = pytree.tree_flatten(draw)
    cut = [[None] * count if leaf is None else leaf.chunk(count) for leaf in leaves]
    return (pytree.tree_unflatten(list(part), structure) for part in zip(*cut, strict=True))
