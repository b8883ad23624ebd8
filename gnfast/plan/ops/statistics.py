"""Variances and standard deviations, over any axes."""

import torch

from gnfast.plan.records import records

_FIRST = {torch.var_mean: torch.var, torch.std_mean: torch.std}


@records("var", "std", told=True)
def _spread(function, trace, *args, **kwargs):
    return trace.curved(function, *args, **kwargs)


@records(*_FIRST, told=True)
def _spread_and_mean(function, trace, input, dim=None, *args, **kwargs):
    spread = trace.curved(_FIRST[function], input, *(() if dim is None else (dim,)), *args, **kwargs)
    axes = None if isinstance(dim, bool) else dim
    return spread, input.mean(axes, kwargs.get("keepdim", args[1] if len(args) > 1 else False))
