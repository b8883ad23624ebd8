"""LeakyReLU that keeps one bit per element, and the multiplication of a cotangent or tangent by those bits.

    y    = x where x > 0, else negative_slope * x            (leaky_relu_pack)
    out  = t where the bit is set, else negative_slope * t   (leaky_relu_mask)

The bits are int32 words over the *physical* (storage) order of x: element i of the storage is bit `i % 32` of word
`i // 32`, and the unused high bits of the last word are 0. So x may have any order of dimensions (channels_last, say),
but must be non-overlapping and dense, and t must have the strides that x had; the words cannot tell.

These functions are building blocks for autograd Functions and are not differentiable themselves.
"""

import sys
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gnfast.kernels.backend import choose
from gnfast.kernels.build_info import load


class _Implementation(NamedTuple):
    pack: Callable[[Tensor, float], tuple[Tensor, Tensor]]
    pack_: Callable[[Tensor, float], Tensor]
    mask: Callable[[Tensor, Tensor, float], Tensor]
    mask_: Callable[[Tensor, Tensor, float], None]


def leaky_relu_pack(x: Tensor, negative_slope: float = 0.0, inplace: bool = False) -> tuple[Tensor, Tensor]:
    """`F.leaky_relu` (slope 0: `torch.relu`, bit for bit), and where x was positive.

    Args:
        x: any shape, float32, float64, bfloat16 or float16, non-overlapping and dense.
        negative_slope: the factor for elements that are not positive; a NaN counts as not positive and stays NaN.
        inplace: overwrite x.

    Returns:
        y: x's shape, dtype and strides; x itself if `inplace`.
        bits: (ceil(numel / 32),) int32.

    Raises:
        TypeError: x has another dtype.
        ValueError: x has gaps or overlaps.
    """
    implementation = _in_use.get(x.device.type, _TORCH)
    if inplace:
        return x, implementation.pack_(x, negative_slope)
    return implementation.pack(x, negative_slope)


def leaky_relu_mask(t: Tensor, bits: Tensor, negative_slope: float = 0.0, inplace: bool = False) -> Tensor:
    """t times the derivative of `leaky_relu_pack`'s y: a cotangent pulled back, or a tangent pushed forward.

    Args:
        t: shape and strides of the x that `bits` came from; dtypes as there, not necessarily x's.
        bits: (ceil(numel / 32),) int32, on t's device.
        negative_slope: as it was for `leaky_relu_pack`. Slope 0 selects, so that inf and NaN become 0.
        inplace: overwrite t.

    Returns:
        t's shape, dtype and strides; t itself if `inplace`.

    Raises:
        TypeError: t or bits have another dtype.
        ValueError: t has gaps or overlaps, or the number of words does not fit it.
    """
    implementation = _in_use.get(t.device.type, _TORCH)
    if inplace:
        implementation.mask_(t, bits, negative_slope)
        return t
    return implementation.mask(t, bits, negative_slope)


# Plain PyTorch: the test oracle, and what runs where nothing was compiled.


def leaky_relu_pack_torch(x: Tensor, negative_slope: float) -> tuple[Tensor, Tensor]:
    """`leaky_relu_pack` in plain PyTorch."""
    _check_dense_floating(x, "x")
    y = torch.relu(x) if negative_slope == 0 else F.leaky_relu(x, negative_slope)
    return y, _pack(x > 0)


def leaky_relu_pack_torch_(x: Tensor, negative_slope: float) -> Tensor:
    """`leaky_relu_pack(inplace=True)` in plain PyTorch; returns the bits."""
    _check_dense_floating(x, "x")
    bits = _pack(x > 0)
    if negative_slope == 0:
        torch.relu_(x)
    else:
        F.leaky_relu_(x, negative_slope)
    return bits


def leaky_relu_mask_torch(t: Tensor, bits: Tensor, negative_slope: float) -> Tensor:
    """`leaky_relu_mask` in plain PyTorch."""
    _check_dense_floating(t, "t")
    return torch.where(_unpack(bits, t), t, t.new_zeros(()) if negative_slope == 0 else t * negative_slope)


def leaky_relu_mask_torch_(t: Tensor, bits: Tensor, negative_slope: float) -> None:
    """`leaky_relu_mask(inplace=True)` in plain PyTorch."""
    t.copy_(leaky_relu_mask_torch(t, bits, negative_slope))


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


def _pack(positive: Tensor) -> Tensor:
    flags = F.pad(_physical(positive), (0, -positive.numel() % 32))
    octets = (((flags.view(torch.int64) * _GATHER) >> 56) & 255).to(torch.int32).view(-1, 4)
    return octets[:, 0] | octets[:, 1] << 8 | octets[:, 2] << 16 | octets[:, 3] << 24


def _unpack(bits: Tensor, t: Tensor) -> Tensor:
    """The bits as booleans of t's shape and strides."""
    _check_words(bits, t)
    octets = torch.stack([bits >> shift & 255 for shift in (0, 8, 16, 24)], 1).to(torch.int64)
    flags = (octets * _COPIES & _SPREAD).view(torch.uint8).ne(0)
    return flags.as_strided(t.shape, t.stride())


def _check_words(bits: Tensor, t: Tensor) -> None:
    if bits.dtype != torch.int32:
        raise TypeError(f"bits must be int32, got {bits.dtype}")
    if bits.device != t.device:
        raise ValueError(f"bits must be on t's device {t.device}, got {bits.device}")
    num_words = (t.numel() + 31) // 32
    if bits.shape != (num_words,):
        raise ValueError(f"bits must have {num_words} words for t's {t.numel()} elements, got {tuple(bits.shape)}")


def _check_dense_floating(x: Tensor, name: str) -> None:
    if x.dtype not in _DTYPES:
        raise TypeError(f"{name} must be float32, float64, float16 or bfloat16, got {x.dtype}")
    # `preserve_format` keeps the strides of exactly the tensors that are non-overlapping and dense.
    if torch.empty_like(x, device="meta").stride() != x.stride():
        raise ValueError(
            f"{name} must be non-overlapping and dense (any order of dimensions, no gaps), got sizes {list(x.shape)} "
            f"with strides {list(x.stride())}; call .contiguous() first"
        )


# Registration and choice.

_TORCH = _Implementation(leaky_relu_pack_torch, leaky_relu_pack_torch_, leaky_relu_mask_torch, leaky_relu_mask_torch_)


def _register_fakes() -> None:
    def new_bits(x: Tensor) -> Tensor:
        return x.new_empty(((x.numel() + 31) // 32,), dtype=torch.int32)

    @torch.library.register_fake("gnfast::leaky_relu_pack")
    def _(x, negative_slope):
        return torch.empty_like(x), new_bits(x)

    @torch.library.register_fake("gnfast::leaky_relu_pack_")
    def _(x, negative_slope):
        return new_bits(x)

    @torch.library.register_fake("gnfast::leaky_relu_mask")
    def _(t, bits, negative_slope):
        return torch.empty_like(t)

    @torch.library.register_fake("gnfast::leaky_relu_mask_")
    def _(t, bits, negative_slope):
        return None


def _select(device_type: str) -> _Implementation:
    backend = choose("leaky_relu_pack", device_type)
    if backend == "torch":
        return _TORCH
    if backend == "triton":
        from gnfast.kernels.join import triton

        return _Implementation(
            triton.leaky_relu_pack, triton.leaky_relu_pack_, triton.leaky_relu_mask, triton.leaky_relu_mask_
        )
    operators = torch.ops.gnfast
    return _Implementation(
        operators.leaky_relu_pack.default,
        operators.leaky_relu_pack_.default,
        operators.leaky_relu_mask.default,
        operators.leaky_relu_mask_.default,
    )


if load("cpp"):
    _register_fakes()

# device type -> implementation, looked up on every call; devices that are not listed use plain PyTorch. Complete before
# the first call, so that torch.compile sees a constant.
_in_use = {"cpu": _select("cpu")}
if torch.cuda.is_available():
    _in_use["cuda"] = _select("cuda")
