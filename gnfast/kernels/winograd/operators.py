"""Winograd convolutions by the compiled library; what torch.compile and FLOP counters are told of its operators."""

import functools
import math
import sys
from types import ModuleType

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from gnfast.kernels.fakes import fake_of

_operators = torch.ops.gnfast


def conv2d(x, weight, bias, arguments):
    """`conv2d`."""
    _tell_counters()
    y = _operators.winograd_conv2d(_channels_last(x), _channels_last(weight), bias, arguments[0][0], arguments[1][0])
    return _in_layout_of(y, x, weight)


def conv2d_input_grad(cotangent, x, weight, arguments):
    """`conv2d_input_grad`."""
    _tell_counters()
    given = _channels_last(cotangent), _channels_last(weight)
    grad = _operators.winograd_conv2d_input_grad(*given, arguments[0][0], arguments[1][0], *x.shape[2:])
    return _in_layout_of(grad, cotangent, weight)


def conv2d_weight_grad(cotangent, x, weight, arguments, total=None):
    """`conv2d_weight_grad`."""
    _tell_counters()
    given = _channels_last(cotangent), _channels_last(x)
    if total is not None and total.is_contiguous(memory_format=torch.channels_last):
        _operators.winograd_conv2d_weight_grad_(total, *given, arguments[0][0], arguments[1][0])
        return total
    grad = _operators.winograd_conv2d_weight_grad(*given, weight.shape[2], arguments[0][0], arguments[1][0])
    grad = _in_layout_of(grad, weight)
    return grad if total is None else total.add_(grad)


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _in_layout_of(result: Tensor, *given: Tensor) -> Tensor:
    """As PyTorch chooses: channels_last if one of the given tensors is."""
    last = any(t.is_contiguous(memory_format=torch.channels_last) and not t.is_contiguous() for t in given)
    return result if last else result.contiguous()


def _feature_map(like: Tensor, *shape: int) -> Tensor:
    return like.new_empty(shape).contiguous(memory_format=torch.channels_last)


@fake_of("gnfast::winograd_conv2d")
def _(x, weight, bias, stride, padding):
    size = weight.shape[2]
    space = [(extent + 2 * padding - size) // stride + 1 for extent in x.shape[2:]]
    return _feature_map(x, x.shape[0], weight.shape[0], *space)


@fake_of("gnfast::winograd_conv2d_input_grad")
def _(grad, weight, stride, padding, height, width):
    return _feature_map(grad, grad.shape[0], weight.shape[1], height, width)


@fake_of("gnfast::winograd_conv2d_weight_grad_")
def _(total, grad, x, stride, padding):
    return None


@fake_of("gnfast::winograd_conv2d_weight_grad")
def _(grad, x, kernel_size, stride, padding):
    return _feature_map(grad, grad.shape[1], x.shape[1], kernel_size, kernel_size)


def _products(y_shape, weight_shape):
    return 2 * math.prod(weight_shape) * y_shape[0] * math.prod(y_shape[2:])


# FLOPs as PyTorch counts them, which are those of the direct algorithm, from the arguments' shapes.
_FLOPS = {
    _operators.winograd_conv2d: lambda *shapes, out_shape, **_: _products(out_shape, shapes[1]),
    _operators.winograd_conv2d_input_grad: lambda *shapes, **_: _products(shapes[0], shapes[1]),
    _operators.winograd_conv2d_weight_grad: lambda *shapes, out_shape, **_: _products(shapes[0], out_shape),
    _operators.winograd_conv2d_weight_grad_: lambda *shapes, **_: _products(shapes[1], shapes[0]),
}


def _tell_counters() -> None:
    """Gives the formulas to FLOP counters at work. Not on import: it would import Triton, where there is one."""
    if not torch._C._len_torch_dispatch_stack():
        return
    counting = sys.modules.get("torch.utils.flop_counter")
    if counting is None:
        return
    _register(counting)
    for mode in _get_current_dispatch_mode_stack():
        # A counter has a copy of the registry, from when it was made.
        counter = getattr(mode, "counter", None)
        if isinstance(counter, counting.FlopCounterMode):
            counter.flop_registry = {op: counting.flop_registry[op] for op in _FLOPS} | counter.flop_registry


@functools.cache
def _register(counting: ModuleType) -> None:
    for operator, formula in _FLOPS.items():
        counting.register_flop_formula(operator)(formula)
