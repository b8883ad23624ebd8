"""Convolutions and their two gradients with Winograd's minimal filtering where it is faster, else PyTorch's own.

    y  = W * x + b                                    (conv2d)
    gx = the transposed convolution of gy by W        (conv2d_input_grad)
    gW = sum over samples and positions of gy x       (conv2d_weight_grad)

F(2×2, 3×3) takes 16 products where a 3×3 convolution with stride 1 takes 36 for 2×2 outputs. A 4×4 convolution with
stride 2 is a 2×2 one on the four phases of its input, for which F(2×2, 2×2) takes 36 instead of 64. The transforms add,
subtract and halve; errors are no larger than those of a direct convolution, whose sums are longer (Lavin & Gray, *Fast
Algorithms for Convolutional Neural Networks*, CVPR 2016).

None of these functions is differentiable itself.
"""

import functools
import math
from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from gnfast.kernels.backend import implementation
from gnfast.kernels.winograd import plain

# stride, padding, dilation, transposed, output_padding, groups: what `torch.convolution` takes after the bias.
Arguments = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], bool, tuple[int, ...], int]

# kernel -> the stride with which it is one of the two cases
_STRIDES = {(3, 3): (1, 1), (4, 4): (2, 2)}
_PANEL = 8
CAPABILITY = torch.backends.cpu.get_cpu_capability()
_HAS_VECTORS = CAPABILITY.startswith(("AVX2", "AVX512"))
# With fewer output positions transforming the weight costs more than the products save, sooner where those are fast.
_MIN_POSITIONS = 128 if CAPABILITY.startswith("AVX512") else 64


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, arguments: Arguments) -> Tensor:
    """`torch.convolution(x, weight, bias, *arguments)`, any number of dimensions.

    Args:
        x: (B, C_in, *space), any dtype.
        weight, bias: as `torch.convolution` takes them.
        arguments: stride, padding, dilation, transposed, output_padding, groups.

    Returns:
        (B, C_out, *space), in the memory format that PyTorch would give it.
    """
    return _kernels(x, weight, arguments, math.prod(arguments[0])).conv2d(x, weight, bias, arguments)


def conv2d_input_grad(cotangent: Tensor, x: Tensor, weight: Tensor, arguments: Arguments) -> Tensor:
    """The gradient of <cotangent, conv2d(x, weight)> with respect to x.

    Args:
        cotangent: of the shape of the output.
        x: only its shape is read.
        weight, arguments: as for `conv2d`.
    """
    return _kernels(cotangent, weight, arguments).conv2d_input_grad(cotangent, x, weight, arguments)


def conv2d_weight_grad(cotangent: Tensor, x: Tensor, weight: Tensor, arguments: Arguments) -> Tensor:
    """The gradient of <cotangent, conv2d(x, weight)> with respect to the weight.

    Args:
        cotangent: of the shape of the output.
        x: the input.
        weight: only its shape, dtype and memory format are read.
        arguments: as for `conv2d`.
    """
    return _kernels(cotangent, weight, arguments).conv2d_weight_grad(cotangent, x, weight, arguments)


def enabled(device_type: str) -> bool:
    """Whether Winograd's algorithm is used on such a device at all."""
    return _implementation(device_type) is not plain


def fits(x: Tensor, weight: Tensor, arguments: Arguments, positions: int) -> bool:
    """Whether Winograd's algorithm serves a convolution between x and something of `positions` pixels."""
    return enabled(x.device.type) and _serves(x, weight, arguments, positions)


def _kernels(x: Tensor, weight: Tensor, arguments: Arguments, per_output: int = 1) -> ModuleType:
    """The kernels for x, or a cotangent; `per_output` pixels of x give one of the output's."""
    kernels = _implementation(x.device.type)
    if kernels is plain or _serves(x, weight, arguments, x.numel() // max(x.shape[1], 1) // per_output):
        return kernels
    return plain


def _implementation(device_type: str) -> ModuleType:
    return implementation("winograd", device_type) if _HAS_VECTORS else plain


def _serves(x: Tensor, weight: Tensor, arguments: Arguments, positions: int) -> bool:
    suits = positions >= _MIN_POSITIONS and _is_a_case(weight.shape, arguments)
    return suits and x.dtype == weight.dtype == torch.float32


@functools.lru_cache(maxsize=1024)
def _is_a_case(shape: Sequence[int], arguments: Arguments) -> bool:
    """Whether it is one of the two convolutions, with a kernel of that shape."""
    stride, padding, dilation, transposed, _, groups = arguments
    return (
        _STRIDES.get(tuple(shape[2:])) == tuple(stride)
        and not transposed
        and groups == 1
        and tuple(dilation) == (1, 1)
        and padding[0] == padding[1]
        and shape[0] % _PANEL == 0
        and shape[1] % _PANEL == 0
    )
