"""The operands of a call, images too, as the passes take them, and gradients as autograd takes these, all at once.

    w' = fold(w), rounded once, in another dtype and memory format              (prepare)
    ∂L/∂w = foldᵀ(∂L/∂w'), in the dtype and memory format of w                  (gradients)

Sums are float32 for everything narrower than float64. These functions are building blocks for autograd Functions and
are not differentiable themselves.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gnfast.kernels.backend import implementation


class Fold(NamedTuple):
    """A kernel (C_out, C_in / groups, kH, kW) summed over windows that touch it, to (..., kH + mH - 1, kW + mW - 1)."""

    window: tuple[int, int]
    """(mH, mW)"""
    mean: bool = True
    """Divided by mH mW."""
    transposed: int = 0
    """If not 0, flipped, and (C_in, C_out / groups, ...), as a transposed convolution with so many groups takes it."""


class Spread(NamedTuple):
    """A matrix (out, C·H·W) as (out, C, H, W); or a matrix (out, C), repeated for all pixels and divided."""

    shape: tuple[int, int, int]
    """(C, H, W)"""
    divisor: int = 0
    """0: the matrix has an entry for each pixel."""


class Form(NamedTuple):
    """What an operand becomes."""

    dtype: torch.dtype
    fold: Fold | Spread | None = None
    channels_last: bool = False
    """Whether it is stored with its channels innermost; else as it comes."""


def prepare(sources: Sequence[Tensor], forms: Sequence[Form]) -> list[Tensor]:
    """Each source in its form; itself where it has that.

    Args:
        sources: any shapes, floating-point dtypes and strides, on one device; four axes where they are folded or to be
            channels_last.
        forms: one per source.
    """
    if not sources:
        return []
    return implementation("operands", sources[0].device.type).prepare(sources, forms)


def gradients(grads: Sequence[Tensor], sources: Sequence[Tensor], forms: Sequence[Form]) -> list[Tensor]:
    """The gradient of each source, in its dtype; and in its strides where a kernel writes it.

    Args:
        grads: of what `prepare` made of the sources, of its shape, in any floating-point dtype and strides.
        sources, forms: as `prepare` took them.
    """
    if not grads:
        return []
    return implementation("operands", grads[0].device.type).gradients(grads, sources, forms)
