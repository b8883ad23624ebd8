"""The standard generator and critic pairs, by name.

Importing this package needs nothing but PyTorch. `docs` and tests name the source of each network; the parameter counts
of the papers' pairs are pinned in `tests/test_models.py`.
"""

from collections.abc import Callable

from torch import nn

from gnfast.models import dcgan, resnet, small

Pair = tuple[nn.Module, nn.Module]

REGISTRY: dict[str, Callable[..., Pair]] = {
    "dcgan": dcgan.build,
    "dcgan-table3": dcgan.build_table3,
    "resnet": resnet.build,
    "sngan-resnet": resnet.build_sngan,
    "small": small.build,
}


def build(name: str, *, resolution: int, channels: int = 3, z_dim: int = 128, width: float = 1.0) -> Pair:
    """A generator and its critic, freshly initialised from PyTorch's global random state.

    Args:
        name: "dcgan" (the CNN of GN-GAN's code, which is SN-GAN's), "dcgan-table3" (the CNN of the paper's Table 3),
            "resnet" (its ResNet), "sngan-resnet" (SN-GAN's), or "small" (for digits).
        resolution: side of the square images, in pixels. `dcgan` takes any multiple of 8 from 16 up, the ResNets
            32 or 48, `small` any multiple of 4 from 8 up.
        channels: image channels, 1 or 3.
        z_dim: length of the latent vector.
        width: factor on every hidden channel count (rounded, at least 1); 1.0 is the paper's.

    Returns:
        `(generator, critic)`. The generator maps (B, z_dim) to (B, channels, resolution, resolution) in [-1, 1]; the
        critic maps such images to (B, 1) logits.

    Raises:
        ValueError: an unknown name, a resolution that the family does not have, or a width that is not positive.
    """
    if name not in REGISTRY:
        raise ValueError(f"model: got {name!r}, want one of {', '.join(sorted(REGISTRY))}")
    if not width > 0:
        raise ValueError(f"width: got {width}, want a positive factor")
    return REGISTRY[name](resolution, channels, z_dim, width)
