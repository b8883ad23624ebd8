"""Scaled sums in Triton: two launches for the biases of up to 32 layers.

The first adds up chunks of rows (a row has the channels of one position), the second what the chunks gave: no atomics,
so that results repeat. A table on the device says which layer a program works on (`gnfast.kernels.tables`). Imported
when it is chosen, as Triton may be missing.
"""

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from gnfast.kernels.jit import acc_type, chosen
from gnfast.kernels.layout import accumulator, batch_major, filled
from gnfast.kernels.scaled_sums import plain
from gnfast.kernels.tables import table

ROWS = 32
CHANNELS = 64
# Rows of a chunk: at 128 maps of 32 × 32 with 128 channels there are 512 programs for one layer alone.
CHUNK = 512
NUM_WARPS = 4
REGISTER_BUDGET = {"fp32": 128, "fp64": 168}
TENSORS = 32
"""In one launch."""


@triton.jit(do_not_specialize_on_alignment=("cotangents",))
def _scaled_sums_chunks_kernel(
    cotangents, scale, partials, table, TENSORS: tl.constexpr, ACC: tl.constexpr, CHUNK: tl.constexpr,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Σ s δ over a chunk of rows, for some channels of one layer.

    A row of the table: first program, channels, entries between two of them, rows, rows per sample, where the layer's
    sums begin, chunks, whether δ is ones."""
    program = tl.program_id(0)
    item = tl.load(table + program)
    row = table + tl.num_programs(0) + item * 8
    cotangent = chosen(cotangents, item, TENSORS)
    channels, inner, rows, per_sample = tl.load(row + 1), tl.load(row + 2), tl.load(row + 3), tl.load(row + 4)
    chunks, is_ones = tl.load(row + 6), tl.load(row + 7)
    stored = channels * (1 - is_ones)
    chunk, c = (program - tl.load(row)) % chunks, (program - tl.load(row)) // chunks * CHANNELS + tl.arange(0, CHANNELS)
    total = tl.zeros((ROWS, CHANNELS), ACC)
    for start in range(chunk * CHUNK, tl.minimum(chunk * CHUNK + CHUNK, rows), ROWS):
        r = start + tl.arange(0, ROWS)
        factor = tl.load(scale + r // per_sample, mask=r < rows, other=0).to(ACC)
        place = (r // inner).to(tl.int64) * channels * inner + r % inner
        inside = (r < rows)[:, None] & (c < stored)[None, :]
        delta = tl.load(cotangent + (place[:, None] + (c * inner)[None, :]), mask=inside, other=0).to(ACC)
        total += factor[:, None] * (delta + is_ones)
    partials += tl.load(row + 5) + chunk * channels
    tl.store(partials + c, tl.sum(total, axis=0), mask=c < channels)


@triton.jit(do_not_specialize_on_alignment=("totals",))
def _scaled_sums_totals_kernel(
    partials, totals, table, TENSORS: tl.constexpr, ACC: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr
):  # fmt: skip
    """The sums over chunks, for some channels of one layer; a table as above."""
    program = tl.program_id(0)
    item = tl.load(table + program)
    row = table + tl.num_programs(0) + item * 8
    totals = chosen(totals, item, TENSORS)
    channels, chunks = tl.load(row + 1), tl.load(row + 6)
    c = (program - tl.load(row)) * CHANNELS + tl.arange(0, CHANNELS)
    total = tl.zeros((ROWS, CHANNELS), ACC)
    for start in range(0, chunks, ROWS):
        chunk = start + tl.arange(0, ROWS)
        inside = (chunk < chunks)[:, None] & (c < channels)[None, :]
        place = tl.load(row + 5) + (chunk * channels)[:, None] + c[None, :]
        total += tl.load(partials + place, mask=inside, other=0)
    tl.store(totals + c, tl.sum(total, axis=0), mask=c < channels)


def scaled_sums(cotangents: Sequence[Tensor | None], axes: Sequence[int], scale: Tensor) -> list[Tensor]:
    """`scaled_sums`."""
    results: list[Tensor | None] = [None] * len(cotangents)
    groups: dict[torch.dtype, list[int]] = {}
    # Ones go with any.
    some = next((t.dtype for t in cotangents if t is not None), scale.dtype)
    for index, cotangent in enumerate(cotangents):
        groups.setdefault(some if cotangent is None else cotangent.dtype, []).append(index)
    for group in groups.values():
        for start in range(0, len(group), TENSORS):
            indices = group[start : start + TENSORS]
            given = [cotangents[index] for index in indices], [axes[index] for index in indices], scale
            for index, total in zip(indices, _launch(*given) or plain.scaled_sums(*given), strict=True):
                results[index] = total
    return results


def _launch(cotangents: Sequence[Tensor | None], axes: Sequence[int], scale: Tensor) -> list[Tensor] | None:
    """The totals of cotangents of one dtype; None where a graph is captured and the tables are not there."""
    dense = [None if cotangent is None else batch_major(cotangent) for cotangent in cotangents]
    read = next((cotangent for cotangent in dense if cotangent is not None), scale)
    rows, begin = [], 0
    for stored, axis in zip(dense, axes, strict=True):
        cotangent = scale[:, None] if stored is None else stored
        channels, inner = cotangent.shape[axis], cotangent.stride(axis)
        if channels == 1:
            inner = max(cotangent.numel() // max(len(cotangent), 1), 1)
        count = cotangent.numel() // max(channels, 1)
        chunks = math.ceil(count / CHUNK)
        per_sample = max(count // max(len(cotangent), 1), 1)
        rows.append((channels, inner, count, per_sample, begin, chunks, int(stored is None)))
        begin += channels * chunks
    across = [math.ceil(row[0] / CHANNELS) for row in rows]
    along = [blocks * row[5] for blocks, row in zip(across, rows, strict=True)]
    tables = [table(scale.device, programs, rows) for programs in (along, across)]
    if any(found is None for found in tables):
        return None
    acc = accumulator(torch.promote_types(read.dtype, scale.dtype))
    partials = scale.new_empty((begin,), dtype=acc)
    totals = [scale.new_empty((row[0],), dtype=acc) for row in rows]
    options = {"TENSORS": TENSORS, "ACC": acc_type(acc), "ROWS": ROWS, "CHANNELS": CHANNELS, "num_warps": NUM_WARPS}
    with torch.cuda.device_of(scale):
        if sum(along):
            dense = [read if cotangent is None else cotangent for cotangent in dense]
            given = tuple(filled(dense, TENSORS, read)), scale, partials, tables[0]
            _scaled_sums_chunks_kernel[(sum(along),)](*given, CHUNK=CHUNK, **options)
        given = partials, tuple(filled(totals, TENSORS, totals[0])), tables[1]
        _scaled_sums_totals_kernel[(sum(across),)](*given, **options)
    return totals
