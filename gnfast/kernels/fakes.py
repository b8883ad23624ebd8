"""What torch.compile is told of an operator of the compiled libraries: its results, without data."""

from collections.abc import Callable
from typing import Any

import torch

Fake = Callable[..., Any]


def fake_of(operator: Any) -> Callable[[Fake], Fake]:
    """As `torch.library.register_fake`, which looks through all modules once for every file that calls it."""
    return lambda fake: torch.library.register_fake(operator, fake)
