"""The standard generator and critic pairs, by name.

Importing this package needs nothing but PyTorch. `docs` and tests name the source of each network; the parameter counts
of the papers' pairs and their tables of layers are pinned in `tests/models`.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import nn

from gnfast.models import biggan, conditional, dcgan, mimicry, resnet, small
from gnfast.models.baselines import weight_norm_
from gnfast.models.initialise import SCHEMES, initialise_
from gnfast.models.plain import LAYERED, build_layered, layered_critic
from gnfast.models.variants import ACTIVATIONS, normalise_features_, replace_activations_
from gnfast.models.widths import Factors

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
        build: called with resolution, channels, z_dim and the factors on the widths, then if `conditional` with
            classes, and if `last_width` with that factor.
        conditional: the pair takes labels.
        last_width: the critic's last convolution can be widened alone.
        classifier: the critic's `classify(images)` gives (B, classes) logits.
    """

    build: Callable[..., Pair]
    conditional: bool = False
    last_width: bool = False
    classifier: bool = False


REGISTRY: dict[str, Family] = {
    "dcgan": Family(dcgan.build, last_width=True),
    "sngan-cnn": Family(partial(dcgan.build, widen="conv"), last_width=True),
    "resnet": Family(resnet.build),
    "sngan-resnet": Family(resnet.build_sngan),
    "gulrajani-resnet": Family(partial(resnet.build_sngan, mean=True)),
    "mimicry-resnet": Family(mimicry.build),
    "biggan": Family(partial(biggan.build, faster=False), conditional=True),
    "biggan-faster": Family(partial(biggan.build, faster=True), conditional=True),
    **{
        name: Family(partial(conditional.build, name), conditional=True, classifier=name == "sngan-ac")
        for name in conditional.PAIRS
    },
    "small": Family(small.build),
    **{name: Family(partial(build_layered, layers)) for name, layers in LAYERED.items()},
}


def build(
    name: str,
    *,
    resolution: int,
    channels: int = 3,
    z_dim: int = 128,
    width: float = 1.0,
    classes: int = 0,
    width_g: float = 1.0,
    width_d: float = 1.0,
    last_width: float = 1.0,
    activation: str = "default",
    norm_d: str = "none",
) -> Pair:
    """A generator and its critic, freshly initialised from PyTorch's global random state.

    Args:
        name: a name of `REGISTRY`; docs/networks.md says what each is, and at which resolutions.
        resolution: side of the square images, in pixels.
        channels: image channels, 1 or 3.
        z_dim: length of the latent vector.
        width: factor on every hidden channel count (rounded, at least 1); 1.0 is the paper's.
        classes: how many classes a class-conditional pair has; 0 for a pair without labels.
        width_g, width_d: further factors on the generator's and on the critic's.
        last_width: a further factor on what goes into the last convolution of `dcgan`'s and `sngan-cnn`'s critics and
            on what comes out of it.
        activation: a name of `ACTIVATIONS`, of what stands in the place of each activation of the critic, or "default".
        norm_d: "batch" or "layer" normalisation in front of each activation of the critic but the first, or "none".

    Returns:
        `(generator, critic)`. The generator maps (B, z_dim) to (B, channels, resolution, resolution) in [-1, 1]; the
        critic maps such images to (B, 1) logits. With classes both take int64 labels (B,) as second argument.

    Raises:
        ValueError: another value than these, a resolution that the family does not have, `classes` for a family without
            a class-conditional form or none for one that needs them, a `last_width` for one that has none, or a `z_dim`
            that is too short for `biggan-faster`.
    """
    factors = {"width": width, "width_g": width_g, "width_d": width_d, "last_width": last_width}
    family = _checked(name, classes, activation, norm_d, factors)
    further = {"classes": classes} if family.conditional else {}
    further |= {"last_width": last_width} if family.last_width else {}
    both = Factors(width * width_g, width * width_d)
    generator, critic = family.build(resolution, channels, z_dim, both, **further)
    if activation != "default":
        replace_activations_(critic, activation)
    if norm_d != "none":
        image, label = torch.zeros(1, channels, resolution, resolution), torch.zeros(1, dtype=torch.int64)
        normalise_features_(critic, norm_d, image, *[label] * family.conditional)
    return generator, critic


def _checked(name: str, classes: int, activation: str, norm_d: str, factors: dict[str, float]) -> Family:
    """The family of that name, if it is there and takes these arguments of `build`; a ValueError otherwise."""
    known = ("model", name, sorted(REGISTRY)), ("activation", activation, ("default", *ACTIVATIONS))
    for argument, value, choices in (*known, ("norm_d", norm_d, ("none", "batch", "layer"))):
        if value not in choices:
            raise ValueError(f"{argument}: got {value!r}, wanted one of {', '.join(choices)}")
    for argument, value in factors.items():
        if not value > 0:
            raise ValueError(f"{argument}: got {value}, wanted a positive factor")
    family = REGISTRY[name]
    if factors["last_width"] != 1 and not family.last_width:
        raise ValueError(
            f"last_width: {name} has no last convolution to widen alone, got {factors['last_width']}, wanted 1"
        )
    if not family.conditional and classes:
        raise ValueError(f"classes: {name} has no class-conditional form, got {classes}, wanted 0")
    if family.conditional and classes < 1:
        raise ValueError(f"classes: {name} is class-conditional, got {classes}, wanted at least 1")
    return family
