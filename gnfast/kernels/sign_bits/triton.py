"""Sign bits in Triton: those of a join with one term, for GPUs without the CUDA library."""

from torch import Tensor

from gnfast.kernels.join import triton as join
from gnfast.kernels.sign_bits.plain import check_dense_floating, check_words


def pack(x: Tensor, negative_slope: float) -> tuple[Tensor, Tensor]:
    """`leaky_relu_pack`."""
    check_dense_floating(x, "x")
    y, _, bits = join.forward([x], (), 0, negative_slope, False, None)
    return y, bits


def pack_(x: Tensor, negative_slope: float) -> Tensor:
    """`leaky_relu_pack(inplace=True)`; returns the bits."""
    check_dense_floating(x, "x")
    return join.forward([x], (), 0, negative_slope, False, x)[2]


def mask(t: Tensor, bits: Tensor, negative_slope: float) -> Tensor:
    """`leaky_relu_mask`."""
    check_dense_floating(t, "t")
    check_words(bits, t)
    return join.pullback([t], (), bits, t.stride(), negative_slope, None)


def mask_(t: Tensor, bits: Tensor, negative_slope: float) -> None:
    """`leaky_relu_mask(inplace=True)`."""
    check_dense_floating(t, "t")
    check_words(bits, t)
    join.pullback([t], (), bits, t.stride(), negative_slope, t)
