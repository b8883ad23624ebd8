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

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from gnfast.kernels.backend import choose
from gnfast.kernels.build_info import load

# stride, padding, dilation, transposed, output_padding, groups: what `torch.convolution` takes after the bias.
Arguments = tuple[Sequence[int], Sequence[int], Sequence[int], bool, Sequence[int], int]

# kernel -> the stride with which it is one of the two cases
_STRIDES = {(3, 3): (1, 1), (4, 4): (2, 2)}
_PANEL = 8
# With fewer output positions transforming the weight costs more than the products save.
_MIN_POSITIONS = 64


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, arguments: Arguments) -> Tensor:
    """`torch.convolution(x, weight, bias, *arguments)`, any number of dimensions.

    Args:
        x: (B, C_in, *space), any dtype.
        weight, bias: as `torch.convolution` takes them.
        arguments: stride, padding, dilation, transposed, output_padding, groups.

    Returns:
        (B, C_out, *space), in the memory format that PyTorch would give it.
    """
    if fits(x, weight, arguments, _positions(x) // math.prod(arguments[0])):
        y = torch.ops.gnfast.winograd_conv2d(_channels_last(x), _channels_last(weight), bias, arguments[1][0])
        return _in_layout_of(y, x, weight)
    return torch.convolution(x, weight, bias, *arguments)


def conv2d_input_grad(cotangent: Tensor, x: Tensor, weight: Tensor, arguments: Arguments) -> Tensor:
    """The gradient of <cotangent, conv2d(x, weight)> with respect to x.

    Args:
        cotangent: of the shape of the output.
        x: only its shape is read.
        weight, arguments: as for `conv2d`.
    """
    if fits(cotangent, weight, arguments, _positions(cotangent)):
        given = _channels_last(cotangent), _channels_last(weight)
        grad = torch.ops.gnfast.winograd_conv2d_input_grad(*given, arguments[1][0], *x.shape[2:])
        return _in_layout_of(grad, cotangent, weight)
    return _backward(cotangent, x, weight, arguments, (True, False, False))[0]


def conv2d_weight_grad(cotangent: Tensor, x: Tensor, weight: Tensor, arguments: Arguments) -> Tensor:
    """The gradient of <cotangent, conv2d(x, weight)> with respect to the weight.

    Args:
        cotangent: of the shape of the output.
        x: the input.
        weight: only its shape, dtype and memory format are read.
        arguments: as for `conv2d`.
    """
    if fits(cotangent, weight, arguments, _positions(cotangent)):
        given = _channels_last(cotangent), _channels_last(x)
        grad = torch.ops.gnfast.winograd_conv2d_weight_grad(*given, weight.shape[2], arguments[1][0])
        return _in_layout_of(grad, weight)
    return _backward(cotangent, x, weight, arguments, (False, True, False))[1]


def _backward(cotangent: Tensor, x: Tensor, weight: Tensor, arguments: Arguments, mask: tuple[bool, ...]) -> Any:
    return torch.ops.aten.convolution_backward(cotangent, x, weight, None, *arguments, mask)


def fits(x: Tensor, weight: Tensor, arguments: Arguments, positions: int) -> bool:
    """Whether Winograd's algorithm serves a convolution between x and something of `positions` pixels."""
    stride, padding, dilation, transposed, _, groups = arguments
    return (
        _enabled
        and _STRIDES.get(tuple(weight.shape[2:])) == tuple(stride)
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not transposed
        and groups == 1
        and tuple(dilation) == (1, 1)
        and padding[0] == padding[1]
        and weight.shape[0] % _PANEL == 0
        and weight.shape[1] % _PANEL == 0
        and positions >= _MIN_POSITIONS
    )


def _positions(x: Tensor) -> int:
    return x.shape[0] * math.prod(x.shape[2:])


def _is_channels_last(t: Tensor) -> bool:
    return t.is_contiguous(memory_format=torch.channels_last) and not t.is_contiguous()


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _in_layout_of(result: Tensor, *given: Tensor) -> Tensor:
    """As PyTorch chooses: channels_last if one of the given tensors is."""
    return result if any(_is_channels_last(t) for t in given) else result.contiguous()


def _register() -> None:
    operators = torch.ops.gnfast

    def feature_map(like, *shape):
        return like.new_empty(shape).contiguous(memory_format=torch.channels_last)

    @torch.library.register_fake("gnfast::winograd_conv2d")
    def _(x, weight, bias, padding):
        size = weight.shape[2]
        space = [(extent + 2 * padding - size) // (size - 2) + 1 for extent in x.shape[2:]]
        return feature_map(x, x.shape[0], weight.shape[0], *space)

    @torch.library.register_fake("gnfast::winograd_conv2d_input_grad")
    def _(grad, weight, padding, height, width):
        return feature_map(grad, grad.shape[0], weight.shape[1], height, width)

    @torch.library.register_fake("gnfast::winograd_conv2d_weight_grad")
    def _(grad, x, kernel_size, padding):
        return feature_map(grad, grad.shape[1], x.shape[1], kernel_size, kernel_size)

    # FLOPs as PyTorch counts them, which are those of the direct algorithm.

    def products(y_shape, weight_shape):
        return 2 * math.prod(weight_shape) * y_shape[0] * math.prod(y_shape[2:])

    @register_flop_formula(operators.winograd_conv2d)
    def _(x_shape, weight_shape, *_, out_shape, **__):
        return products(out_shape, weight_shape)

    @register_flop_formula(operators.winograd_conv2d_input_grad)
    def _(grad_shape, weight_shape, *_, **__):
        return products(grad_shape, weight_shape)

    @register_flop_formula(operators.winograd_conv2d_weight_grad)
    def _(grad_shape, *_, out_shape, **__):
        return products(grad_shape, out_shape)


if load("cpp"):
    _register()

# The kernels are written for AVX2. With AVX-512, PyTorch's own convolutions compute twice as much per instruction.
_enabled = choose("winograd_conv2d", "cpu") == "cpp" and torch.backends.cpu.get_cpu_capability() == "AVX2"
