"""Reshapes that keep every sample's entries together and in order."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from gnfast.plan.op import Op, Operands, Shape, records


@dataclass(frozen=True)
class Reshape(Op):
    """y = h.reshape(B, *shape)."""

    shape: Shape
    is_view: ClassVar[bool] = True
    shares_cotangent: ClassVar[bool] = True

    def forward(self, inputs: Sequence[Tensor], operands: Operands, overwrite: bool) -> tuple[Tensor, None]:
        return inputs[0].reshape(inputs[0].shape[0], *self.shape), None

    def pullback(
        self, cotangent: Tensor, operands: Operands, saved: Any, shapes: Sequence[Shape], overwrite: bool
    ) -> Sequence[Tensor]:
        return (cotangent.reshape(shapes[0]),)

    def pushforward(
        self, tangents: Sequence[Tensor], operands: Operands, saved: Any, scale: Tensor | None, overwrite: bool
    ) -> Tensor:
        return tangents[0].reshape(tangents[0].shape[0], *self.shape)

    def label(self) -> str:
        return "reshape"


def _records_reshape(*functions):
    """Records functions of which PyTorch itself says what shape comes out, with -1 and axis arithmetic resolved."""

    def register(function):
        def recorder(trace, input, *args, **kwargs):
            shape = function(torch.empty(input.shape, device="meta"), *args, **kwargs).shape
            if not shape or shape[0] != input.shape[0]:
                trace.refuse(f"a reshape of {tuple(input.shape)} to {tuple(shape)} moves the batch axis")
            return trace.emit_view(Reshape(tuple(shape[1:])), input)

        return recorder

    for function in functions:
        # A view may be impossible in one memory format and possible in another; reshape gives the same values in all.
        shaped = torch.Tensor.reshape if function is torch.Tensor.view else function
        records(function)(register(shaped))


_records_reshape(
    torch.Tensor.view,
    torch.reshape,
    torch.Tensor.reshape,
    torch.flatten,
    torch.Tensor.flatten,
    torch.squeeze,
    torch.Tensor.squeeze,
    torch.unsqueeze,
    torch.Tensor.unsqueeze,
)


@records(torch.Tensor.contiguous)
def _contiguous(trace, input, memory_format=torch.contiguous_format):
    return input


@records(torch.Tensor.clone, torch.clone)
def _clone(trace, input, *, memory_format=torch.preserve_format):
    return trace.copy(input)


def _records_cast(*functions):
    """Records functions that may change dtype or device: the identity where they do not, refused where they do."""

    def register(function):
        def recorder(trace, input, *args, **kwargs):
            args = [a for a in args if not _is_device_of(a, input)]
            kwargs = {k: v for k, v in kwargs.items() if not _is_device_of(v, input)}
            converted = function(torch.empty(0, dtype=input.dtype, device="meta"), *args, **kwargs)
            if converted.dtype != input.dtype:
                trace.refuse(f"a change of dtype from {input.dtype} to {converted.dtype}")
            return input

        return recorder

    for function in functions:
        records(function)(register(function))


def _is_device_of(value, tensor):
    return isinstance(value, (str, torch.device)) and torch.empty(0, device=value).device == tensor.device


_records_cast(torch.Tensor.to, torch.Tensor.float, torch.Tensor.double, torch.Tensor.half, torch.Tensor.bfloat16)
