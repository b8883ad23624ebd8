"""Tensors that are made after the shape or the dtype of an x-dependent one and do not depend on its values."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gnfast.plan.records import records


def like(trace: Any, value: Any) -> Any:
    """For an x-dependent tensor one of its shape, dtype and device, without its values; anything else is itself."""
    if not trace.depends_on_x(value):
        return value
    return torch.empty((), dtype=value.dtype, device=value.device).expand(tuple(value.shape))


@records(
    *(torch.zeros_like, torch.ones_like, torch.full_like, torch.empty_like, torch.rand_like, torch.randn_like),
    *(torch.randint_like, Tensor.new_zeros, Tensor.new_ones, Tensor.new_full, Tensor.new_empty, Tensor.new_tensor),
    self_checked=True,
    told=True,
)
def constant(function: Callable[..., Tensor], trace: Any, *args: Any, **kwargs: Any) -> Tensor:
    """What a function returns that reads nothing but shape, dtype and device of its x-dependent arguments."""
    return function(*(like(trace, a) for a in args), **{name: like(trace, value) for name, value in kwargs.items()})
