"""What merges with what: one table for Plans (`gnfast.plan.rewrite`) and for modules in eager PyTorch (calls.py).

    conv k×k, then avg_pool m×m             one convolution with stride m (folding.py)
    conv 1×1, then avg_pool                 the pooling first
    sum of which a term merges, avg_pool    the sum of the pooled terms
    upsample m×m, then conv k×k             one transposed convolution with stride m (folding.py)
    upsample m×m, then conv 1×1             the convolution first

Operations are described without their tensors; whoever applies a rule has those.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from gnfast.kernels import operands
from gnfast.rewriting.folding import Pair, fold_pays


class Conv(NamedTuple):
    """A convolution with stride 1 and zero padding."""

    kernel: Pair
    padding: Pair
    dilation: Pair
    groups: int

    @property
    def is_pixelwise(self) -> bool:
        """Whether it maps each pixel for itself, so that it commutes with means and repetitions of pixels."""
        return self.kernel == (1, 1) and self.padding == (0, 0)


class AvgPool(NamedTuple):
    """The mean over windows, without padding, of those that are whole."""

    window: Pair
    stride: Pair


class Upsample(NamedTuple):
    """Each pixel repeated."""

    factor: Pair


class Sum(NamedTuple):
    """The sum of two terms of one shape: what computes each of them, None where that is out of reach."""

    terms: tuple["Operation | None", "Operation | None"]


Operation = Conv | AvgPool | Upsample | Sum


class Fold(NamedTuple):
    """One convolution in place of two operations: with this fold of the kernel, the same bias and groups."""

    kernel: operands.Fold
    stride: Pair
    padding: Pair
    transposed: bool


def merge(first: Operation | None, second: Operation | None) -> Fold | Literal["swap", "term by term"] | None:
    """What takes the place of `first`, whose result nothing else reads, and `second`.

    Returns:
        a Fold; "swap" for the two in the other order; "term by term" for the sum `first` of what `second` makes of the
        terms; None for the two as they are.
    """
    match first, second:
        case (Conv(is_pixelwise=True), AvgPool()) | (Upsample(), Conv(is_pixelwise=True)):
            return "swap"
        case Conv(dilation=(1, 1)), AvgPool(window, stride) if window == stride and fold_pays(first.kernel, window):
            return Fold(operands.Fold(window), stride, first.padding, transposed=False)
        case Upsample(factor), Conv(dilation=(1, 1)) if fold_pays(second.kernel, factor):
            cropping = tuple(k - 1 - p for k, p in zip(second.kernel, second.padding, strict=True))
            if min(cropping) >= 0:
                kernel = operands.Fold(factor, mean=False, transposed=second.groups)
                return Fold(kernel, factor, cropping, transposed=True)
        case Sum(terms), AvgPool() if any(merge(term, second) for term in terms):
            return "term by term"
    return None


def sizes(value: Any, dims: int) -> tuple[Any, ...]:
    """One entry per axis of space, from the shorter forms that PyTorch takes."""
    values = (value,) if isinstance(value, int | float) else tuple(value)
    return values * dims if len(values) == 1 else values


def whole_factor(extents: Sequence[int], size: Any, scale_factor: Any) -> tuple[int, ...] | None:
    """How often a nearest upsampling to `size` or by `scale_factor` repeats each pixel, where it does just that."""
    factor = sizes(scale_factor if size is None else size, len(extents))
    if len(factor) != len(extents):
        return None
    if size is not None:
        factor = [new / old for new, old in zip(factor, extents, strict=True)]
    # From 41 on, dividing by the factor in float32 can shift a pixel.
    return tuple(map(int, factor)) if all(m == int(m) and 1 <= m <= 40 for m in factor) else None
