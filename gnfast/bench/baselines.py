"""Stronger ways to double backward than the papers', to measure against: repaired by hand, and compiled.

PyTorch computes the second-order weight gradient of a convolution by a convolution whose kernel is a whole feature map.
`repaired` computes it as the weight gradient that it is. `compiled_critic_step` gives the whole step to torch.compile,
which takes first derivatives of `torch.func.vjp` although it refuses double backward of autograd.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gnfast import reference
from gnfast.bench.steps import Result, hinge

aten = torch.ops.aten


def repaired(net: nn.Module, x: Tensor, **options: Any) -> Tensor:
    """`reference.normalize_gradient` with two-dimensional convolutions whose double backward is not PyTorch's."""
    with _RepairedConvolutions() as mode:
        f_hat = reference.normalize_gradient(net, x, **options)
    mode.in_input_gradient = False
    return f_hat


class _RepairedConvolutions(TorchFunctionMode):
    in_input_gradient = True
    """While it is, weights need no gradient, which a Function written in Python is not told."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.conv2d:
            return _conv2d(self, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _conv2d(mode, input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    pair = [value if isinstance(value, (tuple, list)) else (value, value) for value in (stride, padding, dilation)]
    kind = input.device.type
    if torch.is_autocast_enabled(kind):
        # The Functions below would otherwise meet weights in float32 on the way back.
        low = torch.get_autocast_dtype(kind)
        input, weight, bias = (t if t is None else t.to(low) for t in (input, weight, bias))
    return _Convolution.apply(input, weight, bias, (*pair, False, (0, 0), groups), mode)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, x: Tensor, weight: Tensor, bias: Tensor | None, arguments: tuple[Any, ...], mode: _RepairedConvolutions
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.arguments, ctx.mode, ctx.has_bias = arguments, mode, bias is not None
        return torch.convolution(x, weight, bias, *arguments)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        by_x = _DataGradient.apply(grad, weight, x, ctx.arguments) if ctx.needs_input_grad[0] else None
        mask = (False, ctx.needs_input_grad[1], ctx.has_bias and ctx.needs_input_grad[2])
        by_weight = by_bias = None
        if any(mask) and not ctx.mode.in_input_gradient:
            sizes = [weight.shape[0]] if ctx.has_bias else None
            _, by_weight, by_bias = aten.convolution_backward(grad, x, weight, sizes, *ctx.arguments, mask)
        return by_x, by_weight, by_bias, None, None


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


def compiled_critic_step(net: nn.Module, search: bool = False) -> Callable[[Tensor], Result]:
    """What `critic_step` does with double backward, as one compiled function of the images.

    Args:
        net: the critic.
        search: let the compiler time candidates for every kernel (max-autotune), which takes minutes.
    """

    def loss(parameters: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        f, pull = torch.func.vjp(lambda x: torch.func.functional_call(net, parameters, (x,)), x)
        (g,) = pull(torch.ones_like(f))
        f_hat = f / (torch.linalg.vector_norm(g.flatten(1), dim=1, keepdim=True) + f.abs())
        return hinge(f_hat), f_hat

    # Every network compiles this same function, of which the compiler keeps few versions.
    torch._dynamo.reset()
    compiled = torch.compile(torch.func.grad(loss, has_aux=True), mode="max-autotune-no-cudagraphs" if search else None)

    def step(x: Tensor) -> Result:
        net.requires_grad_(True)
        parameters = dict(net.named_parameters())
        gradients, f_hat = compiled(parameters, x)
        return Result(f_hat, [gradients[name] for name in parameters])

    return step
