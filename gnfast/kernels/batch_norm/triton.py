"""Batch norms in Triton: three launches each way.

The first takes sums over chunks of rows (a row has the channels of one place of one sample), the second what the chunks
gave, group after group: no atomics, so that results repeat. The third computes the result, in the opposite order, so
that it finds in the cache what was read last. Imported when it is chosen, as Triton may be missing.
"""

import struct

import torch
import triton
from torch import Tensor

from gnfast.kernels.batch_norm import Running, by_place
from gnfast.kernels.batch_norm import triton_kernel as kernels
from gnfast.kernels.batch_norm.triton_kernel import NUM_WARPS
from gnfast.kernels.jit import acc_type
from gnfast.kernels.layout import accumulator

# Of a tile; at most `CHANNELS` of them beside each other. Of sums as many would take too many registers.
ENTRIES, ENTRIES_OF_SUMS, CHANNELS = 4096, 2048, 64
# About as many of the first launch fill a GPU.
PROGRAMS = 1024
# Of a tile of the second launch: chunks, and channels.
CHUNKS, FEW = 256, 8
FUSES = True


def statistics(
    x: Tensor,
    groups: int,
    eps: float,
    running: Running | None,
    more: Tensor | None,
    factor: tuple[int, int],
) -> tuple[Tensor, Tensor, Tensor]:
    """`batch_norm.statistics`, of dense x if there is more."""
    total = x if more is None else torch.empty_like(x)
    placed, beside, own = by_place(x), by_place(x if more is None else more), by_place(total)
    rows, options = len(x) // groups * placed.shape[2], _tile(ENTRIES if more is None else ENTRIES_OF_SUMS, x, beside)
    chunk, chunks = _chunks(x, groups, rows, options)
    partials = x.new_empty((2, groups * chunks, x.shape[1]), dtype=accumulator(x.dtype))
    mean, rstd = partials.new_empty((2, groups, x.shape[1]))
    averages = (mean, rstd) if running is None else (running.mean, running.var)
    numbers = *_parts(eps), *_parts(0.0 if running is None else running.momentum)
    strides = *placed.stride(), *own.stride(), *beside.stride()
    if more is None:
        beside = own = partials
    with torch.cuda.device_of(x):
        kernels._batch_norm_moments_kernel[groups * chunks, triton.cdiv(x.shape[1], options["WIDTH"])](
            placed, beside, own, partials, rows, chunk, chunks, len(x) // groups, *placed.shape[1:],
            x.shape[3] if x.dim() == 4 else 1, *factor, *strides, MORE=more is not None, **options,
        )  # fmt: skip
        kernels._batch_norm_statistics_kernel[(triton.cdiv(x.shape[1], FEW),)](
            partials, mean, rstd, *averages, groups, rows, chunk, chunks, x.shape[1], *numbers,
            RUNNING=running is not None, CUMULATIVE=running is not None and running.cumulative,
            ACC=options["ACC"], CHUNKS=CHUNKS, FEW=FEW, num_warps=NUM_WARPS,
        )  # fmt: skip
    return total, mean, rstd


def normalise(
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    relu: bool,
    dtype: torch.dtype,
) -> Tensor:
    """`batch_norm.normalise`, of dense x."""
    y = torch.empty_like(x, dtype=dtype)
    placed, groups, options = by_place(x), len(mean), _tile(ENTRIES, x)
    samples, (weight, bias, *strides), flags = len(x) // groups, _affine(weight, bias, mean), _flags(weight, bias, relu)
    tiles = triton.cdiv(samples * placed.shape[2], options["ROWS"])
    with torch.cuda.device_of(x):
        kernels._batch_norm_normalise_kernel[groups * tiles, triton.cdiv(x.shape[1], options["WIDTH"])](
            x, y, mean, rstd, weight, bias, samples * placed.shape[2], tiles, samples, *placed.shape[1:],
            *placed.stride(), *strides, **flags, **options,
        )  # fmt: skip
    return y


def gradients(
    dy: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor | None, bias: Tensor | None, relu: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """`batch_norm.gradients`, of dense x."""
    dx, groups, options, flags = torch.empty_like(x), len(mean), _tile(ENTRIES, x, dy), _flags(weight, bias, relu)
    given, (w, b, *strides) = (weight, bias), _affine(weight, bias, mean)
    placed, from_dy, samples = by_place(x), by_place(dy), len(x) // groups
    channels, places = placed.shape[1:]
    rows, across = samples * places, triton.cdiv(channels, options["WIDTH"])
    by_sample = flags.pop("BY_SAMPLE")
    chunk, chunks = (places, samples) if by_sample else _chunks(x, groups, rows, options)
    partials = mean.new_empty((2, groups * chunks, channels))
    means = mean.new_empty((groups, 2, channels))
    # Those of all samples together; partials have the others.
    sums = [means.new_empty((channels,), dtype=None if t is None else t.dtype) for t in given]
    shape, layout = (samples, channels, places), (*placed.stride(), *from_dy.stride(), *strides)
    tiles = triton.cdiv(rows, options["ROWS"])
    with torch.cuda.device_of(x):
        kernels._batch_norm_sums_kernel[groups * chunks, across](
            from_dy, x, partials, mean, rstd, w, b, rows, chunk, chunks, *shape, *layout, **flags, **options
        )
        kernels._batch_norm_totals_kernel[(triton.cdiv(channels, FEW),)](
            partials, w, means, *sums, groups, rows, chunks, channels, strides[0], WEIGHTED=flags["WEIGHTED"],
            TOTALS=any(t is not None and t.dim() == 1 for t in given), ACC=options["ACC"], CHUNKS=CHUNKS, FEW=FEW,
            num_warps=NUM_WARPS,
        )  # fmt: skip
        kernels._batch_norm_pull_kernel[groups * tiles, across](
            from_dy, x, dx, mean, rstd, w, b, means, rows, tiles, *shape, *layout, BY_SAMPLE=by_sample, **flags,
            **options,
        )  # fmt: skip
    found = zip(given, sums, partials, strict=True)
    return dx, *(None if t is None else total if t.dim() == 1 else each.to(t.dtype) for t, total, each in found)


def _tile(entries: int, x: Tensor, *others: Tensor) -> dict[str, object]:
    """The constants that say how so many entries at a time are worked on."""
    width = min(CHANNELS, triton.next_power_of_2(x.shape[1]))
    reach = (sum((n - 1) * stride for n, stride in zip(t.shape, t.stride(), strict=True)) for t in (x, *others))
    wide, acc = max(reach) >= 2**31, acc_type(x.dtype)
    return {"ROWS": entries // width, "WIDTH": width, "WIDE": wide, "ACC": acc, "num_warps": NUM_WARPS}


def _chunks(x: Tensor, groups: int, rows: int, options: dict[str, object]) -> tuple[int, int]:
    """How many rows a chunk has, and how many chunks a group has, at most `CHUNKS`."""
    tiles, across = triton.cdiv(rows, options["ROWS"]), triton.cdiv(x.shape[1], options["WIDTH"])
    chunk = triton.cdiv(tiles, min(CHUNKS, max(1, PROGRAMS // (groups * across)))) * options["ROWS"]
    return chunk, triton.cdiv(rows, chunk)


def _affine(weight: Tensor | None, bias: Tensor | None, filler: Tensor) -> tuple[Tensor, Tensor, int, int]:
    """Weight and bias as kernels read them, and what they lie apart for two samples."""
    made = [filler if t is None else t.contiguous() for t in (weight, bias)]
    return *made, *(0 if t is None or t.dim() == 1 else t.shape[1] for t in (weight, bias))


def _flags(weight: Tensor | None, bias: Tensor | None, relu: bool) -> dict[str, bool]:
    by_sample = any(t is not None and t.dim() == 2 for t in (weight, bias))
    return {"WEIGHTED": weight is not None, "BIASED": bias is not None, "BY_SAMPLE": by_sample, "RELU": relu}


def _parts(number: float) -> tuple[float, float]:
    """A number as the sum of two in float32, which is what Triton makes of each that it is given."""
    (high,) = struct.unpack("f", struct.pack("f", number))
    return high, number - high
