"""Functions that write their result into their input."""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gnfast.interop.surroundings import without_autocast
from gnfast.plan.records import RECORDERS


@functools.cache
def in_place(func: Callable[..., Any]) -> Callable[..., Any] | None:
    """What records `relu_` and the like: its twin that is not in place, whose result the tensor then stands for."""
    name = getattr(func, "__name__", "")
    if not name.endswith("_") or name.endswith("__"):
        return None
    owners = [owner for owner in (Tensor, torch, F, torch._C._nn) if getattr(owner, name, None) is func]
    if not owners:
        # Somebody else's, whatever it does.
        return None
    twins = [getattr(owner, name[:-1], None) for owner in (*owners, F, torch, Tensor)]
    recorder = next((RECORDERS[twin] for twin in twins if twin in RECORDERS), None)

    def rebound(trace: Any, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        # As autocast leaves it alone.
        with without_autocast(trace.device.type):
            return trace.rebind(input, recorder(trace, input, *args, **kwargs))

    return recorder and rebound
