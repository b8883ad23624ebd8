"""Convolutions and their two gradients with Winograd's minimal filtering where it is faster, else PyTorch's own.

    y  = W * x + b                                    (conv2d)
    gx = the transposed convolution of gy by W        (conv2d_input_grad)
    gW = sum over samples and positions of gy x       (conv2d_weight_grad)

F(2×2, 3×3) takes 16 products where a 3×3 convolution with stride 1 takes 36 for 2×2 outputs. A 4×4 convolution is the
sum of four 2×2 ones, for which F(2×2, 2×2) takes 36 instead of 64: with stride 2 on the four phases of its input, with
stride 1 (which closes PatchGAN critics) on the input at four offsets. The transforms add, subtract and halve; errors
are no larger than those of a direct convolution, whose sums are longer (Lavin & Gray, *Fast Algorithms for
Convolutional Neural Networks*, CVPR 2016).

Convolutions to one channel are products of matrices instead (`narrow.py`). None of these functions is differentiable
itself.
"""

import functools
import math
from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from gnfast.kernels.backend import implementation
from gnfast.kernels.winograd import narrow, plain

# stride, padding, dilation, transposed, output_padding, groups: what `torch.convolution` takes after the bias.
Arguments = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], bool, tuple[int, ...], int]

# Kernel and stride of the three cases.
CASES = {((3, 3), (1, 1)), ((4, 4), (2, 2)), ((4, 4), (1, 1))}
_PANEL = 8
CAPABILITY = torch.backends.cpu.get_cpu_capability()
_HAS_VECTORS = CAPABILITY.startswith(("AVX2", "AVX512"))
# With fewer output positions transforming the weight costs more than the products save. Of 4×4 convolutions with stride
# 1, whose weights are transformed into more, the convolution and its data gradient need twice as many, and maps on
# which a good part of the tiles is neither padding nor past the edge.
_MIN_POSITIONS = 64
_MIN_SIDE = 3


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, arguments: Arguments) -> Tensor:
    """`torch.convolution(x, weight, bias, *arguments)`, any number of dimensions.

    Args:
        x: (B, C_in, *space), any dtype.
        weight, bias: as `torch.convolution` takes them.
        arguments: stride, padding, dilation, transposed, output_padding, groups.

    Returns:
        (B, C_out, *space), in the memory format that PyTorch would give it.
    """
    stride, padding, *_ = arguments
    space = [
        (n + 2 * p - k) // s + 1 for n, p, k, s in zip(x.shape[2:], padding, weight.shape[2:], stride, strict=False)
    ]
    return _kernels(x, weight, arguments, space).conv2d(x, weight, bias, arguments)


def conv2d_input_grad(cotangent: Tensor, x: Tensor, weight: Tensor, arguments: Arguments) -> Tensor:
    """The gradient of <cotangent, conv2d(x, weight)> with respect to x.

    Args:
        cotangent: of the shape of the output.
        x: only its shape is read.
        weight, arguments: as for `conv2d`.
    """
    kernels = _kernels(cotangent, weight, arguments, cotangent.shape[2:])
    return kernels.conv2d_input_grad(cotangent, x, weight, arguments)


def conv2d_weight_grad(
    cotangent: Tensor, x: Tensor, weight: Tensor, arguments: Arguments, total: Tensor | None = None
) -> Tensor:
    """The gradient of <cotangent, conv2d(x, weight)> with respect to the weight.

    Args:
        cotangent: of the shape of the output.
        x: the input.
        weight: only its shape, dtype and memory format are read.
        arguments: as for `conv2d`.
        total: of the weight's shape, to which it is added; then this is what is returned.
    """
    kernels = _kernels(cotangent, weight, arguments, cotangent.shape[2:], weight_grad=True)
    return kernels.conv2d_weight_grad(cotangent, x, weight, arguments, total)


def enabled(device_type: str) -> bool:
    """Whether Winograd's algorithm is used on such a device at all."""
    return _implementation(device_type) is not plain


def fits(x: Tensor, weight: Tensor, arguments: Arguments, outputs: Sequence[int]) -> bool:
    """Whether Winograd's algorithm serves a convolution and its data gradient.

    Args:
        x: a batch of inputs or cotangents.
        weight, arguments: as for `conv2d`.
        outputs: height and width of the convolution's output.
    """
    return enabled(x.device.type) and _serves(x, weight, arguments, outputs)


def _kernels(
    x: Tensor, weight: Tensor, arguments: Arguments, outputs: Sequence[int], weight_grad: bool = False
) -> ModuleType:
    """The kernels where Winograd's algorithm `fits`, those for one channel, or PyTorch's."""
    kernels = _implementation(x.device.type)
    if kernels is not plain and narrow.serves(x, weight, arguments):
        return narrow
    return kernels if kernels is plain or _serves(x, weight, arguments, outputs, weight_grad) else plain


def _implementation(device_type: str) -> ModuleType:
    return implementation("winograd", device_type) if _HAS_VECTORS else plain


def _serves(x: Tensor, weight: Tensor, arguments: Arguments, outputs: Sequence[int], weight_grad: bool = False) -> bool:
    positions = x.shape[0] * math.prod(outputs)
    suits = positions >= _MIN_POSITIONS and _is_a_case(weight.shape, arguments)
    if not suits or not x.dtype == weight.dtype == torch.float32:
        return False
    in_quarters = (weight.shape[2], arguments[0][0]) == (4, 1)
    return weight_grad or not in_quarters or (positions >= 2 * _MIN_POSITIONS and min(outputs) >= _MIN_SIDE)


@functools.lru_cache(maxsize=1024)
def _is_a_case(shape: Sequence[int], arguments: Arguments) -> bool:
    """Whether it is one of the three convolutions, with a kernel of that shape."""
    stride, padding, dilation, transposed, _, groups = arguments
    return (
        (tuple(shape[2:]), tuple(stride)) in CASES
        and not transposed
        and groups == 1
        and tuple(dilation) == (1, 1)
        and padding[0] == padding[1]
        and shape[0] % _PANEL == 0
        and shape[1] % _PANEL == 0
    )
