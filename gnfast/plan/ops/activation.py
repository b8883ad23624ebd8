"""ReLU and LeakyReLU: piecewise-linear activations whose mask is one bit per entry."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from gnfast.kernels import leaky_relu_mask, leaky_relu_pack
from gnfast.plan.op import Op, Operands, Shape, records

Saved = tuple[Tensor, tuple[int, ...]]


@dataclass(frozen=True)
class LeakyReLU(Op):
    """y = h where h > 0, else slope · h. Keeps the sign bits (in h's memory order) and h's strides."""

    slope: float
    mask_bits: ClassVar[float] = 1

    def forward(self, inputs: Sequence[Tensor], operands: Operands, overwrite: bool) -> tuple[Tensor, Saved]:
        y, bits = leaky_relu_pack(inputs[0], self.slope, inplace=overwrite)
        return y, (bits, y.stride())

    def pullback(
        self, cotangent: Tensor, operands: Operands, saved: Saved, shapes: Sequence[Shape], overwrite: bool
    ) -> Sequence[Tensor]:
        return (self._masked(cotangent, saved, overwrite),)

    def pushforward(
        self, tangents: Sequence[Tensor], operands: Operands, saved: Saved, scale: Tensor | None, overwrite: bool
    ) -> Tensor:
        return self._masked(tangents[0], saved, overwrite)

    def label(self) -> str:
        return f"leaky_relu {self.slope:g}" if self.slope else "relu"

    def _masked(self, t: Tensor, saved: Saved, overwrite: bool) -> Tensor:
        bits, strides = saved
        if t.stride() != strides:
            t, overwrite = torch.empty_strided(t.shape, strides, dtype=t.dtype, device=t.device).copy_(t), True
        return leaky_relu_mask(t, bits, self.slope, inplace=overwrite)


@records(F.relu, torch.relu, torch.Tensor.relu)
def _relu(trace, input, inplace=False):
    y = trace.emit(LeakyReLU(0.0), [input])
    return trace.rebind(input, y) if inplace else y


@records(F.leaky_relu)
def _leaky_relu(trace, input, negative_slope=0.01, inplace=False):
    y = trace.emit(LeakyReLU(float(negative_slope)), [input])
    return trace.rebind(input, y) if inplace else y


@records(torch.relu_, torch.Tensor.relu_)
def _relu_(trace, input):
    return _relu(trace, input, inplace=True)


@records(F.leaky_relu_)
def _leaky_relu_(trace, input, negative_slope=0.01):
    return _leaky_relu(trace, input, negative_slope, inplace=True)
