"""Stronger ways to double backward than the papers', to measure against: repaired by hand, compiled, and both.

PyTorch computes the second-order weight gradient of a convolution by a convolution whose kernel is a whole feature map.
`repaired` computes it as the weight gradient that it is. `compiled_critic_step` gives the whole step to torch.compile,
which takes first derivatives of `torch.func.vjp` although it refuses double backward of autograd. `compiled_step` gives
it the operations that the repaired double backward runs.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils.stateless import _reparametrize_module
from torch.overrides import TorchFunctionMode

from gnfast.bench.critic_steps import Result, hinge
from gnfast.engine import reference

aten = torch.ops.aten


def repair(way: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A function that differentiates with respect to images, with two-dimensional convolutions whose double backward
    is not PyTorch's."""

    def run(*args: Any, **options: Any) -> Tensor:
        with _RepairedConvolutions() as mode:
            result = way(*args, **options)
        mode.in_input_gradient = False
        return result

    return run


repaired = repair(reference.normalize_gradient)
"""`reference.normalize_gradient` with repaired convolutions."""


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

    With `search` the compiler times candidates for every kernel (max-autotune), which takes minutes.
    """

    def loss(parameters: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        f, pull = torch.func.vjp(lambda x: torch.func.functional_call(net, parameters, (x,)), x)
        (g,) = pull(torch.ones_like(f))
        f_hat = f / (torch.linalg.vector_norm(g.flatten(1), dim=1, keepdim=True) + f.abs())
        return hinge(f_hat), f_hat

    compiled = _compiled(torch.func.grad(loss, has_aux=True), search)

    def step(x: Tensor) -> Result:
        net.requires_grad_(True)
        parameters = dict(net.named_parameters())
        gradients, f_hat = compiled(parameters, x)
        return Result(f_hat, [gradients[name] for name in parameters])

    return step


def compiled_step(
    step: Callable[..., Result], net: nn.Module, x: Tensor, search: bool = False
) -> Callable[[Tensor], Result]:
    """A step of the repaired double backward as one graph of operations, compiled: the most that PyTorch offers.

    torch.compile refuses double backward, so autograd runs once beforehand, on tensors without data, and each operation
    that it dispatches becomes a node: forward, both backwards, every `convolution_backward` and every cast of autocast.
    No autograd is left to the compiler, which fuses all that lies between the products, keeps channels_last through
    them and, if it searches, chooses each product's kernel by measurement. Weights are inputs of the graph: they may
    change in place from call to call. Captured in a CUDA graph it has no launch costs either.

    Args:
        step: `critic_step` or `generator_step`.
        x: images like those that the step will be called with, in autocast if that is how it runs.
        search: as for `compiled_critic_step`.
    """
    operands = {**dict(net.named_parameters()), **dict(net.named_buffers())}

    def flat(x: Tensor, *tensors: Tensor) -> list[Tensor]:
        own = dict(zip(operands, (tensor.detach() for tensor in tensors), strict=True))
        with _reparametrize_module(net, own, tie_weights=True):
            result = step(repaired, net, x)
        return [result.values, *result.gradients]

    given = [tensor.detach() for tensor in operands.values()]
    # What autocast remembers of casts belongs to the tensors without data, and backward to this thread.
    with torch.autograd.set_multithreading_enabled(False), _autocast_without_memory(x.device.type):
        graph = make_fx(flat, tracing_mode="fake")(x, *given)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    compiled = _compiled(graph, search)

    def run(x: Tensor) -> Result:
        # The casts are in the graph.
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            values, *gradients = compiled(x, *given)
        return Result(values, gradients)

    return run


def _compiled(function: Callable[..., Any], search: bool) -> Callable[..., Any]:
    # Every network compiles one and the same function, of which the compiler keeps few versions.
    torch._dynamo.reset()
    return torch.compile(function, mode="max-autotune-no-cudagraphs" if search else None)


def _autocast_without_memory(kind: str) -> torch.autocast:
    enabled = torch.is_autocast_enabled(kind)
    return torch.autocast(kind, torch.get_autocast_dtype(kind), enabled, cache_enabled=False)
