"""Derivatives of norms by the compiled library, and what torch.compile is told of its operators."""

import sys

import torch
from torch import Tensor

from gnfast.kernels.fakes import fake_of
from gnfast.kernels.layout import is_channels_last

_operators = torch.ops.gnfast
rows, channels = _operators.norms_second_rows.default, _operators.norms_second_channels.default
project_rows = _operators.norms_project_rows.default
MAX_ROW = sys.maxsize


def _gradients(h: Tensor, shape: torch.Size, *wanted: bool):
    """As the operators return them, without data."""
    layout = torch.channels_last if is_channels_last(h) else torch.contiguous_format
    by_h = torch.empty_like(h, memory_format=layout)
    return by_h, *(h.new_empty(shape) if want else None for want in wanted)


@fake_of(rows)
def _(h, tangent, cotangent, adjoint, mean, rstd, weight, dims, wants_weight, wants_bias):
    return _gradients(h.contiguous(), h.shape[h.dim() - dims :], wants_weight, wants_bias)


@fake_of(channels)
def _(h, tangent, cotangent, adjoint, mean, rstd, weight, wants_weight, wants_bias):
    return _gradients(h, h.shape[1:2], wants_weight, wants_bias)


@fake_of(project_rows)
def _(u, h, rstd, weight, dims):
    return torch.empty_like(h, memory_format=torch.contiguous_format)
