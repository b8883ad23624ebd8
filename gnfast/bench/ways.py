"""The ways to a normalised critic that are compared, beside the baselines: gnfast's, double backward, and none."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

import gnfast
from gnfast.engine import reference

Normalize = Callable[..., Tensor]


def four_passes(net: nn.Module, x: Tensor, **options: Any) -> Tensor:
    """What gnfast does; strict, so that no fallback is timed in its name."""
    return gnfast.normalize_gradient(net, x, strict=True, **options)


def without_rewrites(net: nn.Module, x: Tensor, **options: Any) -> Tensor:
    """The four passes over the operations as the network states them."""
    return gnfast.normalize_gradient(net, x, strict=True, rewrite=False, **options)


double_backward: Normalize = reference.normalize_gradient
"""What the papers' code does."""


def plain(net: nn.Module, x: Tensor) -> Tensor:
    """A critic without normalisation: what an ordinary GAN pays."""
    return net(x)
