"""Sign bits by the compiled libraries, and what torch.compile is told of their operators."""

import torch
from torch import Tensor

_operators = torch.ops.gnfast
pack, pack_ = _operators.leaky_relu_pack.default, _operators.leaky_relu_pack_.default
mask, mask_ = _operators.leaky_relu_mask.default, _operators.leaky_relu_mask_.default


def _new_bits(x: Tensor) -> Tensor:
    return x.new_empty(((x.numel() + 31) // 32,), dtype=torch.int32)


@torch.library.register_fake("gnfast::leaky_relu_pack")
def _(x, negative_slope):
    return torch.empty_like(x), _new_bits(x)


@torch.library.register_fake("gnfast::leaky_relu_pack_")
def _(x, negative_slope):
    return _new_bits(x)


@torch.library.register_fake("gnfast::leaky_relu_mask")
def _(t, bits, negative_slope):
    return torch.empty_like(t)


@torch.library.register_fake("gnfast::leaky_relu_mask_")
def _(t, bits, negative_slope):
    return None
