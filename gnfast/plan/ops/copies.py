"""The same entries in other memory, in another dtype, or without their derivatives."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gnfast.plan.op import Context, LinearMap, Op, per_sample
from gnfast.plan.ops.constant import constant, like
from gnfast.plan.records import records


@dataclass(frozen=True)
class Cast(LinearMap):
    """y = h in another floating-point dtype."""

    source: torch.dtype
    target: torch.dtype

    def pullback(self, ctx: Context, cotangent: Tensor) -> Sequence[Tensor]:
        return (cotangent.to(self.source),)

    def pushforward(self, ctx: Context, *tangents: Tensor) -> Tensor:
        return tangents[0].to(self.target)

    def label(self) -> str:
        return f"to {str(self.target).removeprefix('torch.')}"


@dataclass(frozen=True)
class Detach(Op):
    """y = h, a constant for every derivative: `detach`, and what is computed under `no_grad`.

    Keeps y, which pass 3 adds in proportion to ∂L/∂f as it adds biases.
    """

    is_view: ClassVar[bool] = True
    mask_bits: ClassVar[float] = 32
    detaches: ClassVar[bool] = True

    def forward(self, ctx: Context, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        return inputs[0], inputs[0]

    def pushforward(self, ctx: Context, *tangents: Tensor) -> Tensor:
        y = ctx.saved
        return torch.zeros_like(y) if ctx.scale is None else y * per_sample(ctx.scale, y)


@records("detach", self_checked=True)
def _detach(trace, input):
    return trace.emit_view(Detach(), input)


@records(Tensor.contiguous, self_checked=True)
def _contiguous(trace, input, memory_format=torch.contiguous_format):
    return trace.maybe_copy(input)


@records("clone", self_checked=True)
def _clone(trace, input, *, memory_format=torch.preserve_format):
    return trace.copy(input)


@records(*(Tensor.to, Tensor.type, Tensor.type_as, Tensor.cpu, Tensor.cuda), self_checked=True, told=True)
@records(
    *(Tensor.float, Tensor.double, Tensor.half, Tensor.bfloat16, Tensor.int, Tensor.long, Tensor.bool),
    self_checked=True,
    told=True,
)
def _cast(function, trace, input, *args, **kwargs):
    """What may change dtype or device; PyTorch itself says what comes out."""
    if not trace.depends_on_x(input):
        return constant(function, trace, input, *args, **kwargs)
    given = [like(trace, value) for value in args]
    probe = torch.empty((0,) * input.dim(), dtype=input.dtype, device=input.device)
    converted = function(probe, *given, **{name: like(trace, value) for name, value in kwargs.items()})
    if not isinstance(converted, Tensor) or converted.is_complex():
        trace.refuse("a change to a dtype that is not real")
    if converted.device != input.device:
        trace.refuse(f"a change of device, from {input.device} to {converted.device}")
    if converted.dtype != input.dtype:
        return trace.cast(input, converted.dtype)
    layout = next((v for v in (*args, *kwargs.values()) if isinstance(v, torch.memory_format)), None)
    if layout not in (None, torch.preserve_format):
        return trace.maybe_copy(input)
    return input if converted is probe else trace.copy(input)
