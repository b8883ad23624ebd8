"""What PyTorch puts around a call or inside its network: modules that share gradients, transforms, exporters."""

import contextlib
from collections.abc import Callable
from typing import Any

import torch
import torch.autograd.forward_ad
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext

from gnfast.errors import InputError, UnsupportedError


def require_unshared(net: nn.Module) -> None:
    """Raises InputError for a network of which a part shares its gradients with other processes.

    Such a part learns of its gradients from what happens to its own input and output, and neither the passes nor
    double backward go that way: processes would drift apart, or nothing would train.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel

    kinds = DistributedDataParallel, FullyShardedDataParallel, FSDPModule
    for name, module in net.named_modules():
        kind = next((kind for kind in kinds if isinstance(module, kind)), None)
        if kind is not None:
            way = "fully_shard" if kind is FSDPModule else kind.__name__
            raise InputError(
                f"net: {f'submodule {name!r}' if name else 'it'} is wrapped by {way}, whose processes would not share "
                f"the gradients of this call; wanted {way} around all of it: {way}(GradientNorm(net)), or around a "
                "module whose forward makes this call"
            )


def require_ordinary_execution() -> None:
    """Raises UnsupportedError where PyTorch records operations to run them later, without their second derivatives."""
    if torch.jit.is_tracing() or torch.compiler.is_exporting():
        way = "torch.jit.trace" if torch.jit.is_tracing() else "torch.export"
        raise UnsupportedError(
            f"{way} would keep the operations of this call without their gradients; give it the critic alone (`.net` "
            "of a GradientNorm), or use torch.compile, which goes around calls of gnfast"
        )


def transform() -> str:
    """The transform or mode at work under which the passes cannot run; empty if there is none.

    They are an autograd Function with a backward alone: `torch.func` and forward-mode AD want more rules than that, and
    a graph that `make_fx` makes of them has no gradients.
    """
    if torch._C._are_functorch_transforms_active():
        return "torch.func"
    if getattr(torch.autograd.forward_ad, "_current_level", -1) >= 0:
        return "torch.autograd.forward_ad"
    from torch.fx.experimental.proxy_tensor import get_proxy_mode

    return function_mode() if get_proxy_mode() is None else "make_fx"


def function_mode() -> str:
    """The name of a `TorchFunctionMode` that other code has put around this; empty if there is none.

    What it changes in a call, the passes would miss or do twice. That of `torch.set_default_device` does not matter.
    """
    if not torch._C._len_torch_function_stack():
        return ""
    for mode in _get_current_function_mode_stack():
        if not isinstance(mode, DeviceContext) and not type(mode).__module__.startswith("gnfast."):
            return type(mode).__name__
    return ""


def saved_tensor_hooks() -> tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]] | None:
    """The innermost hooks (pack, unpack) on what autograd saves, as checkpointing sets them; None if there are none."""
    return torch._C._autograd._top_saved_tensors_default_hooks(True)


def autocast_dtype(device_type: str) -> torch.dtype | None:
    """The low precision of autocast where it is on; devices without autocast (meta) have it off."""
    if not torch._C._is_any_autocast_enabled():
        return None
    on = torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)
    return torch.get_autocast_dtype(device_type) if on else None


def without_autocast(device_type: str) -> contextlib.AbstractContextManager[Any]:
    """A context in which autocast is off."""
    return torch.autocast(device_type, enabled=False) if autocast_dtype(device_type) else contextlib.nullcontext()
