"""Convolutions in bfloat16 and float16 on CPUs, computed in float32, for the sake of their second derivatives.

PyTorch computes the second-order weight gradient of a convolution by a convolution whose kernel is a whole feature map.
oneDNN, which does it in bfloat16 on CPUs with AMX, gives wrong numbers for such kernels (PyTorch issue 163347 has the
smallest, 2x2 on 2x2; on 32x32 maps 3x3 weights' gradients were off by as much as their size at batches of 2, 4, 6, 8,
10 and 12). In float32 it is right. Results and gradients are rounded as before; on CPUs without AVX-512, where PyTorch
has only a slow loop for bfloat16, this is several times faster.
"""

import contextlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gnfast.interop.surroundings import autocast_dtype

_LOW = {torch.bfloat16, torch.float16}
_CONVOLUTIONS = {F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d}


def wide_convolutions(net: nn.Module, x: Tensor) -> contextlib.AbstractContextManager[Any]:
    """A context in which a network's convolutions are computed in float32, if it runs in low precision on a CPU."""
    dtypes = {x.dtype, autocast_dtype("cpu"), *(parameter.dtype for parameter in net.parameters())}
    return _Widening() if x.device.type == "cpu" and dtypes & _LOW else contextlib.nullcontext()


class _Widening(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func not in _CONVOLUTIONS:
            return func(*args, **kwargs)
        dtypes = {t.dtype for t in (*args, *kwargs.values()) if isinstance(t, Tensor)}
        low = autocast_dtype("cpu") if dtypes <= {*_LOW, torch.float32} else None
        if low is None and len(dtypes) == 1:
            (low,) = dtypes
        if low not in _LOW:
            return func(*args, **kwargs)

        def widened(value: Any) -> Any:
            return value.to(low).float() if isinstance(value, Tensor) else value

        with torch.autocast("cpu", enabled=False):
            wide = func(*map(widened, args), **{name: widened(value) for name, value in kwargs.items()})
        return wide.to(low)
