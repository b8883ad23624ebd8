"""Other axes for the same entries: reshapes and permutations."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gnfast.kernels.layout import is_channels_last
from gnfast.plan.op import Context, LinearCall, LinearMap, Shape
from gnfast.plan.ops.constant import constant
from gnfast.plan.records import records


@dataclass(frozen=True)
class Reshape(LinearMap):
    """y = h.reshape(B, *shape)."""

    shape: Shape
    is_view: ClassVar[bool] = True
    shares_cotangent: ClassVar[bool] = True

    def forward(self, ctx: Context, *inputs: Tensor) -> tuple[Tensor, bool]:
        return self.pushforward(ctx, *inputs), is_channels_last(inputs[0])

    def pullback(self, ctx: Context, cotangent: Tensor) -> Sequence[Tensor]:
        grad = cotangent.reshape(ctx.shapes[0])
        # Else every convolution below would have to reorder its cotangent.
        return (grad.contiguous(memory_format=torch.channels_last) if ctx.saved else grad,)

    def pushforward(self, ctx: Context, *tangents: Tensor) -> Tensor:
        return tangents[0].reshape(tangents[0].shape[0], *self.shape)


# A view may be impossible in one memory format and possible in another; reshape gives the same values in all.
_SHAPED = {Tensor.view: Tensor.reshape, Tensor.view_as: Tensor.reshape, Tensor.reshape_as: Tensor.reshape}


@records(*_SHAPED, "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", self_checked=True, told=True)
def _reshape(function, trace, input, *args, **kwargs):
    """PyTorch itself says what shape comes out, with -1 and axis arithmetic resolved."""
    function = _SHAPED.get(function, function)
    if not trace.depends_on_x(input):
        return constant(function, trace, input, *args, **kwargs)
    if any(isinstance(value, torch.dtype) for value in args) or "dtype" in kwargs:
        trace.refuse("a view as another dtype")
    args = [tuple(a.shape) if isinstance(a, Tensor) and a.dim() else a for a in args]
    shape = function(torch.empty(input.shape, device="meta"), *args, **kwargs).shape
    if not (shape and input.dim()) or shape[0] != input.shape[0]:
        back = LinearCall(torch.reshape, (tuple(input.shape),))
        return trace.emit_view(LinearCall(torch.reshape, (tuple(shape),), transposed=back), input, mixes=True)
    return trace.emit_view(Reshape(tuple(shape[1:])), input)


@records("permute", "transpose", "movedim", self_checked=True, told=True)
@records("adjoint", "t", *(getattr(Tensor, name).__get__ for name in ("mT", "mH", "T")), self_checked=True, told=True)
def _permute(function, trace, input, *args, **kwargs):
    """PyTorch itself says in what order the axes come out, of a probe whose strides tell them apart."""
    probe = torch.empty(0).as_strided([0] * input.dim(), list(range(1, input.dim() + 1)))
    dims = tuple(stride - 1 for stride in function(probe, *args, **kwargs).stride())
    if not dims:
        return input
    back = LinearCall(torch.permute, (tuple(dims.index(dim) for dim in range(len(dims))),))
    return trace.emit_view(LinearCall(torch.permute, (dims,), transposed=back), input, mixes=dims[0] != 0)
