"""Fourier transforms, and what is computed with complex numbers: all by autograd, whose rules for them differ.

A complex value is a pair of real ones, and so is its cotangent (∂L/∂Re + i ∂L/∂Im, as PyTorch has it): that pullback is
the adjoint of pushforward holds as for real values. Only these operations take part; others refuse complex numbers.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gnfast.plan.curved import CurvedCall
from gnfast.plan.op import Op
from gnfast.plan.records import records


class ComplexCall(CurvedCall):
    """A call that may take and return complex tensors."""

    def value(self, operands: Sequence[Tensor | None], *inputs: Tensor) -> Tensor:
        y = super().value(operands, *inputs)
        # A real part is a view.
        return y.clone() if y.untyped_storage()._cdata in {h.untyped_storage()._cdata for h in inputs} else y


def complex_call(op: CurvedCall) -> Op:
    """The same call as a `ComplexCall`."""
    return ComplexCall(op.function, op.args, op.kwargs)


def by_autograd(function: Callable[..., Any], trace: Any, *args: Any, **kwargs: Any) -> Tensor:
    """Records a call of one of these functions that has complex numbers among its arguments."""
    name = getattr(function, "__name__", "")
    name = name.strip("_") if name.startswith("__") else name
    if function in (Tensor.real.__get__, Tensor.imag.__get__):
        function = torch.real if function == Tensor.real.__get__ else torch.imag
    elif name not in _OF_COMPLEX and function not in _TRANSFORMS:
        trace.refuse("complex numbers")
    return trace.curved(function, *args, _as=complex_call, **kwargs)


_OF_COMPLEX = {
    *("add", "sub", "rsub", "mul", "rmul", "div", "truediv", "neg", "abs", "angle", "conj", "conj_physical", "exp"),
    *("radd", "view_as_real", "sum", "mean", "matmul", "rmatmul", "bmm", "einsum", "permute", "transpose", "reshape"),
    *("flatten", "unsqueeze", "squeeze", "resolve_conj", "square", "pow", "real", "imag"),
}
_NAMES = ("fft", "ifft", "rfft", "irfft", "hfft", "ihfft")
_TRANSFORMS = tuple(getattr(torch.fft, f"{name}{axes}") for name in _NAMES for axes in ("", "2", "n"))


@records("stft", "istft", told=True)
def _short_time(function, trace, input, *args, **kwargs):
    return trace.curved(function, _wide(trace, input), *args, _as=complex_call, **kwargs)


@records(*_TRANSFORMS, told=True)
def _transform(function, trace, input, *args, **kwargs):
    return trace.curved(function, _wide(trace, input), *args, _as=complex_call, **kwargs)


@records("complex", "view_as_complex", told=True)
def _pair(function, trace, *args):
    return trace.curved(function, *args, _as=complex_call)


def _wide(trace, input):
    """As autocast has it; without it, PyTorch refuses bfloat16 by itself."""
    low = input.dtype in (torch.bfloat16, torch.float16)
    return trace.cast(input, torch.float32) if low and torch.is_autocast_enabled(trace.device.type) else input
