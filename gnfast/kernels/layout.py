"""Where the entries of tensors lie in memory, and what sums of them are made in."""

from collections.abc import Sequence

import torch
from torch import Tensor

Strides = tuple[int, ...]


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums: float64 for float64, float32 for everything narrower."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def is_dense(t: Tensor) -> bool:
    """Whether the entries fill their memory, in any order of dimensions, without gaps and overlaps."""
    # `preserve_format` keeps the strides of exactly these tensors.
    return torch.empty_like(t, device="meta").stride() == t.stride()


def is_channels_last(t: Tensor) -> bool:
    """Whether a tensor is a (B, C, H, W) one stored with its channels innermost, and not both ways at once."""
    return t.dim() == 4 and t.is_contiguous(memory_format=torch.channels_last) and not t.is_contiguous()


def laid_out(t: Tensor, form: torch.memory_format) -> Tensor:
    """The tensor in this format to the last stride, those of axes with one entry included.

    PyTorch's kernels (2.13, CPU) give wrong gradients where these are others: weights of grouped convolutions in
    float64, batch norm.
    """
    t = t.contiguous(memory_format=form)
    if 1 not in t.shape:
        return t
    strides = torch.empty(t.shape, device="meta", memory_format=form).stride()
    return t if t.stride() == strides else t.as_strided(t.shape, strides)


def batch_major(t: Tensor) -> Tensor:
    """The tensor without gaps and with its samples one after the other in memory; itself where it is so already."""
    per_sample = t.numel() // max(t.shape[0], 1)
    return t if is_dense(t) and (t.shape[0] == 1 or t.stride(0) == per_sample) else t.contiguous()


def with_strides(t: Tensor, strides: Strides) -> Tensor:
    """The tensor with those strides; itself where it has them on all axes with more than one entry."""
    if all(own == other or size == 1 for own, other, size in zip(t.stride(), strides, t.shape, strict=True)):
        return t
    return torch.empty_strided(t.shape, strides, dtype=t.dtype, device=t.device).copy_(t)


def channels_last_like(t: Tensor, shape: Sequence[int]) -> Tensor:
    """Fresh memory in channels_last, of the tensor's dtype and on its device."""
    return torch.empty(shape, dtype=t.dtype, device=t.device, memory_format=torch.channels_last)


def filled(tensors: Sequence[Tensor], count: int, filler: Tensor) -> list[Tensor]:
    """Pointers for `count` arguments of a kernel, which reads as many as there are tensors."""
    return [*tensors, *[filler] * (count - len(tensors))]
