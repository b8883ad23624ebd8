"""Values that derivatives do not follow: `detach`, and what is computed under `no_grad`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gnfast.plan.op import Op, Operands, per_sample, records


@dataclass(frozen=True)
class Detach(Op):
    """y = h, a constant for every derivative. Keeps y, which pass 3 adds in proportion to ∂L/∂f as it adds biases."""

    is_view: ClassVar[bool] = True
    mask_bits: ClassVar[float] = 32
    detaches: ClassVar[bool] = True

    def forward(self, inputs: Sequence[Tensor], operands: Operands, overwrite: bool) -> tuple[Tensor, Tensor]:
        return inputs[0], inputs[0]

    def pushforward(
        self, tangents: Sequence[Tensor], operands: Operands, saved: Tensor, scale: Tensor | None, overwrite: bool
    ) -> Tensor:
        return torch.zeros_like(saved) if scale is None else saved * per_sample(scale, saved)

    def label(self) -> str:
        return "detach"


@records(Tensor.detach, torch.detach, self_checked=True)
def _detach(trace, input):
    return trace.emit_view(Detach(), input)
