"""Stronger ways to double backward than the papers', to measure against: repaired by hand, and compiled.

PyTorch computes the second-order weight gradient of a convolution by a convolution whose kernel is a whole feature map.
`repaired` computes it as the weight gradient that it is. `compiled_critic_step` gives the whole step to torch.compile,
which takes first derivatives of `torch.func.vjp` although it refuses double backward of autograd.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gnfast import reference

aten = torch.ops.aten


def repaired(net: nn.Module, x: Tensor, **options: Any) -> Tensor:
    """`reference.normalize_gradient` with convolutions whose double backward is not PyTorch's."""
    with _RepairedConvolutions():
        return reference.normalize_gradient(net, x, **options)


class _RepairedConvolutions(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.conv2d:
            return _conv2d(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _conv2d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    pair = [value if isinstance(value, (tuple, list)) else (value, value) for value in (stride, padding, dilation)]
    return _Convolution.apply(input, weight, bias, (*pair, False, (0, 0), groups))


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, arguments: tuple[Any, ...]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.arguments, ctx.has_bias = arguments, bias is not None
        return torch.convolution(x, weight, bias, *arguments)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        by_x = _DataGradient.apply(grad, weight, x, ctx.arguments) if ctx.needs_input_grad[0] else None
        mask = (False, ctx.needs_input_grad[1], ctx.has_bias and ctx.needs_input_grad[2])
        by_weight = by_bias = None
        if any(mask):
            sizes = [weight.shape[0]] if ctx.has_bias else None
            _, by_weight, by_bias = aten.convolution_backward(grad, x, weight, sizes, *ctx.arguments, mask)
        return by_x, by_weight, by_bias, None


class _DataGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, grad: Tensor, weight: Tensor, x: Tensor, arguments: tuple[Any, ...]) -> Tensor:
        ctx.save_for_backward(grad, weight)
        ctx.arguments = arguments
        return aten.convolution_backward(grad, x, weight, None, *arguments, (True, False, False))[0]

    @staticmethod
    def backward(ctx, second: Tensor) -> tuple[Tensor | None, ...]:
        grad, weight = ctx.saved_tensors
        by_grad = torch.convolution(second, weight, None, *ctx.arguments) if ctx.needs_input_grad[0] else None
        by_weight = None
        if ctx.needs_input_grad[1]:
            mask = (False, True, False)
            by_weight = aten.convolution_backward(grad, second, weight, None, *ctx.arguments, mask)[1]
        return by_grad, by_weight, None, None


def compiled_critic_step(net: nn.Module, x: Tensor) -> Tensor:
    """What `steps.critic_step` does, as one compiled function; leaves the gradients in `.grad` and returns f̂."""
    net.requires_grad_(True)
    parameters = dict(net.named_parameters())
    grads, f_hat = _compiled(net)(parameters, x)
    for name, parameter in parameters.items():
        parameter.grad = grads[name]
    return f_hat


@functools.lru_cache(maxsize=8)
def _compiled(net: nn.Module) -> Callable[..., Any]:
    def loss(parameters: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        f, pull = torch.func.vjp(lambda x: torch.func.functional_call(net, parameters, (x,)), x)
        (g,) = pull(torch.ones_like(f))
        f_hat = f / (torch.linalg.vector_norm(g.flatten(1), dim=1, keepdim=True) + f.abs())
        real, fake = f_hat.chunk(2)
        return (1 - real).relu().mean() + (1 + fake).relu().mean(), f_hat

    return torch.compile(torch.func.grad(loss, has_aux=True))
