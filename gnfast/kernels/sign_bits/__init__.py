"""LeakyReLU that keeps one bit per element, and the multiplication of a cotangent or tangent by those bits.

    y    = x where x > 0, else negative_slope * x            (leaky_relu_pack)
    out  = t where the bit is set, else negative_slope * t   (leaky_relu_mask)

The bits are int32 words over the *physical* (storage) order of x: element i of the storage is bit `i % 32` of word
`i // 32`, and the unused high bits of the last word are 0. So x may have any order of dimensions (channels_last, say),
but must be non-overlapping and dense, and t must have the strides that x had; the words cannot tell.

These functions are building blocks for autograd Functions and are not differentiable themselves.
"""

from torch import Tensor

from gnfast.kernels.backend import implementation


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
    kernels = implementation("sign_bits", x.device.type)
    if inplace:
        return x, kernels.pack_(x, negative_slope)
    return kernels.pack(x, negative_slope)


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
    kernels = implementation("sign_bits", t.device.type)
    if inplace:
        kernels.mask_(t, bits, negative_slope)
        return t
    return kernels.mask(t, bits, negative_slope)
