"""Operands in plain PyTorch: the test oracle, and what runs where there are no kernels."""

import torch
import torch.nn.functional as F
from torch import Tensor

from gnfast.kernels.layout import accumulator, is_dense, with_strides
from gnfast.kernels.operands import Fold, Form, Spread


def prepare(sources, forms):
    """`prepare`."""
    return [prepared(source, form) for source, form in zip(sources, forms, strict=True)]


def gradients(grads, sources, forms):
    """`gradients`."""
    return [gradient(*given) for given in zip(grads, sources, forms, strict=True)]


def prepared(source: Tensor, form: Form) -> Tensor:
    """One source in its form."""
    result = (source if form.fold is None else folded(source, form.fold)).to(form.dtype)
    return result.contiguous(memory_format=torch.channels_last) if form.channels_last else result


def gradient(grad: Tensor, source: Tensor, form: Form) -> Tensor:
    """The gradient of one source."""
    result = (grad if form.fold is None else unfolded(grad, form.fold)).to(source.dtype)
    return with_strides(result, source.stride()) if form.channels_last and is_dense(source) else result


def folded(weight: Tensor, fold: Fold | Spread) -> Tensor:
    """The fold of a kernel, in float32 or better and its memory format; differentiable any number of times."""
    if isinstance(fold, Spread):
        return _spread(weight, fold)
    wide = weight.to(accumulator(weight.dtype))
    height, width = (m - 1 for m in fold.window)
    if max(fold.window) > 2:
        # avg_pool2d itself pads by half a window at most.
        wide = F.pad(wide, (width, width, height, height))
        height = width = 0
    result = _turned(_windows(wide, fold, (height, width)), fold.transposed)
    return result.contiguous(memory_format=_memory_format(weight))


def unfolded(grad: Tensor, fold: Fold | Spread) -> Tensor:
    """The adjoint of `folded`, in float32 or better."""
    if isinstance(fold, Spread):
        wide = grad.to(accumulator(grad.dtype))
        return wide.sum((2, 3)) / fold.divisor if fold.divisor else wide.flatten(1)
    # A kernel's entry is in the windows of that size after it.
    return _windows(_turned(grad.to(accumulator(grad.dtype)), fold.transposed), fold, (0, 0))


def _spread(matrix: Tensor, spread: Spread) -> Tensor:
    if not spread.divisor:
        return matrix.unflatten(1, spread.shape)
    wide = matrix.to(accumulator(matrix.dtype)) / spread.divisor
    return wide[:, :, None, None].expand(-1, *spread.shape)


def _windows(wide: Tensor, fold: Fold, padding: tuple[int, int]) -> Tensor:
    return F.avg_pool2d(wide, fold.window, 1, padding, divisor_override=None if fold.mean else 1)


def _turned(kernel: Tensor, groups: int) -> Tensor:
    """Flipped, with the channels of its two sides swapped within each group; twice is as it was."""
    return kernel.flip(2, 3).unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1) if groups else kernel


def _memory_format(weight: Tensor) -> torch.memory_format:
    # A contiguous weight may pass for channels_last as well (one channel, or 1×1 kernels), but not the folded one.
    if weight.is_contiguous() or not weight.is_contiguous(memory_format=torch.channels_last):
        return torch.contiguous_format
    return torch.channels_last
