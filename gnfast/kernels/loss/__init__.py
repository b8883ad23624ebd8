"""Means of terms of a loss and their gradients: what the terms must be for their kernels.

`implementation("loss", device_type)` has `means` and `pull`, or is None where PyTorch does it.
"""

from typing import NamedTuple

MAX_ENTRIES = 2**15
"""Of all terms together. One program reads them all, for a sum that is the same every time; more would keep it longer
than PyTorch's kernels take (by estimate)."""


class Formula(NamedTuple):
    """One of the terms that the kernels know: the mean of ±h(±x + shift) over the logits x."""

    kind: str
    """h(y): identity, relu, softplus, square, cos or exp."""
    shift: float = 0.0
    mirrored: bool = False
    """Of −x."""
    negated: bool = False
    """−h."""
