"""Batch norm in training, of several batches at once and with what follows it, as two passes with gradients."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._C._functorch import is_legacy_batchedtensor

from gnfast.interop.surroundings import transform, without_autocast
from gnfast.kernels.batch_norm import Running, by_place, dtype_of, fuses, gradients, normalise, statistics
from gnfast.kernels.layout import accumulator

Measured = tuple[Tensor, Tensor, Tensor]
_DTYPES = torch.float16, torch.bfloat16, torch.float32, torch.float64


def fits(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    groups: int,
) -> bool:
    """Whether fused kernels do what `F.batch_norm` in training does with these; where not, or in doubt, it serves."""
    if not fuses(x.device.type) or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    others = [t for t in (running_mean, running_var, weight, bias) if t is not None]
    dtypes = x.dtype, accumulator(x.dtype)
    return (
        x.dtype in _DTYPES
        and x.dim() >= 2
        and len(x) % groups == 0
        and x.numel() >= 2 * groups * x.shape[1] > 0
        and (running_mean is None) == (running_var is None)
        and all(is_ordinary(t) for t in (x, *others))
        and all(t.shape == x.shape[1:2] and t.dtype in dtypes and t.device == x.device for t in others)
        and all(t.is_contiguous() for t in others)
        and not any(t.requires_grad for t in (running_mean, running_var) if t is not None)
        and not transform()
    )


def is_ordinary(t: Tensor) -> bool:
    """Whether its memory holds its values."""
    return type(t) in (Tensor, nn.Parameter) and t.layout is torch.strided and not t.is_neg()


class More(NamedTuple):
    """What is added to a batch norm's input first."""

    term: Tensor
    """Of its dtype; of its shape, or (B, C, H, W) with fewer pixels."""
    factor: tuple[int, int]
    """How often each pixel is repeated."""


def measured(x: Tensor, more: More | None, groups: int, eps: float, running: Running | None) -> Measured:
    """x, or the sum of it and more, differentiable; its means and 1/σ, (groups, C). Running averages go on.

    Of what `fits`.
    """
    if more is not None:
        return _Sum.apply(x, *more, groups, eps, running)
    with torch.no_grad():
        return x, *statistics(x, groups, eps, running)[1:]


class _Sum(torch.autograd.Function):
    """A sum with the statistics that come with it."""

    @staticmethod
    def forward(
        ctx, x: Tensor, term: Tensor, factor: tuple[int, int], groups: int, eps: float, running: Running | None
    ) -> Measured:
        ctx.factor = factor
        total, mean, rstd = statistics(x, groups, eps, running, term, factor)
        ctx.mark_non_differentiable(mean, rstd)
        return total, mean, rstd

    @staticmethod
    def backward(ctx, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        fewer = grad if ctx.factor == (1, 1) else F.avg_pool2d(grad, ctx.factor, divisor_override=1)
        return grad, fewer, *[None] * 4


class Normalise(torch.autograd.Function):
    """`kernels.batch_norm.normalise`, differentiable as often as PyTorch's: from the second derivative on by PyTorch.

    Its first gradients take part of x's mean and variance, from which `mean` and `rstd` were made with `eps`. Given
    `put_off`, it returns what that makes of the computation and of the dtype of its result.
    """

    @staticmethod
    def forward(
        ctx,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        rstd: Tensor,
        eps: float,
        relu: bool,
        put_off: Callable[[Callable[[], Tensor], torch.dtype], Tensor] | None = None,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        ctx.eps, ctx.relu = eps, relu

        def kernel() -> Tensor:
            return normalise(x, mean, rstd, weight, bias, relu)

        return kernel() if put_off is None else put_off(kernel, dtype_of(x, weight, bias))

    @staticmethod
    def backward(ctx, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, rstd = ctx.saved_tensors
        if torch.is_grad_enabled() or transform() or is_legacy_batchedtensor(dy):
            return *_by_pytorch((x, weight, bias), dy, len(mean), ctx.eps, ctx.relu), *[None] * 5
        return *gradients(dy, x, mean, rstd, weight, bias, ctx.relu), *[None] * 5


def _by_pytorch(given: Any, dy: Tensor, groups: int, eps: float, relu: bool) -> list[Tensor | None]:
    """The gradients, to be differentiated again if gradients are recorded, or a batch of them."""
    again = torch.is_grad_enabled()
    with torch.enable_grad(), without_autocast(dy.device.type):
        # One of them may have been computed from another.
        own = [None if t is None else t.view_as(t) for t in given]
        wanted = [t for t in own if t is not None and t.requires_grad]
        grads = iter(torch.autograd.grad(_stated(*own, groups, eps, relu), wanted, dy, create_graph=again))
    return [next(grads) if t is not None and t.requires_grad else None for t in own]


def _stated(x: Tensor, weight: Tensor | None, bias: Tensor | None, groups: int, eps: float, relu: bool) -> Tensor:
    """The same by PyTorch's operations."""
    grouped = by_place(x).to(accumulator(x.dtype)).unflatten(0, (groups, -1))
    var, mean = torch.var_mean(grouped, (1, 3), correction=0, keepdim=True)
    y = ((grouped - mean) * (var + eps).rsqrt()).flatten(0, 1)
    if weight is not None:
        y = y * weight.unsqueeze(-1)
    if bias is not None:
        y = y + bias.unsqueeze(-1)
    return (y.relu() if relu else y).view(x.shape).to(dtype_of(x, weight, bias))
