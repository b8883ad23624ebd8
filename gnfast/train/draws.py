"""What chance decides in a step. It is drawn on the CPU, so that a seed means the same on every device."""

from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from gnfast.config.config import Config
from gnfast.data import Batches
from gnfast.data.augment import Shifts, draw_shifts


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


def draws(config: Config, batches: Batches, noise: torch.Generator, move: Callable[[Tensor], Tensor]) -> Iterator[Draw]:
    """What the updates of one step take: a `CriticDraw` for each of the critic's, then the generator's `Latents`.

    Each is drawn when its turn comes.

    Args:
        config: the settings.
        batches: the real images, where the updates want them.
        noise: for everything else.
        move: brings a tensor that was drawn on the CPU to where the updates want it.
    """
    side = config.resolution
    for _ in range(config.n_dis):
        real, labels = next(batches)
        drawn = (
            latents(config, config.batch_d, noise),
            torch.rand(config.batch_d, generator=noise) if config.penalty != "none" else None,
            draw_shifts(config.batch_d, side, side, noise) if config.consistency else None,
        )
        yield CriticDraw(real, labels if config.classes else None, *move_all(drawn, move))
    yield move_all(latents(config, config.batch_g, noise), move)


def move_all(drawn: T, move: Callable[[Tensor], Tensor]) -> T:
    """What was drawn, each of its tensors brought elsewhere by `move`."""
    return pytree.tree_map(lambda tensor: None if tensor is None else move(tensor), drawn)


def latents(config: Config, count: int, generator: torch.Generator) -> Latents:
    """`count` inputs of a run's generator, on the CPU in float32."""
    z = torch.randn(count, config.z_dim, generator=generator)
    return Latents(z, torch.randint(config.classes, (count,), generator=generator) if config.classes else None)


def parts(draw: Draw, count: int) -> Iterator[Draw]:
    """A draw in `count` equal parts that follow each other."""
    leaves, structure = pytree.tree_flatten(draw)
    cut = [[None] * count if leaf is None else leaf.chunk(count) for leaf in leaves]
    return (pytree.tree_unflatten(list(part), structure) for part in zip(*cut, strict=True))
