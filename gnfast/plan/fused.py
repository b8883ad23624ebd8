"""What an op adds to its four methods that stands for several nodes: a convolution, biases, a sum, an activation.

Cotangents that come from several readers, or are computed late, are added up on the op's way.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from gnfast.plan.op import Op


class Contribution(NamedTuple):
    """A part of a value's cotangent."""

    tensor: Tensor
    owned: bool
    """Whether it is referred to from nowhere else, so that it may be overwritten."""

    def with_squares(self, centre: float) -> tuple[Tensor, Tensor | None]:
        """The tensor, and float64 (B, parts) that add up to ‖tensor − centre‖² per sample, where they are known."""
        return self.tensor, None


class Pending:
    """A part of a value's cotangent in fresh memory, computed by whatever takes it, together with what comes next.

    A pullback may return one in place of a tensor.

    Args:
        compute: () ↦ the cotangent on its own.
        joined: (before, after, bits, strides, slope) ↦ mask · (cotangent + Σ before) + Σ after, as `join_pullback` of
            the kernels has it.
        with_squares: as `Contribution.with_squares`.
    """

    owned: ClassVar[bool] = True

    def __init__(
        self,
        compute: Callable[[], Tensor],
        joined: Callable[..., Tensor],
        with_squares: Callable[[float], tuple[Tensor, Tensor | None]],
    ) -> None:
        self._compute, self.joined, self.with_squares = compute, joined, with_squares

    @functools.cached_property
    def tensor(self) -> Tensor:
        return self._compute()


def summed(contributions: Sequence[Contribution | Pending]) -> Contribution:
    """Their sum, in the memory of the first if that may be."""
    total = contributions[0]
    if not isinstance(total, Contribution):
        total = Contribution(total.tensor, total.owned)
    for term in contributions[1:]:
        if total.owned:
            total.tensor.add_(term.tensor)
        else:
            total = Contribution(total.tensor + term.tensor, True)
    return total


def contribute(
    received: dict[int, list[Contribution | Pending]],
    values: Sequence[int],
    pulled: Sequence[Tensor | Pending | None],
    fresh: bool,
) -> None:
    """Adds what a pullback gives, None for 0, to what these values have received; `fresh`: it may be overwritten."""
    for value, contribution in zip(values, pulled, strict=True):
        if contribution is None:
            continue
        # Two may wait, for an op that adds them up on its way.
        waiting = received.setdefault(value, [])
        if len(waiting) == 2:
            waiting[:] = [summed(waiting)]
        pending = isinstance(contribution, Pending)
        waiting.append(contribution if pending else Contribution(contribution, fresh))


class Fused(Op):
    """An op that may have several outputs: forward and pushforward return a tuple of all.

    Of its node's biases the layers before it take the gradients.
    """

    def gather(self, saved: Any, received: Sequence[Sequence[Contribution | Pending]]) -> Contribution:
        """The cotangent that `pullback` and `param_grad` take, from what the readers of each output contribute."""
        raise NotImplementedError
