"""Sign bits by the compiled libraries, and what torch.compile is told of their operators."""

import torch
from torch import Tensor

from gnfast.kernels.fakes import fake_of

_operators = torch.ops.gnfast
pack, pack_ = _operators.leaky_relu_pack.default, _operators.leaky_relu_pack_.default
mask, mask_ = _operators.leaky_relu_mask.default, _operators.leaky_relu_mask_.default


def _new_bits(x: Tensor) -> Tensor:
    return x.new_empty(((x.numel() + 31) // 32,), dtype=torch.int32)


for _operator, _fake in {
    pack: lambda x, negative_slope: (torch.empty_like(x), _new_bits(x)),
    pack_: lambda x, negative_slope: _new_bits(x),
    mask: lambda t, bits, negative_slope: torch.empty_like(t),
    mask_: lambda t, bits, negative_slope: None,
}.items():
    fake_of(_operator)(_fake)
