"""Layer, group, instance, batch and RMS norm with statistics of x.

Each group of N entries that share statistics becomes x̂ = (h - m) r, with m their mean and r = 1/√(variance + ε); RMS
norm takes m = 0. With <> the mean over a group, its derivative along u is

    r P(u),  P(u) = u - <u> - x̂ <x̂ u>,

where <u> falls away with m; it is symmetric. Its own derivative along t, paired with μ in the manner of
`Curved.second`, is r P(μ - r <x̂ t> δ) - r <x̂ δ> · r P(t) - r <δ · r P(t)> x̂. PyTorch's kernels compute x̂ and r P(u).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from gnfast.kernels.backend import implementation
from gnfast.kernels.layout import accumulator, is_channels_last, laid_out
from gnfast.plan.curved import Curved, Grads
from gnfast.plan.op import Context
from gnfast.plan.records import records

Statistics = tuple[Tensor | None, Tensor]
"""m and r in float32 or better, an entry per group."""
Gradients = tuple[Tensor, Tensor | None, Tensor | None]


@dataclass(frozen=True)
class Standardize(Curved):
    """y = x̂ · weight + bias, of h's shape and dtype.

    Operands are weight, bias, and for some kinds running mean and variance, to which forward writes; each may be None.
    """

    eps: float
    writes: ClassVar[tuple[int, ...]] = (2, 3)
    cheap: ClassVar[bool] = True

    def standardized(self, ctx: Context, h: Tensor, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor, Any]:
        """y, and the statistics."""
        raise NotImplementedError

    def projected(self, u: Tensor, h: Tensor, statistics: Statistics, weight: Tensor | None = None) -> Tensor:
        """r P(u · weight)."""
        raise NotImplementedError

    def mean(self, u: Tensor) -> Tensor:
        """<u>, an entry per group."""
        raise NotImplementedError

    def spread(self, statistic: Tensor, h: Tensor) -> Tensor:
        """What has an entry per group, to be broadcast against h."""
        return statistic

    def along(self, weight: Tensor, h: Tensor) -> Tensor:
        """Weight or bias, to be broadcast against h."""
        return weight

    def summed(self, total: Tensor) -> Tensor:
        """Over all entries that share a weight, in the weight's shape."""
        raise NotImplementedError

    def by_kernels(self, kernels: ModuleType, arguments: Sequence[Tensor | None], wants: Sequence[bool]) -> Gradients:
        """`plainly`, by what `gnfast/kernels/norms` describes."""
        raise NotImplementedError

    def forward(self, ctx: Context, *inputs: Tensor) -> tuple[Tensor, Statistics]:
        h, *affine = map(_wide, (*inputs, *ctx.operands[:2]))
        y, statistics = self.standardized(ctx, h, *affine)
        return y.to(inputs[0].dtype), statistics

    def again(self, ctx: Context, *inputs: Tensor) -> Tensor:
        h, weight, bias = map(_wide, (*inputs, *ctx.operands[:2]))
        y = self._x_hat(h, ctx.saved)
        y = y if weight is None else y.mul_(self.along(weight, h))
        return (y if bias is None else y.add_(self.along(bias, h))).to(inputs[0].dtype)

    def pullback(self, ctx: Context, cotangent: Tensor) -> Sequence[Tensor]:
        h, weight, cotangent = map(_wide, (ctx.inputs[0], ctx.operands[0], cotangent))
        return (self.projected(cotangent, h, ctx.saved, weight).to(ctx.inputs[0].dtype),)

    def pushforward(self, ctx: Context, *tangents: Tensor) -> Tensor:
        h, weight, t = map(_wide, (ctx.inputs[0], ctx.operands[0], tangents[0]))
        y = self.projected(t, h, ctx.saved)
        return (y if weight is None else y.mul_(self.along(weight, h))).to(ctx.inputs[0].dtype)

    def second(
        self, ctx: Context, cotangent: Tensor, tangents: Sequence[Tensor], adjoint: Tensor | None
    ) -> tuple[Grads, Grads]:
        given = ctx.inputs[0], tangents[0], cotangent, adjoint, ctx.operands[0]
        h, t, cotangent, adjoint, weight = map(_wide, given)
        arguments = h, t, cotangent, adjoint, *ctx.saved, weight
        wants = ctx.needs[0], ctx.needs[1] and adjoint is not None
        kernels = implementation("norms", h.device.type)
        by_h, *grads = self.by_kernels(kernels, arguments, wants) if kernels else self.plainly(*arguments, *wants)
        return [by_h.to(ctx.inputs[0].dtype)], [*grads, *[None] * (len(ctx.operands) - 2)]

    def plainly(
        self,
        h: Tensor,
        t: Tensor,
        cotangent: Tensor,
        adjoint: Tensor | None,
        m: Tensor | None,
        r: Tensor,
        weight: Tensor | None,
        wants_weight: bool,
        wants_bias: bool,
    ) -> Gradients:
        """The gradients of h, weight and bias, as `gnfast/kernels/norms` says, where it has no kernels."""
        statistics = m, r
        x_hat = self._x_hat(h, statistics)
        moved = self.projected(t, h, statistics)
        scaled = cotangent if weight is None else cotangent * self.along(weight, h)
        by_t, by_cotangent = -r * self.mean(x_hat * t), -r * self.mean(x_hat * scaled)
        by_both = -r * self.mean(scaled * moved)
        by_t = self.spread(by_t, h)
        total = cotangent * by_t if adjoint is None else torch.addcmul(adjoint, cotangent, by_t)
        by_h = self.projected(total, h, statistics, weight)
        by_h.addcmul_(moved, self.spread(by_cotangent, h)).addcmul_(x_hat, self.spread(by_both, h))
        by_weight = None
        if wants_weight:
            product = moved.mul_(cotangent) if adjoint is None else moved.mul_(cotangent).addcmul_(adjoint, x_hat)
            by_weight = self.summed(product)
        return by_h, by_weight, self.summed(adjoint) if wants_bias else None

    def _x_hat(self, h: Tensor, statistics: Statistics) -> Tensor:
        m, r = statistics
        return h * self.spread(r, h) if m is None else (h - self.spread(m, h)).mul_(self.spread(r, h))


@dataclass(frozen=True)
class LayerNorm(Standardize):
    """The entries of the last axes, of the sizes `shape`, share statistics; weight and bias have that shape."""

    shape: tuple[int, ...]

    def standardized(self, ctx: Context, h: Tensor, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor, Any]:
        y, *statistics = torch.native_layer_norm(h, self.shape, weight, bias, self.eps)
        return y, tuple(statistics)

    def projected(self, u: Tensor, h: Tensor, statistics: Statistics, weight: Tensor | None = None) -> Tensor:
        backward, outputs = torch.ops.aten.native_layer_norm_backward, [True, False, False]
        return backward(u.contiguous(), h.contiguous(), self.shape, *statistics, weight, None, outputs)[0]

    def mean(self, u: Tensor) -> Tensor:
        return u.mean([*range(-len(self.shape), 0)], keepdim=True)

    def summed(self, total: Tensor) -> Tensor:
        return total.sum_to_size(self.shape)

    def by_kernels(self, kernels: ModuleType, arguments: Sequence[Tensor | None], wants: Sequence[bool]) -> Gradients:
        if math.prod(self.shape) > kernels.MAX_ROW:
            return self.plainly(*arguments, *wants)
        return kernels.rows(*arguments, len(self.shape), *wants)

    def label(self) -> str:
        return "layer_norm " + "×".join(map(str, self.shape))


@dataclass(frozen=True)
class RMSNorm(LayerNorm):
    """As layer norm, without means."""

    def standardized(self, ctx: Context, h: Tensor, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor, Any]:
        r = self.mean(h.square()).add_(self.eps).rsqrt_()
        y = h * r
        return y if weight is None else y.mul_(weight), (None, r)

    def projected(self, u: Tensor, h: Tensor, statistics: Statistics, weight: Tensor | None = None) -> Tensor:
        r = statistics[1]
        kernels = implementation("norms", h.device.type)
        if kernels and math.prod(self.shape) <= kernels.MAX_ROW:
            return kernels.project_rows(u, h, r, weight, len(self.shape))
        u = u if weight is None else u * weight
        return torch.addcmul(u * r, h, self.mean(h * u) * -(r**3))

    def label(self) -> str:
        return "rms_norm " + "×".join(map(str, self.shape))


@dataclass(frozen=True)
class _ChannelNorm(Standardize):
    """Of h (B, C, ...); weight and bias are (C,)."""

    def along(self, weight: Tensor, h: Tensor) -> Tensor:
        return weight.reshape(-1, *[1] * (h.dim() - 2))

    def summed(self, total: Tensor) -> Tensor:
        return total.sum([0, *range(2, total.dim())])

    def by_kernels(self, kernels: ModuleType, arguments: Sequence[Tensor | None], wants: Sequence[bool]) -> Gradients:
        return kernels.channels(*arguments, *wants)


@dataclass(frozen=True)
class GroupNorm(_ChannelNorm):
    """The entries of C / groups channels of a sample share statistics; None for groups of one channel, instance norm.

    With `momentum`, running statistics (C,) go on by the mean over samples.
    """

    groups: int | None
    momentum: float | None = None

    def standardized(self, ctx: Context, h: Tensor, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor, Any]:
        batch, channels = h.shape[:2]
        groups = self.groups or channels
        if self.momentum is not None and ctx.operands[2] is not None:
            variance, mean = torch.var_mean(h.flatten(2), 2)
            for running, now in zip(ctx.operands[2:], (mean, variance), strict=True):
                running.mul_(1 - self.momentum).add_(now.mean(0), alpha=self.momentum)
        size = h[0, 0].numel() if h.dim() > 2 else 1
        form = _format(h)
        given = laid_out(h, _format_of_group_norm(h))
        y, *statistics = torch.native_group_norm(given, weight, bias, batch, channels, size, groups, self.eps)
        return y.contiguous(memory_format=form), tuple(statistics)

    def projected(self, u: Tensor, h: Tensor, statistics: Statistics, weight: Tensor | None = None) -> Tensor:
        (batch, channels), size = h.shape[:2], h[0, 0].numel() if h.dim() > 2 else 1
        numbers = batch, channels, size, self.groups or channels, [True, False, False]
        form, own = _format(h), _format_of_group_norm(h)
        u, h = laid_out(u, own), laid_out(h, own)
        grad = torch.ops.aten.native_group_norm_backward(u, h, *statistics, weight, *numbers)[0]
        return grad.contiguous(memory_format=form)

    def mean(self, u: Tensor) -> Tensor:
        by_group = u.unflatten(1, (self.groups or u.shape[1], -1))
        return by_group.mean([*range(2, by_group.dim())])

    def spread(self, statistic: Tensor, h: Tensor) -> Tensor:
        by_channel = statistic.repeat_interleave(h.shape[1] // statistic.shape[1], 1)
        return by_channel.reshape(*by_channel.shape, *[1] * (h.dim() - 2))

    def label(self) -> str:
        return f"group_norm {self.groups}" if self.groups else "instance_norm"


@dataclass(frozen=True)
class BatchNorm(_ChannelNorm):
    """The entries of a channel of all samples share statistics; the running ones (C,) go on with `momentum`."""

    momentum: float

    def standardized(self, ctx: Context, h: Tensor, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor, Any]:
        running = [*map(_wide, ctx.operands[2:])]
        y, *statistics = torch.native_batch_norm(
            laid_out(h, _format(h)), weight, bias, *running, True, self.momentum, self.eps
        )
        for kept, now in zip(ctx.operands[2:], running, strict=True):
            if kept is not now:
                kept.copy_(now)
        return y, tuple(statistics)

    def projected(self, u: Tensor, h: Tensor, statistics: Statistics, weight: Tensor | None = None) -> Tensor:
        backward, outputs = torch.ops.aten.native_batch_norm_backward, [True, False, False]
        u, h = laid_out(u, _format(h)), laid_out(h, _format(h))
        return backward(u, h, weight, None, None, *statistics, True, self.eps, outputs)[0]

    def mean(self, u: Tensor) -> Tensor:
        return u.mean([0, *range(2, u.dim())])

    def spread(self, statistic: Tensor, h: Tensor) -> Tensor:
        return self.along(statistic, h)

    def label(self) -> str:
        return "batch_norm"


def _wide(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.to(accumulator(t.dtype))


def _format(h: Tensor) -> torch.memory_format:
    return torch.channels_last if is_channels_last(h) else torch.contiguous_format


def _format_of_group_norm(h: Tensor) -> torch.memory_format:
    """Which takes channels_last on CPUs alone."""
    return _format(h) if h.device.type == "cpu" else torch.contiguous_format


def standardize(trace, op, input, weight, bias, *running):
    """Records the op; a weight or bias that depends on x is multiplied and added after it."""
    depends = [trace.depends_on_x(t) for t in (weight, bias)]
    if not any(depends):
        return trace.emit(op, [input], [weight, bias, *running])
    y = trace.emit(op, [input], [None, None, *running])
    y = y if weight is None else y * op.along(weight, input)
    return y if bias is None else y + op.along(bias, input)


@records(F.layer_norm, torch.layer_norm)
def _layer_norm(trace, input, normalized_shape, weight=None, bias=None, eps=1e-5, cudnn_enable=True):
    shape = tuple(normalized_shape)
    input = trace.autocast(F.layer_norm, input, (1,) * len(shape))
    return standardize(trace, LayerNorm(eps, shape), input, weight, bias)


@records("rms_norm", F.rms_norm)
def _rms_norm(trace, input, normalized_shape, weight=None, eps=None):
    shape = tuple(normalized_shape)
    input = trace.autocast(F.rms_norm, input, (1,) * len(shape))
    eps = torch.finfo(accumulator(input.dtype)).eps if eps is None else eps
    return standardize(trace, RMSNorm(eps, shape), input, weight, None)


@records(F.group_norm)
def _group_norm(trace, input, num_groups, weight=None, bias=None, eps=1e-5):
    return standardize(trace, GroupNorm(eps, num_groups), trace.autocast(torch.group_norm, input, 1), weight, bias)


@records(torch.group_norm)
def _torch_group_norm(trace, input, num_groups, weight=None, bias=None, eps=1e-5, cudnn_enabled=True):
    return F.group_norm(input, num_groups, weight, bias, eps)
