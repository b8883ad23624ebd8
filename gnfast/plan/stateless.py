"""Networks of which nothing can change in a forward, because all of its code is known.

They consist of modules of PyTorch's whose forward is one function of their parameters, and of the models that come with
gnfast, as they are: no hooks, no forward of an instance's own, no parametrizations, nothing compiled, no dropout.
"""

from collections.abc import Iterable
from types import GenericAlias

import torch.nn.modules.module as torch_modules
from torch import nn

_KINDS = (
    *(nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    *(nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.ReLU6, nn.Hardtanh, nn.Identity, nn.Flatten, nn.Unflatten, nn.Upsample),
    *(
        nn.Sigmoid,
        nn.Tanh,
        nn.Softplus,
        nn.ELU,
        nn.CELU,
        nn.SELU,
        nn.SiLU,
        nn.Mish,
        nn.GELU,
        nn.LayerNorm,
        nn.GroupNorm,
    ),
    *(nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm, nn.Softmax, nn.LogSoftmax, nn.Sigmoid, nn.Tanh),
    *(nn.SiLU, nn.GELU, nn.ELU, nn.CELU, nn.SELU, nn.Mish, nn.Softplus, nn.Softsign, nn.LogSigmoid, nn.Hardswish),
    *(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.PixelShuffle, nn.PixelUnshuffle),
    *(nn.Sequential, nn.ModuleList),
)
_DROPOUTS = nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d
"""In eval mode, in which they draw nothing."""
FORWARDS = {kind: kind.forward for kind in (*_KINDS, *_DROPOUTS)}
_MODELS = "gnfast.models."
CALLS = "__call__", "_call_impl", "__getattr__"
"""What of `nn.Module` itself a call comes through."""


def is_stateless(modules: Iterable[nn.Module]) -> bool:
    """Whether that holds of a network with these modules."""
    modules = [*modules]
    return (
        all(is_known(kind) for kind in {*map(type, modules)})
        and not torch_modules._has_any_global_hook()
        and not any(map(_has_more, modules))
    )


def _has_more(module: nn.Module) -> bool:
    """Whether more happens in its call than the forward of its class, or that draws random numbers."""
    own = "forward" in module.__dict__ or module._compiled_call_impl is not None
    return own or module._forward_hooks or module._forward_pre_hooks or (module.training and type(module) in _DROPOUTS)


def is_known(kind: type[nn.Module]) -> bool:
    """Whether it is one of these classes, as it came."""
    if kind in FORWARDS:
        return kind.forward is FORWARDS[kind]
    return kind.__module__.startswith(_MODELS) and _home(kind.forward).startswith(_MODELS)


def is_as_it_came(kind: type[nn.Module]) -> bool:
    """Whether all code of such a class, and not its forward alone, is of the file that defines the class."""
    owners = [owner for owner in kind.__mro__ if owner not in (nn.Module, object)]
    code = [(owner, value) for owner in owners for value in vars(owner).values()]
    code += [(nn.Module, getattr(nn.Module, name)) for name in CALLS]
    return all(
        _home(value) == owner.__module__
        for owner, value in code
        if hasattr(value, "__get__") or (callable(value) and not isinstance(value, GenericAlias))
    )


def _home(function: object) -> str:
    """The module that a function was written in; what wraps it may go by its name, as `functools.wraps` has it."""
    return getattr(function, "__globals__", {}).get("__name__", "")
