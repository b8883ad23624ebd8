"""Operands in Triton: all of a call, and all their gradients, in one launch for each pair of dtypes.

Every operand is a sum over windows of its source, mostly of one entry; so is the gradient of a source. Where each
begins and what its windows are lies in a table on the device, which is made at the first call for given shapes and kept
(a CUDA graph reads it at every replay). What the table cannot express, and what would need a new one while a graph is
captured, is left to plain PyTorch.

Imported when it is chosen, as Triton may be missing.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from gnfast.kernels.jit import acc_type, chosen
from gnfast.kernels.layout import Strides, accumulator, filled, is_channels_last
from gnfast.kernels.operands import Fold, Form, Spread, plain
from gnfast.kernels.tables import table

Shape = tuple[int, ...]

# Entries of a program, and of them so many at once: with more, ptxas moves registers to memory. What is only converted
# needs fewer registers.
SPAN = 2048
BLOCK = 256
COPIED = 1024
NUM_WARPS = 4
REGISTER_BUDGET = {"fp32": 96, "fp64": 128}
TENSORS = 32
"""Of each kind, in one launch."""
# Entries of a tensor from which its addresses take 64 bits, which the table does not have.
WIDE_FROM = 2**31 - SPAN


class _Job(NamedTuple):
    """A result to be computed."""

    source: Tensor
    shape: Shape
    dtype: torch.dtype
    last: bool
    windows: tuple[int, ...] | None

    def result(self) -> Tensor:
        """Memory for it."""
        layout = torch.channels_last if self.last else torch.contiguous_format
        return torch.empty(self.shape, dtype=self.dtype, device=self.source.device, memory_format=layout)


@triton.jit(do_not_specialize_on_alignment=("sources", "results"))
def _operands_kernel(
    sources, results, table, UP: tl.constexpr, TENSORS: tl.constexpr, FIELDS: tl.constexpr, ACC: tl.constexpr,
    SPAN: tl.constexpr, BLOCK: tl.constexpr, COPIED: tl.constexpr,
):  # fmt: skip
    """A span of one result: per entry the sum over a window of its source, up from the entry's place or down.

    A row of the table: first program, entries, extents of the result but for the outermost axis, strides of the source
    along the result's four axes, where it begins, which of these axes is the first along which windows reach, and for
    the two: taps, extents of the source, its strides; a divisor. What the windows of a source go down to may be outside
    of it."""
    program = tl.program_id(0)
    item = tl.load(table + program)
    row = table + tl.num_programs(0) + item * FIELDS
    source = chosen(sources, item, TENSORS)
    results = chosen(results, item, TENSORS)
    begin, numel = (program - tl.load(row)) * SPAN, tl.load(row + 1)
    extent_1, extent_2, extent_3 = tl.load(row + 2), tl.load(row + 3), tl.load(row + 4)
    stride_0, stride_1, stride_2, stride_3 = tl.load(row + 5), tl.load(row + 6), tl.load(row + 7), tl.load(row + 8)
    source += tl.load(row + 9)
    first = tl.load(row + 10) == 1
    taps_h, taps_w, limit_h, limit_w = tl.load(row + 11), tl.load(row + 12), tl.load(row + 13), tl.load(row + 14)
    step_h, step_w = tl.load(row + 15), tl.load(row + 16)
    divisor = tl.load(row + 17)
    end = tl.minimum(begin + SPAN, numel)
    if (extent_3 == numel) & (stride_3 * taps_h * taps_w * divisor == 1):
        # Mostly: entries that follow each other on both sides.
        for start in range(begin, end, COPIED):
            e = start + tl.arange(0, COPIED)
            entry = tl.load(source + e, mask=e < numel, other=0).to(ACC)
            tl.store(results + e, entry.to(results.dtype.element_ty), mask=e < numel)
        end = begin
    for start in range(begin, end, BLOCK):
        e = start + tl.arange(0, BLOCK)
        inside = e < numel
        at_3, rest = e % extent_3, e // extent_3
        at_2, rest = rest % extent_2, rest // extent_2
        at_1, at_0 = rest % extent_1, rest // extent_1
        place = at_0 * stride_0 + at_1 * stride_1 + at_2 * stride_2 + at_3 * stride_3
        h, w = tl.where(first, at_1, at_2), tl.where(first, at_2, at_3)
        total = tl.zeros((BLOCK,), ACC)
        for a in range(taps_h):
            for b in range(taps_w):
                if UP:
                    valid = inside
                    shift = a * step_h + b * step_w
                else:
                    valid = inside & (h >= a) & (h < limit_h + a) & (w >= b) & (w < limit_w + b)
                    shift = -(a * step_h + b * step_w)
                total += tl.load(source + place + shift, mask=valid, other=0).to(ACC)
        tl.store(results + e, (total / divisor.to(ACC)).to(results.dtype.element_ty), mask=inside)


def prepare(sources: Sequence[Tensor], forms: Sequence[Form]) -> list[Tensor]:
    """`prepare`."""
    jobs = []
    for source, form in zip(sources, forms, strict=True):
        shape, last = tuple(source.shape), form.channels_last or is_channels_last(source)
        windows = _forward_windows(shape, source.stride(), form.fold, last)
        if form.fold is None and source.dtype == form.dtype:
            in_order = not form.channels_last or source.is_contiguous(memory_format=torch.channels_last)
            windows = None if in_order else windows
        jobs.append(_Job(source, _folded_shape(shape, form.fold), form.dtype, last, windows))
    results = _run(jobs, up=False)
    # Of what has its form already, PyTorch makes no copy.
    return [plain.prepared(*given) if r is None else r for r, *given in zip(results, sources, forms, strict=True)]


def gradients(grads: Sequence[Tensor], sources: Sequence[Tensor], forms: Sequence[Form]) -> list[Tensor]:
    """`gradients`."""
    jobs = []
    for grad, source, form in zip(grads, sources, forms, strict=True):
        shape, last = tuple(source.shape), is_channels_last(source)
        windows = _backward_windows(shape, grad.stride(), form.fold, last)
        jobs.append(_Job(grad, shape, source.dtype, last, windows))
    results = _run(jobs, up=True)
    return [plain.gradient(*g) if r is None else r for r, *g in zip(results, grads, sources, forms, strict=True)]


def _run(jobs: Sequence[_Job], up: bool) -> list[Tensor | None]:
    """The results; None where plain PyTorch is to compute them."""
    results: list[Tensor | None] = [None] * len(jobs)
    groups: dict[tuple[torch.dtype, torch.dtype], list[int]] = {}
    for index, job in enumerate(jobs):
        if job.windows is not None:
            groups.setdefault((job.source.dtype, job.dtype), []).append(index)
    for group in groups.values():
        for start in range(0, len(group), TENSORS):
            indices = group[start : start + TENSORS]
            launched = _launch([jobs[index] for index in indices], up)
            for index, result in zip(indices, launched, strict=True):
                results[index] = result
    return results


def _launch(jobs: Sequence[_Job], up: bool) -> Sequence[Tensor | None]:
    first = jobs[0]
    device, acc = first.source.device, accumulator(torch.promote_types(first.source.dtype, first.dtype))
    programs = [math.ceil(job.windows[0] / SPAN) for job in jobs]
    found = table(device, programs, [job.windows for job in jobs])
    if found is None:
        return [None] * len(jobs)
    results = [job.result() for job in jobs]
    with torch.cuda.device_of(first.source):
        _operands_kernel[(sum(programs),)](
            tuple(filled([job.source for job in jobs], TENSORS, first.source)),
            tuple(filled(results, TENSORS, results[0])), found, UP=up, TENSORS=TENSORS,
            FIELDS=1 + len(first.windows), ACC=acc_type(acc), SPAN=SPAN, BLOCK=BLOCK, COPIED=COPIED,
            num_warps=NUM_WARPS,
        )  # fmt: skip
    return results


def _folded_shape(shape: Shape, fold: Fold | Spread | None) -> Shape:
    """Of what `prepare` makes of a source with that shape."""
    if fold is None:
        return shape
    if isinstance(fold, Spread):
        return shape[0], *fold.shape
    kernel = (k + m - 1 for k, m in zip(shape[2:], fold.window, strict=True))
    return *(shape[1::-1] if fold.transposed else shape[:2]), *kernel


@functools.lru_cache(maxsize=4096)
def _forward_windows(shape: Shape, strides: Strides, fold: Fold | Spread | None, last: bool) -> tuple[int, ...] | None:
    """Of what `prepare` makes of a source with that shape and those strides."""
    result, offset = _folded_shape(shape, fold), 0
    if isinstance(fold, Spread):
        _, height, width = fold.shape
        own = strides[1] * (not fold.divisor)
        along = strides[1] if fold.divisor else height * width * own, width * own, own
        return _windows(result, (strides[0], *along), last, divisor=fold.divisor or 1)
    if fold is None:
        return _windows(result, strides, last)
    if fold.transposed:
        strides, offset = _turned(shape, strides)
    steps = strides[2:]
    return _windows(result, strides, last, offset, fold.window, shape[2:], steps, _divisor(fold))


@functools.lru_cache(maxsize=4096)
def _backward_windows(shape: Shape, strides: Strides, fold: Fold | Spread | None, last: bool) -> tuple[int, ...] | None:
    """Of the gradient of a source with that shape, from one with those strides."""
    offset = 0
    if isinstance(fold, Spread):
        if not fold.divisor:
            return _windows(_folded_shape(shape, fold), strides, last)
        return _windows(shape, strides[:2], last, 0, fold.shape[1:], (1, 1), strides[2:], fold.divisor)
    if fold is None:
        return _windows(shape, strides, last)
    folded = _folded_shape(shape, fold)
    if fold.transposed:
        strides, offset = _turned(folded, strides)
    return _windows(shape, strides, last, offset, fold.window, folded[2:], strides[2:], _divisor(fold))


def _divisor(fold: Fold) -> int:
    # Channels of groups are not swapped as a whole, which strides cannot express.
    return 0 if fold.transposed > 1 else math.prod(fold.window) if fold.mean else 1


def _turned(shape: Shape, strides: Strides) -> tuple[Strides, int]:
    """The strides of a kernel that is flipped, with its first two axes swapped, and where it then begins."""
    offset = sum((extent - 1) * stride for extent, stride in zip(shape[2:], strides[2:], strict=True))
    return (strides[1], strides[0], -strides[2], -strides[3]), offset


def _windows(
    shape: Shape,
    strides: Strides,
    last: bool,
    offset: int = 0,
    taps: Shape = (1, 1),
    limits: Shape | None = None,
    steps: Strides = (0, 0),
    divisor: int = 1,
) -> tuple[int, ...] | None:
    """What the kernel's table says of a result after its first program; None for what it cannot express.

    Args:
        shape: of the result, which is channels_last or contiguous.
        strides: of the source, along the result's axes.
        offset: where the source begins.
        taps, limits, steps: of windows: entries, extents of the source, its strides along the axes of pixels.
    """
    numel = math.prod(shape)
    axes = [(shape[axis], strides[axis]) for axis in ((0, 2, 3, 1) if last else range(len(shape)))]
    if limits is None and _is_dense_in_order(axes):
        axes = [(numel, 1)]
    reach = offset + sum(extent * abs(stride) for extent, stride in axes)
    # A number by itself may lie on another device.
    if not shape or len(axes) > 4 or not divisor or not numel > 0 or max(numel, reach) >= WIDE_FROM:
        return None
    extents, strides = zip(*[(1, 0)] * (4 - len(axes)), *axes, strict=True)
    windows = *taps, *(limits or (numel, numel)), *steps
    return numel, *extents[1:], *strides, offset, 1 if last else 2, *windows, divisor


def _is_dense_in_order(axes: Sequence[tuple[int, int]]) -> bool:
    """Whether entries follow each other, given extents and strides from the outermost axis."""
    dense = 1
    for extent, stride in reversed(axes):
        if extent != 1 and stride != dense:
            return False
        dense *= extent
    return True
