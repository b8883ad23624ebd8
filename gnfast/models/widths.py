"""Networks narrower or wider than published."""

from collections.abc import Iterable
from typing import NamedTuple


class Factors(NamedTuple):
    """What the hidden channel counts of a pair are multiplied by."""

    generator: float
    critic: float


def scaled(widths: Iterable[int], factor: float) -> tuple[int, ...]:
    """Channel counts times a factor, rounded, at least 1."""
    return tuple(max(1, round(width * factor)) for width in widths)
