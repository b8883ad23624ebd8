"""What gnfast does on a GPU, done on a machine without one, so that what a step launches there can be counted."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._prims_common import suggest_memory_format
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from gnfast.engine import autograd, recording
from gnfast.kernels import backend
from gnfast.plan import recorder, state
from gnfast.plan.ops import pool
from gnfast.plan.unseen import widened

aten = torch.ops.aten
IN_TRITON = ("batch_norm", "join", "head", "operands", "scaled_sums", "mlp", "loss", "draws", "curves", "norms")
"""The operations that have no CUDA kernel."""


@contextlib.contextmanager
def gpu_ways(triton: tuple[str, ...] = IN_TRITON) -> Iterator[None]:
    """Inside, tensors on the CPU are treated as a GPU's; kernels are launched as there.

    Args:
        triton: the operations that Triton's kernels do.
    """
    chosen = {("winograd", "cpu"): ("torch",)}
    chosen |= {(operation, "cpu"): ("triton",) for operation in triton}
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.dict(backend.CHOSEN, chosen))
        stack.enter_context(mock.patch.dict(autograd._CHANNELS_LAST_DTYPES, cpu=autograd._CHANNELS_LAST_DTYPES["cuda"]))
        stack.enter_context(mock.patch.object(pool, "BY_UPSAMPLING", ()))
        stack.enter_context(mock.patch.object(recorder, "widened", _widened))
        # Nothing is put back while a graph is captured, so that nothing is copied for that.
        for module in (recording, state):
            stack.enter_context(mock.patch.object(module, "capturing", return_value=True))
        yield


def _widened(
    function: Callable[..., Any], args: tuple[Any, ...], device: torch.device, low: torch.dtype
) -> torch.dtype:
    """The dtype that autocast gives on a GPU: it sums in float32, and leaves pools and other maps of pixels alone."""
    if function in (torch.sum, torch.linalg.vector_norm):
        return torch.float32
    of_pixels = function.__module__ in (F.__name__, "torch._C._nn")
    return args[0].dtype if of_pixels else widened(function, args, device, low)


@contextlib.contextmanager
def nothing_computed() -> Iterator[None]:
    """Inside, Triton's kernels leave their results as they are, and so do products and batch norms."""
    from triton.runtime.jit import KernelInterface

    with mock.patch.object(KernelInterface, "__getitem__", return_value=lambda *args, **kwargs: None), Uncomputed():
        yield


class Uncomputed(TorchDispatchMode):
    """Products and batch norms give memory of the shape and strides that they have on a GPU, whatever it holds."""

    PRODUCTS = (aten.mm.default, aten.addmm.default)
    CONVOLUTIONS = (aten.convolution.default, aten.convolution_backward.default)
    """Channels_last where the input or the weight is, gradients too (cuDNN)."""
    BATCH_NORMS = (aten.native_batch_norm.default, aten.native_batch_norm_backward.default)
    """Of the first argument's strides."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func not in (*self.PRODUCTS, *self.CONVOLUTIONS, *self.BATCH_NORMS):
            return func(*args, **(kwargs or {}))
        given = [t for t in args[:3] if isinstance(t, Tensor)]
        given = given[1:] if func is aten.convolution_backward.default else given[:2]
        if func in self.BATCH_NORMS:
            given = given[:1]
        last = func not in self.PRODUCTS and any(suggest_memory_format(t) == torch.channels_last for t in given)

        def memory(result: Tensor) -> Tensor:
            layout = torch.channels_last if last and result.dim() == 4 else torch.contiguous_format
            return torch.empty(result.shape, dtype=result.dtype, memory_format=layout)

        on_meta = tree_map_only(Tensor, lambda t: t.to("meta"), (args, kwargs or {}))
        return tree_map_only(Tensor, memory, func(*on_meta[0], **on_meta[1]))
