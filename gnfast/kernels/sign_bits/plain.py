"""Sign bits in plain PyTorch: the test oracle, and what runs where nothing was compiled."""

import sys

import torch
import torch.nn.functional as F
from torch import Tensor

from gnfast.kernels.layout import is_dense


def pack(x: Tensor, negative_slope: float) -> tuple[Tensor, Tensor]:
    """`leaky_relu_pack`."""
    check_dense_floating(x, "x")
    y = torch.relu(x) if negative_slope == 0 else F.leaky_relu(x, negative_slope)
    return y, to_words(x > 0)


def pack_(x: Tensor, negative_slope: float) -> Tensor:
    """`leaky_relu_pack(inplace=True)`; returns the bits."""
    check_dense_floating(x, "x")
    bits = to_words(x > 0)
    if negative_slope == 0:
        torch.relu_(x)
    else:
        F.leaky_relu_(x, negative_slope)
    return bits


def mask(t: Tensor, bits: Tensor, negative_slope: float) -> Tensor:
    """`leaky_relu_mask`."""
    check_dense_floating(t, "t")
    return torch.where(from_words(bits, t), t, t.new_zeros(()) if negative_slope == 0 else t * negative_slope)


def mask_(t: Tensor, bits: Tensor, negative_slope: float) -> None:
    """`leaky_relu_mask(inplace=True)`."""
    t.copy_(mask(t, bits, negative_slope))


_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

# Eight booleans seen as one int64 become one byte by a multiplication: `_GATHER` moves the one at address i to bit
# 56 + i, without carries. Eight copies of a byte, masked by `_SPREAD`, leave bit i in the byte at address i.
_POWERS = bytes(1 << i for i in range(8))
_GATHER = int.from_bytes(_POWERS, "big" if sys.byteorder == "little" else "little", signed=True)
_SPREAD = int.from_bytes(_POWERS, sys.byteorder, signed=True)
_COPIES = 0x0101010101010101


def _physical(x: Tensor) -> Tensor:
    """The elements of a dense tensor in storage order, as a view."""
    return x.as_strided((x.numel(),), (1,))


def to_words(positive: Tensor) -> Tensor:
    """Booleans (dense) as int32 words, in storage order."""
    flags = F.pad(_physical(positive), (0, -positive.numel() % 32))
    octets = (((flags.view(torch.int64) * _GATHER) >> 56) & 255).to(torch.int32).view(-1, 4)
    return octets[:, 0] | octets[:, 1] << 8 | octets[:, 2] << 16 | octets[:, 3] << 24


def from_words(bits: Tensor, t: Tensor) -> Tensor:
    """The bits as booleans of t's shape and strides."""
    check_words(bits, t)
    octets = torch.stack([bits >> shift & 255 for shift in (0, 8, 16, 24)], 1).to(torch.int64)
    flags = (octets * _COPIES & _SPREAD).view(torch.uint8).ne(0)
    return flags.as_strided(t.shape, t.stride())


def check_words(bits: Tensor, t: Tensor) -> None:
    """Raises TypeError or ValueError unless `bits` are words for t."""
    if bits.dtype != torch.int32:
        raise TypeError(f"bits: got {bits.dtype}, wanted int32")
    if bits.device != t.device:
        raise ValueError(f"bits: got a tensor on {bits.device}, wanted it on t's device {t.device}")
    num_words = (t.numel() + 31) // 32
    if bits.shape != (num_words,):
        raise ValueError(f"bits: got {tuple(bits.shape)}, wanted {num_words} words for t's {t.numel()} elements")


def check_dense_floating(x: Tensor, name: str) -> None:
    """Raises TypeError for a dtype that has no kernels, ValueError for gaps and overlaps."""
    if x.dtype not in _DTYPES:
        raise TypeError(f"{name}: got {x.dtype}, wanted float32, float64, float16 or bfloat16")
    if not is_dense(x):
        raise ValueError(
            f"{name}: got sizes {list(x.shape)} with strides {list(x.stride())}, wanted a dense tensor (dimensions in "
            "any order, no gaps and no overlap); call .contiguous() first"
        )
