"""Batch norm in training with what follows it, for calls in eager PyTorch, where there are kernels for that.

    batch norm, then · gain and + offset of each sample, then ReLU      one kernel that writes the result of all
    sum, one term of it perhaps upsampled, then batch norm              the sum is made where its statistics are taken

Statistics are taken, and running averages go on, where the batch norm is called. What it gives is put off, until the
last that can join has done so. `gnfast.grouped_batch_norm` around it says how many batches there are.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gnfast.kernels.batch_norm import fuses
from gnfast.rewriting.deferred import can_merge, claim, put_off_call, real, replace
from gnfast.rewriting.merges import Sum, Upsample
from gnfast.steps.batch_norm import More, Normalise, is_ordinary
from gnfast.steps.grouped import statistics


@dataclass(frozen=True)
class Norm:
    """x̂ · weight + bias, put off; its parts are x, weight, bias, means and 1/σ."""

    eps: float


def shifted(input: Any, other: Any) -> Tensor | None:
    """The sum, if it is that of a norm and an offset for each sample and channel that can join it."""
    return _joined(input, other, 2)


def _batch_norm(input, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5):
    if not training or not fuses(input.device.type):
        return NotImplemented
    terms = _terms(input)
    x, more = (real(input), None) if terms is None else terms
    found = statistics(x, running_mean, running_var, weight, bias, momentum, eps, more)
    if found is None:
        return NotImplemented
    total, mean, rstd = found
    if more is not None:
        replace(input, total)
    return _put_off(Norm(eps), (total, weight, bias, mean, rstd))


def _terms(input: Any) -> tuple[Tensor, More] | None:
    """The parts of a sum that is still to be computed; one may be an upsampling that is."""
    if not can_merge(input) or not isinstance(input.statement.operation, Sum):
        return None
    input.statement.check()
    whole = [can_merge(part) and isinstance(part.statement.operation, Upsample) for part in input.statement.parts]
    (x, _), (term, upsampled) = sorted(zip(input.statement.parts, whole, strict=True), key=itemgetter(1))
    if not upsampled:
        return real(x), More(real(term), (1, 1))
    factor = term.statement.operation.factor
    return real(x), More(*claim(term), factor)


def _dim(input):
    """Of a sum, without computing it, if PyTorch's module for batch norm asks, and calls nothing before F.batch_norm.

    Others may ask to hand the tensor on to code that is not Python, `torch.vmap` for one.
    """
    if not (can_merge(input) and isinstance(input.statement.operation, Sum)):
        return NotImplemented
    frame = sys._getframe(1)
    for _ in range(8):
        if frame is None or frame.f_code.co_name == "_check_input_dim":
            break
        frame = frame.f_back
    asks = frame is not None and type(frame.f_locals.get("self")) in _MODULES
    return input.ndim if asks and fuses(input.device.type) else NotImplemented


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
    if not _is_norm(norm) or not isinstance(factor, Tensor) or factor.device != norm.device:
        return None
    parts = list(norm.statement.parts)
    channels = *norm.shape[:2], *[1] * (norm.dim() - 2)
    vacant = all(part is None for part in parts[place:3])
    if not vacant or factor.shape != channels or not factor.is_floating_point() or not is_ordinary(factor):
        return None
    claim(norm)
    parts[place] = factor.reshape(factor.shape[:2])
    return _put_off(norm.statement.operation, parts)


def _put_off(norm: Norm, parts: Any) -> Tensor:
    return put_off_call(norm, parts, lambda put_off: Normalise.apply(*parts, norm.eps, False, put_off))


def _is_norm(tensor: Any) -> bool:
    return can_merge(tensor) and isinstance(tensor.statement.operation, Norm)


_MODULES = nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d

RULES: dict[Callable[..., Any], Callable[..., Any]] = {
    F.batch_norm: _batch_norm,
    Tensor.dim: _dim,
    **dict.fromkeys((F.relu, torch.relu, Tensor.relu), _relu),
    **dict.fromkeys((torch.relu_, Tensor.relu_), lambda input: _relu(input, inplace=True)),
    **dict.fromkeys((torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__), _scaled),
}
