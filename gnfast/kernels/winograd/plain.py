"""Convolutions and their gradients by PyTorch."""

import torch
from torch import Tensor


def conv2d(x, weight, bias, arguments):
    """`conv2d`."""
    return torch.convolution(x, weight, bias, *arguments)


def conv2d_input_grad(cotangent, x, weight, arguments):
    """`conv2d_input_grad`."""
    return _backward(cotangent, x, weight, arguments, (True, False, False))[0]


def conv2d_weight_grad(cotangent, x, weight, arguments, total=None):
    """`conv2d_weight_grad`."""
    grad = _backward(cotangent, x, weight, arguments, (False, True, False))[1]
    return grad if total is None else total.add_(grad)


def _backward(cotangent, x, weight, arguments, mask) -> tuple[Tensor | None, ...]:
    return torch.ops.aten.convolution_backward(cotangent, x, weight, None, *arguments, mask)
