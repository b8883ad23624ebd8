"""Exact rewrites that save FLOPs and passes over memory, for any module in plain eager PyTorch.

While a rewritten module runs, the rules of merges.py see its calls first. They put some operations off: these
return a `Deferred` (deferred.py). A consumer that can merge with it takes its parts, any other use computes it.
"""

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from gnfast.errors import InputError
from gnfast.interop.surroundings import function_mode
from gnfast.interop.uncompiled import uncompiled
from gnfast.interop.wrapper import M, Wrapper
from gnfast.rewriting.calls import RULES
from gnfast.rewriting.deferred import Deferred, call, compute, eager, is_pending, memory, real


def rewrite(module: M) -> "Rewritten[M]":
    """`module` for fewer FLOPs: the same outputs and gradients up to rounding, for generators and critics alike.

    Convolutions (stride 1, dilation 1, zero padding) are merged with the nearest upsampling before them or the average
    pooling after them, wherever that takes fewer products. On CPUs with AVX2 or AVX-512, 3×3 convolutions and 4×4 ones
    with stride 1 or 2, transposed or not, are Winograd's in forward and backward, where they are float32, channels
    multiples of 8 and maps not tiny. On GPUs a batch norm in training takes in the sum before it (with its
    upsampled term) and what follows it: a gain and an offset of each sample, ReLU. The rest runs as it is stated, and
    so does everything under `torch.compile`, tracing, `torch.func` transforms, forward-mode differentiation and
    checkpointing.

    Args:
        module: any module; its parameters, buffers and hooks stay where they are. Available as `.net`.

    Returns:
        a module with the parameters and the `state_dict` of `module`, as often differentiable. What it returns are
        ordinary tensors, also in lists, tuples and dicts; objects that hold tensors may hold a `Deferred`, which acts
        as one.

    Raises:
        InputError: `module` is not an `nn.Module`.
        UnsupportedError: in the forward, where a merge would not be exact: an input was written in place by a call
            that does not show it, or the gradient is asked for (a hook, `grad_fn`, `autograd.grad`) of a tensor that
            was merged with its consumer. Writes that PyTorch does not count (a compiled extension's; through NumPy or
            DLPack, unless the memory was taken while the operation was put off) are not noticed.
        RuntimeError: in the backward, PyTorch's own: the input of an upsampling was written in place after a
            convolution had merged with it. Stated, the graph has a copy of that input; merged, the input itself.
    """
    if not isinstance(module, nn.Module):
        raise InputError(f"module: got {type(module).__name__}, wanted an nn.Module")
    return Rewritten(module)


class Rewritten(Wrapper[M]):
    """What `rewrite` returns."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What `net` returns."""
        if torch.compiler.is_compiling() or function_mode():
            return self.net(*args, **kwargs)
        with _Rewriting() as mode:
            output = self.net(*args, **kwargs)
        # What is returned, and what hooks have kept, must outlive the weights of this step.
        mode.compute()
        return tree_map_only(Deferred, real, output)


class _Rewriting(TorchFunctionMode):
    """Offers every call to `RULES`, and computes beforehand what a call that may write would change."""

    def __init__(self) -> None:
        super().__init__()
        self.references: list[weakref.ref[Tensor]] = []

    def pending(self) -> list[Deferred]:
        """Those that somebody still holds, and that are not computed yet."""
        self.references = [ref for ref in self.references if is_pending(ref())]
        return [ref() for ref in self.references]

    def compute(self) -> None:
        """Computes all of these."""
        for deferred in self.pending():
            compute(deferred)

    @uncompiled("Dynamo could not go on in a compiled submodule")
    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if not eager():
            # What watches cannot be shown a tensor without values.
            self.compute()
        elif func in RULES:
            with torch._C.DisableTorchFunction():
                result = RULES[func](*args, **kwargs)
            if is_pending(result):
                self.references.append(weakref.ref(result))
            if result is not NotImplemented:
                return result
        written = [real(tensor) for tensor in _written(func, args, kwargs)] if self.references else []
        for deferred in self.pending() if written else []:
            if any(torch._C._is_alias_of(read, other) for read in memory(deferred) for other in written):
                compute(deferred)
        return call(func, args, kwargs) if Deferred in types else func(*args, **kwargs)


_HANDING_OUT = frozenset(["numpy", "__array__", "__dlpack__", "untyped_storage", "data_ptr"])
"""Names of the methods that hand a tensor's memory to code that PyTorch does not see write."""


def _written(func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors that a call may write to; rather too many."""
    name = getattr(func, "__name__", "_")
    by_name = name.startswith(("__i", "__set")) if name.startswith("__") else name.endswith("_")
    by_name = by_name or name in _HANDING_OUT
    by_argument = kwargs.get("out") is not None or kwargs.get("inplace") or any(value is True for value in args)
    if func in (F.batch_norm, F.instance_norm):
        args, kwargs = args[1:3], {}  # The running statistics.
    elif not (by_name or by_argument or isinstance(func, torch._ops.OpOverload | torch._ops.OpOverloadPacket)):
        return []
    return [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
