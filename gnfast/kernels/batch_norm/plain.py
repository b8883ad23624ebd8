"""Batch norms in plain PyTorch: the test oracle, and what runs where there are no kernels."""

import torch

from gnfast.kernels import batch_norm
from gnfast.kernels.layout import accumulator

FUSES = False
"""Whether this is fewer kernels than PyTorch's operations. Where it is not, those run."""


def statistics(x, groups, eps, running, more, factor):
    """`batch_norm.statistics`."""
    if more is not None:
        for axis, repeats in zip((2, 3), factor, strict=True):
            more = more if repeats == 1 else more.repeat_interleave(repeats, axis)
        x = torch.empty_like(x).copy_(x + more)
    grouped = batch_norm.by_place(x).to(accumulator(x.dtype)).unflatten(0, (groups, -1))
    var, mean = torch.var_mean(grouped, (1, 3), correction=0)
    if running is not None:
        count = grouped.shape[1] * grouped.shape[3]
        for group in range(groups):
            momentum = running.momentum / (1 + group * running.momentum * running.cumulative)
            running.mean.lerp_(mean[group].to(running.mean.dtype), momentum)
            running.var.lerp_((var[group] * (count / (count - 1))).to(running.var.dtype), momentum)
    return x, mean, (var + eps).rsqrt()


def normalise(x, mean, rstd, weight, bias, relu, dtype):
    """`batch_norm.normalise`, of dense x."""
    y = _y(_unit(x, mean, rstd), x, weight, bias)
    return (y.relu() if relu else y).to(dtype)


def gradients(dy, x, mean, rstd, weight, bias, relu):
    """`batch_norm.gradients`, of dense x."""
    unit, g = _unit(x, mean, rstd), dy.to(mean.dtype)
    if relu:
        # Where y is NaN it passes, as in PyTorch.
        g = torch.where(_y(unit, x, weight, bias) <= 0, 0, g)
    weighted = g if weight is None else g * _beside(weight, x).to(g.dtype)
    means = [_spread(batch_norm.by_place(t).unflatten(0, (len(mean), -1)).mean((1, 3)), x) for t in
             (weighted, weighted * unit)]  # fmt: skip
    dx = (_spread(rstd, x) * (weighted - means[0] - unit * means[1])).to(x.dtype)
    sums = [None if t is None else _sum_like(v, t) for v, t in ((g * unit, weight), (g, bias))]
    return torch.empty_like(x).copy_(dx), *sums


def _unit(x, mean, rstd):
    return (x.to(mean.dtype) - _spread(mean, x)) * _spread(rstd, x)


def _y(unit, x, weight, bias):
    y = unit if weight is None else unit * _beside(weight, x).to(unit.dtype)
    return y if bias is None else y + _beside(bias, x).to(unit.dtype)


def _spread(t, x):
    """(groups, C) for each sample, to be broadcast over places."""
    return _beside(t.repeat_interleave(len(x) // len(t), 0), x)


def _beside(t, x):
    return t.reshape(*t.shape, *[1] * (x.dim() - 2))


def _sum_like(value, t):
    by_sample = batch_norm.by_place(value).sum(2)
    return (by_sample if t.dim() == 2 else by_sample.sum(0)).to(t.dtype)
