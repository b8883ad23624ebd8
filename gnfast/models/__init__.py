"""The standard generator and critic pairs, by name.

Importing this package needs nothing but PyTorch. `docs` and tests name the source of each network; the parameter counts
of the papers' pairs are pinned in `tests/models/test_models.py`.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from torch import nn

from gnfast.models import biggan, dcgan, mimicry, resnet, small
from gnfast.models.baselines import weight_norm_
from gnfast.models.initialise import SCHEMES, initialise_
from gnfast.models.plain import ACTIVATIONS, LAYERED, build_layered, layered_critic

__all__ = [
    "ACTIVATIONS",
    "REGISTRY",
    "SCHEMES",
    "Family",
    "Pair",
    "build",
    "initialise_",
    "layered_critic",
    "weight_norm_",
]

Pair = tuple[nn.Module, nn.Module]


class Family(NamedTuple):
    """A row of `REGISTRY`.

    Attributes:
        build: called with resolution, channels, z_dim and width, and if `conditional` with classes.
        conditional: the pair takes labels.
    """

    build: Callable[..., Pair]
    conditional: bool = False


REGISTRY: dict[str, Family] = {
    "dcgan": Family(dcgan.build),
    "sngan-cnn": Family(partial(dcgan.build, widen="conv")),
    "resnet": Family(resnet.build),
    "sngan-resnet": Family(resnet.build_sngan),
    "mimicry-resnet": Family(mimicry.build),
    "biggan": Family(partial(biggan.build, faster=False), conditional=True),
    "biggan-faster": Family(partial(biggan.build, faster=True), conditional=True),
    "small": Family(small.build),
    **{name: Family(partial(build_layered, *kind)) for name, kind in LAYERED.items()},
}


def build(
    name: str, *, resolution: int, channels: int = 3, z_dim: int = 128, width: float = 1.0, classes: int = 0
) -> Pair:
    """A generator and its critic, freshly initialised from PyTorch's global random state.

    Args:
        name: "dcgan" (the CNN of GN-GAN's code), "sngan-cnn" (SN-GAN's, the same with a narrower critic),
            "resnet" (its ResNet), "sngan-resnet" (SN-GAN's), "mimicry-resnet" (mimicry's, GraN-GAN's), "biggan"
            (GN-GAN's BigGAN), "biggan-faster" (Faster GN-GAN's), "small" (for digits), or a name of `LAYERED` (the
            small generator with a plain critic of 3, 6 or 9 convolutions, for analyses).
        resolution: side of the square images, in pixels. `dcgan` takes any multiple of 8 from 16 up, `resnet` 32, 48,
            64, 128 or 256, `sngan-resnet` and `mimicry-resnet` 32, 48, 64 or 128, `biggan` 32, `biggan-faster` 32, 64
            or 128, `small` any multiple of 4 from 8 up, `layered-…` of 8.
        channels: image channels, 1 or 3.
        z_dim: length of the latent vector.
        width: factor on every hidden channel count (rounded, at least 1); 1.0 is the paper's.
        classes: how many classes a class-conditional pair has; 0 for a pair without labels. `biggan` and
            `biggan-faster` are class-conditional, the others are not.

    Returns:
        `(generator, critic)`. The generator maps (B, z_dim) to (B, channels, resolution, resolution) in [-1, 1]; the
        critic maps such images to (B, 1) logits. With classes both take int64 labels (B,) as second argument.

    Raises:
        ValueError: an unknown name, a resolution that the family does not have, a width that is not positive, `classes`
            for a family without a class-conditional form or none for one that needs them, or a `z_dim` that is too
            short for `biggan-faster`.
    """
    if name not in REGISTRY:
        raise ValueError(f"model: got {name!r}, wanted one of {', '.join(sorted(REGISTRY))}")
    if not width > 0:
        raise ValueError(f"width: got {width}, wanted a positive factor")
    family = REGISTRY[name]
    if not family.conditional and classes:
        raise ValueError(f"classes: {name} has no class-conditional form, got {classes}, wanted 0")
    if family.conditional and classes < 1:
        raise ValueError(f"classes: {name} is class-conditional, got {classes}, wanted at least 1")
    return family.build(resolution, channels, z_dim, width, *([classes] if family.conditional else []))
