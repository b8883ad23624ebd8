"""The tensor that records what is done with it instead of doing it."""

import functools
import sys
import weakref
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gnfast.plan.names import custom_name
from gnfast.plan.op import Shape

if TYPE_CHECKING:
    from gnfast.plan.recorder import Recorder


class Traced(Tensor):
    """An x-dependent tensor without data: shape, dtype and device are real, and every operation on it is recorded."""

    recorder: "Recorder"
    value: int
    extent: Shape
    """The shape, without the detour of `.shape` through `__torch_function__`."""
    scalar: torch.dtype
    """The dtype, in the same way."""
    views: "weakref.WeakSet[Traced] | None" = None
    """The tensors that share this one's memory, itself included; None while there is no other."""
    tracked: bool
    """Whether it requires a gradient in PyTorch: derivatives follow it. So that a custom autograd Function shows as
    its grad_fn, it does here as well."""

    noted: bool = False
    """Whether a refusal has named the custom autograd Function that it comes from."""

    @staticmethod
    def __new__(cls, recorder: "Recorder", value: int, shape: Shape, dtype: torch.dtype, tracked: bool) -> "Traced":
        traced = torch.Tensor._make_wrapper_subclass(
            cls, shape, dtype=dtype, device=recorder.device, requires_grad=tracked
        )
        traced.recorder, traced.value, traced.extent, traced.scalar = recorder, value, shape, dtype
        traced.tracked = tracked
        return traced

    __hash__ = object.__hash__

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        first = args[0] if args else None
        recorder = first.recorder if type(first) is Traced else _recorder((*args, *kwargs.values()))
        return recorder.call(func, args, kwargs)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        recorder, caller = _recorder((*args, *(kwargs or {}).values())), sys._getframe(1)
        if caller.f_globals.get("__name__") == "torch.autograd.function":
            # `save_for_backward` of what it returns.
            name = caller.f_locals["cls"].__name__
            recorder.refuse("a custom autograd function, which saves what it returns", operation=f"{name}.apply")
        recorder.refuse("this operation bypasses recording", operation=str(func))

    def shares_memory_with(self, view: "Traced") -> "Traced":
        """Notes that `view` lies in this tensor's memory, and returns it."""
        if self.views is None:
            self.views = weakref.WeakSet([self])
        view.views = self.views
        view.views.add(view)
        return view

    def custom_function(self) -> str:
        """The custom autograd Function that it comes from, and where that is written; empty if from none."""
        with torch._C.DisableTorchFunctionSubclass():
            function = self.grad_fn
        if function is None:
            return ""
        if (custom := getattr(function, "_forward_cls", None)) is None:
            return function.name()
        return custom_name(custom)


# What may be asked of a traced tensor without touching its values.
METADATA = frozenset(
    [
        *(getattr(Tensor, name).__get__ for name in ("shape", "dtype", "device", "ndim", "layout", "is_cuda")),
        *(getattr(Tensor, name).__get__ for name in ("is_cpu", "is_sparse", "is_meta", "is_mps", "is_xpu", "is_xla")),
        *(getattr(Tensor, name).__get__ for name in ("is_ipu", "is_maia", "is_mtia", "is_vulkan", "is_mkldnn")),
        *(getattr(Tensor, name).__get__ for name in ("is_quantized", "is_nested", "is_sparse_csr")),
        *(getattr(Tensor, name).__get__ for name in ("nbytes", "itemsize")),
        *(getattr(Tensor, name) for name in ("size", "dim", "ndimension", "numel", "nelement", "is_floating_point")),
        *(getattr(Tensor, name) for name in ("is_complex", "is_contiguous", "stride", "element_size", "get_device")),
        *(Tensor.is_inference, Tensor.is_signed),
        *(torch.is_floating_point, torch.is_complex, torch.numel, torch.is_inference, torch.is_signed),
    ]
)


@functools.lru_cache
def has_own_rules(kind: type[Tensor]) -> bool:
    """Whether a subclass of Tensor decides itself what PyTorch's functions do with it."""
    own = kind.__torch_function__
    plain = torch._C._disabled_torch_function_impl, Tensor.__torch_function__.__func__
    return getattr(own, "__func__", own) not in plain


def _recorder(values: Iterable[Any]) -> "Recorder | None":
    """That of the first traced tensor among the arguments, lists and tuples included."""
    for value in values:
        if isinstance(value, Traced):
            return value.recorder
        if isinstance(value, (tuple, list)) and (found := _recorder(value)):
            return found
    return None
