"""Batch norm in training with what follows it, for calls in eager PyTorch, where there are kernels for that.

    batch norm, then · gain and + offset of each sample, then ReLU      one kernel that writes the result of all

Statistics are taken, and running averages go on, where the batch norm is called. What it gives is put off, until the
last that can join has done so. `gnfast.grouped_batch_norm` around it says how many batches there are.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gnfast.rewriting.deferred import can_merge, claim, put_off_call, real, replace
from gnfast.steps.batch_norm import Normalise
from gnfast.steps.grouped import statistics


@dataclass(frozen=True)
class Norm:
    """x̂ · weight + bias, put off; its parts are x, weight, bias, means and 1/σ."""

    eps: float


def shifted(input: Any, other: Any) -> Tensor | None:
    """The sum, if it is that of a norm and an offset for each sample and channel that can join it."""
    return _joined(input, other, 2)


def _batch_norm(
    input, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5
):  # fmt: skip
    if not training:
        return NotImplemented
    x = real(input)
    found = statistics(x, running_mean, running_var, weight, bias, momentum, eps)
    return NotImplemented if found is None else _put_off(Norm(eps), (x, weight, bias, *found))


def _scaled(input, other, *, out=None):
    product = None if out is not None else _joined(input, other, 1)
    return NotImplemented if product is None else product


def _relu(input, inplace=False):
    if not _is_norm(input):
        return NotImplemented
    if not inplace:
        return Normalise.apply(*claim(input), input.statement.operation.eps, True)
    input.statement.check()
    return replace(input, Normalise.apply(*input.statement.parts, input.statement.operation.eps, True))


def _joined(norm: Any, factor: Any, place: int) -> Tensor | None:
    """The norm with a factor as its part `place`, where it has none there nor behind; in either order of the two."""
    if not _is_norm(norm):
        norm, factor = factor, norm
    if not _is_norm(norm) or type(factor) not in (Tensor, nn.Parameter) or factor.device != norm.device:
        return None
    parts = list(norm.statement.parts)
    channels = *norm.shape[:2], *[1] * (norm.dim() - 2)
    vacant = all(part is None for part in parts[place:3])
    if not vacant or factor.shape != channels or not factor.is_floating_point() or factor.layout is not torch.strided:
        return None
    claim(norm)
    parts[place] = factor.reshape(factor.shape[:2])
    return _put_off(norm.statement.operation, parts)


def _put_off(norm: Norm, parts: Any) -> Tensor:
    return put_off_call(norm, parts, lambda put_off: Normalise.apply(*parts, norm.eps, False, put_off))


def _is_norm(tensor: Any) -> bool:
    return can_merge(tensor) and isinstance(tensor.statement.operation, Norm)


RULES: dict[Callable[..., Any], Callable[..., Any]] = {
    F.batch_norm: _batch_norm,
    **dict.fromkeys((F.relu, torch.relu, Tensor.relu), _relu),
    **dict.fromkeys((torch.relu_, Tensor.relu_), lambda input: _relu(input, inplace=True)),
    **dict.fromkeys((torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__), _scaled),
}
