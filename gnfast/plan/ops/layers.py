"""Batch and instance norm, with running statistics or those of x, and dropout with one call's mask."""

import torch
import torch.nn.functional as F

from gnfast.plan.ops.norms import BatchNorm, GroupNorm, standardize
from gnfast.plan.records import records


def _per_channel(t, like):
    return t.reshape(-1, *[1] * (like.dim() - 2)) if like.dim() > 2 else t


def _normalized(trace, input, mean, var, weight, bias, eps):
    if trace.operands.known(mean) is not None:
        trace.refuse("running statistics that the same forward updates")
    factor = (var + eps).rsqrt()
    factor = factor if weight is None else factor * weight
    shift = -mean * factor if bias is None else bias - mean * factor
    # In the statistics' precision, as PyTorch computes it.
    wide = trace.cast(input, torch.promote_types(input.dtype, factor.dtype))
    return trace.cast(wide * _per_channel(factor, input) + _per_channel(shift, input), input.dtype)


def _running(trace, *statistics):
    """Those to which the passes write, which must not be made a copy of."""
    if any(t is not None and not (t.is_contiguous() and t.is_leaf) for t in statistics):
        trace.refuse("running statistics that are views")
    return statistics


@records(F.batch_norm)
def _batch_norm(
    trace, input, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5
):
    if training:
        running = _running(trace, running_mean, running_var)
        return standardize(trace, BatchNorm(eps, momentum), input, weight, bias, *running)
    return _normalized(trace, input, running_mean, running_var, weight, bias, eps)


def _without_check(input):
    """Instance norm of groups of any size."""
    return torch.instance_norm(input, None, None, None, None, True, 0.1, 1e-5, False)


@records(F.instance_norm)
def _instance_norm(
    trace, input, running_mean=None, running_var=None, weight=None, bias=None, use_input_stats=True, momentum=0.1,
    eps=1e-5,
):  # fmt: skip
    if use_input_stats:
        input = trace.autocast(_without_check, input)
        running = _running(trace, running_mean, running_var)
        op = GroupNorm(eps, None, None if running_mean is None else momentum)
        return standardize(trace, op, input, weight, bias, *running)
    return _normalized(trace, input, running_mean, running_var, weight, bias, eps)


@records(torch.batch_norm)
def _torch_batch_norm(trace, input, weight, bias, running_mean, running_var, training, momentum, eps, cudnn_enabled):
    return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)


@records(torch.instance_norm)
def _torch_instance_norm(
    trace, input, weight, bias, running_mean, running_var, use_input_stats, momentum, eps, cudnn_enabled
):
    return F.instance_norm(input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)


@records(F.dropout, torch.dropout, F.dropout1d, F.dropout2d, F.dropout3d, torch.feature_dropout, told=True)
def _dropout(function, trace, input, p=0.5, training=True, inplace=False):
    if not training or p == 0:
        return input
    # Drawn as PyTorch would draw it for the input itself, so that a seed gives the same mask.
    ones = torch.ones(tuple(input.shape), dtype=input.dtype, device=input.device)
    y = input * function(ones, p, True)
    return trace.rebind(input, y) if inplace else y


@records(F.alpha_dropout, F.feature_alpha_dropout)
def _alpha_dropout(trace, input, p=0.5, training=False, inplace=False):
    if training:
        trace.refuse("alpha dropout in training mode")
    return input
