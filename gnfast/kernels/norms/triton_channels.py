"""`channels` of norms in Triton: three launches.

A set is what has statistics of its own for each group of channels: the batch in batch norm, a sample in group and
instance norm. A row has the channels of one place of one sample. The first launch sums over chunks of a set's rows, the
second makes of the sums what `csrc/norms/given.h` derives, the coefficients of each channel, and the third computes the
results, in the opposite order, so that it finds in the cache what was read last. No atomics, so that results repeat.

Sums are in float64, in which products of float32 are exact, so that differences of sums keep all digits. Imported when
it is chosen, as Triton may be missing.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from gnfast.errors import InputError
from gnfast.kernels.layout import is_channels_last
from gnfast.kernels.norms.given import check, entries, like_h

# Of a tile; how many channels of it are beside each other where those are innermost in memory, and where places are.
ENTRIES, CHANNELS, FEW = 1024, 64, 8
# About as many of the first launch fill a GPU; of a set so many chunks at most, which the second adds up at once, in
# tiles of so many sums.
PROGRAMS, CHUNKS, SUMMED = 512, 256, 512
NUM_WARPS = 8
# Of so many entries, places fit into 32 bits.
NARROW = 2**31 - 1
# At 128, two blocks of 256 threads keep memory busy.
REGISTER_BUDGET = 128

# Of t, δ, μ, (h - m) t, (h - m) δ, (h - m) μ and δ t; of what multiplies μ, δ, t, h - m and 1.
SUMS, COEFFS = tl.constexpr(7), tl.constexpr(5)


@triton.jit
def _places(of, row, c, rows, channels, places, LAST: tl.constexpr, WIDE: tl.constexpr):
    """Where the entries (ROWS, CHANNELS) of a set are, counted from the first one of the tensor."""
    if WIDE:
        of, row, c = of.to(tl.int64), row.to(tl.int64), c.to(tl.int64)
    row += of * rows
    if not LAST:
        row, c = row // places * (places * channels) + row % places, c * places
    else:
        row *= channels
    return row[:, None] + c[None, :]


@triton.jit
def _means(mean, of, c, channels, groups, per_group, CENTRED: tl.constexpr):
    """m of each channel, (1, CHANNELS)."""
    if CENTRED:
        value = tl.load(mean + of * groups + c // per_group, mask=c < channels, other=0)[None, :]
    else:
        value = tl.zeros((1, 1), mean.dtype.element_ty)
    return value


@triton.jit
def _norms_channels_sums_kernel(
    h, tangent, cotangent, adjoint, mean, partials, rows, chunk, chunks, channels, places, groups, per_group,
    ADJOINT: tl.constexpr, CENTRED: tl.constexpr, LAST: tl.constexpr, WIDE: tl.constexpr,
    ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The sums of each channel over a chunk of a set's rows; those of μ only where there is one."""
    of, start = tl.program_id(0) // chunks, tl.program_id(0) % chunks * chunk
    end = tl.minimum(start + chunk, rows)
    c = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    m = _means(mean, of, c, channels, groups, per_group, CENTRED).to(tl.float64)
    t = tl.zeros((ROWS, WIDTH), tl.float64)
    d, a, ht, hd, ha, dt = t, t, t, t, t, t
    for begin in range(start, end, ROWS):
        row = begin + tl.arange(0, ROWS)
        inside = (row < end)[:, None] & (c < channels)[None, :]
        place = _places(of, row, c, rows, channels, places, LAST, WIDE)
        deviation = tl.load(h + place, mask=inside, other=0).to(tl.float64) - m
        moved = tl.load(tangent + place, mask=inside, other=0).to(tl.float64)
        delta = tl.load(cotangent + place, mask=inside, other=0).to(tl.float64)
        t += moved
        d += delta
        ht += deviation * moved
        hd += deviation * delta
        dt += delta * moved
        if ADJOINT:
            mu = tl.load(adjoint + place, mask=inside, other=0).to(tl.float64)
            a += mu
            ha += deviation * mu
    place = tl.program_id(0).to(tl.int64) * SUMS * channels + c
    sums = (t, d, a, ht, hd, ha, dt)
    for which in tl.static_range(SUMS):
        if ADJOINT or (which != 2 and which != 5):
            tl.store(partials + place + which * channels, tl.sum(sums[which], axis=0), mask=c < channels)


@triton.jit
def _block(weight, group, begin, chunk, groups, per_group, channels, WEIGHTED: tl.constexpr, P: tl.constexpr):
    """Channels (G, P) of groups, which of them there are, their weights, and where their sums are, (K, G, P)."""
    p = begin + tl.arange(0, P)
    c, inside = (group * per_group)[:, None] + p[None, :], (group < groups)[:, None] & (p < per_group)[None, :]
    w = tl.full(c.shape, 1, tl.float64)
    if WEIGHTED:
        w = tl.load(weight + c, mask=inside, other=0).to(tl.float64)
    return c, inside, w, (chunk * SUMS * channels)[:, None, None] + c[None, :, :]


@triton.jit
def _added(partials, which, place, channels, inside):
    """One of the sums of each channel over all chunks, (G, P)."""
    return tl.sum(tl.load(partials + place + which * channels, mask=inside, other=0), axis=0)


@triton.jit
def _norms_channels_coefficients_kernel(
    partials, rstd, weight, coeffs, products, count, chunks, channels, groups, per_group,
    WEIGHTED: tl.constexpr, ADJOINT: tl.constexpr, CENTRED: tl.constexpr, TOTALS: tl.constexpr,
    K: tl.constexpr, G: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Of G groups of a set, P channels at a time: the coefficients (sets, 5, channels) of the results, and `products`
    (sets, 2, channels), what is added to the gradients of weight and bias."""
    of, group, k = tl.program_id(0).to(tl.int64), tl.program_id(1) * G + tl.arange(0, G), tl.arange(0, K)
    chunk, present = of * chunks + k, (k < chunks)[:, None, None]
    t = tl.zeros((G,), tl.float64)
    d, a, xt, xd, xa, dt = t, t, t, t, t, t
    for begin in range(0, per_group, P):
        _, inside, w, place = _block(weight, group, begin, chunk, groups, per_group, channels, WEIGHTED, P)
        inside = present & inside[None, :, :]
        if CENTRED:
            t += tl.sum(_added(partials, 0, place, channels, inside), axis=1)
            d += tl.sum(w * _added(partials, 1, place, channels, inside), axis=1)
        xt += tl.sum(_added(partials, 3, place, channels, inside), axis=1)
        xd += tl.sum(w * _added(partials, 4, place, channels, inside), axis=1)
        dt += tl.sum(w * _added(partials, 6, place, channels, inside), axis=1)
        if ADJOINT:
            xa += tl.sum(w * _added(partials, 5, place, channels, inside), axis=1)
            if CENTRED:
                a += tl.sum(w * _added(partials, 2, place, channels, inside), axis=1)
    r = tl.load(rstd + of * groups + group, mask=group < groups, other=0).to(tl.float64)
    # Means; with x̂ in place of h - m.
    share = 1.0 / tl.full((G,), count, tl.float64)
    t, d, a, dt = t * share, d * share, a * share, dt * share
    xt, xd, xa = r * xt * share, r * xd * share, r * xa * share
    by_d, by_t = -r * xt, -r * xd
    by_h = -r * r * (dt - t * d - xt * xd) - r * (xa + by_d * xd) - r * by_t * xt
    constant = -r * (a + by_d * d + by_t * t)
    for begin in range(0, per_group, P):
        c, inside, w, place = _block(weight, group, begin, chunk, groups, per_group, channels, WEIGHTED, P)
        found = (r[:, None] * w, (r * by_d)[:, None] * w, (r * by_t)[:, None], (r * by_h)[:, None], constant[:, None])
        for which in tl.static_range(COEFFS):
            entries = tl.broadcast_to(found[which], c.shape).to(coeffs.dtype.element_ty)
            tl.store(coeffs + (of * COEFFS + which) * channels + c, entries, mask=inside)
        if TOTALS:
            summed = present & inside[None, :, :]
            product = _added(partials, 6, place, channels, summed)
            product -= t[:, None] * _added(partials, 1, place, channels, summed)
            product -= (r * xt)[:, None] * _added(partials, 4, place, channels, summed)
            if ADJOINT:
                product += _added(partials, 5, place, channels, summed)
                by_bias = _added(partials, 2, place, channels, summed)
                tl.store(products + (of * 2 + 1) * channels + c, by_bias, mask=inside)
            tl.store(products + of * 2 * channels + c, r[:, None] * product, mask=inside)


@triton.jit
def _factor(factor, which, c, channels):
    """A coefficient of each channel, (1, CHANNELS)."""
    return tl.load(factor + which * channels, mask=c < channels, other=0)[None, :]


@triton.jit
def _total(products, c, sets, channels, ROWS: tl.constexpr):
    """The sum over sets, set after set, for each of channels c."""
    total = tl.zeros((ROWS, c.shape[0]), tl.float64)
    for begin in range(0, sets, ROWS):
        of = begin + tl.arange(0, ROWS)
        inside = (of < sets)[:, None] & (c < channels)[None, :]
        total += tl.load(products + (of.to(tl.int64) * 2 * channels)[:, None] + c[None, :], mask=inside, other=0)
    return tl.sum(total, axis=0)


@triton.jit
def _totals(products, by_weight, by_bias, c, sets, channels, ADJOINT: tl.constexpr, ROWS: tl.constexpr):
    """The gradients of weight and bias, one after the other, which takes fewer registers; by one program alone."""
    if tl.program_id(0) == 0:
        total = _total(products, c, sets, channels, ROWS)
        tl.store(by_weight + c, total.to(by_weight.dtype.element_ty), mask=c < channels)
        if ADJOINT:
            total = _total(products + channels, c, sets, channels, ROWS)
            tl.store(by_bias + c, total.to(by_bias.dtype.element_ty), mask=c < channels)


@triton.jit
def _norms_channels_results_kernel(
    h, tangent, cotangent, adjoint, mean, coeffs, products, by_h, by_weight, by_bias, sets, rows, tiles, channels,
    places, groups, per_group,
    ADJOINT: tl.constexpr, CENTRED: tl.constexpr, TOTALS: tl.constexpr, LAST: tl.constexpr, WIDE: tl.constexpr,
    ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The gradient of h; and in the programs that begin first those of weight and bias."""
    c = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    of, row = tile // tiles, tile % tiles * ROWS + tl.arange(0, ROWS)
    inside = (row < rows)[:, None] & (c < channels)[None, :]
    place = _places(of, row, c, rows, channels, places, LAST, WIDE)
    factor = coeffs + of.to(tl.int64) * COEFFS * channels + c
    deviation = tl.load(h + place, mask=inside, other=0) - _means(mean, of, c, channels, groups, per_group, CENTRED)
    result = tl.load(cotangent + place, mask=inside, other=0) * _factor(factor, 1, c, channels)
    if ADJOINT:
        result += tl.load(adjoint + place, mask=inside, other=0) * _factor(factor, 0, c, channels)
    result += tl.load(tangent + place, mask=inside, other=0) * _factor(factor, 2, c, channels)
    result += deviation * _factor(factor, 3, c, channels) + _factor(factor, 4, c, channels)
    tl.store(by_h + place, result, mask=inside)
    if TOTALS:
        _totals(products, by_weight, by_bias, c, sets, channels, ADJOINT, ROWS)


def channels(
    h: Tensor,
    tangent: Tensor,
    cotangent: Tensor,
    adjoint: Tensor | None,
    mean: Tensor | None,
    rstd: Tensor,
    weight: Tensor | None,
    wants_weight: bool,
    wants_bias: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """`channels`; the gradient of h is in channels_last where h is, else contiguous.

    Raises:
        InputError: an argument has another shape, dtype or device than it is to have.
    """
    check(h, 2, adjoint, wants_bias)
    samples, count = h.shape[:2]
    sets, groups = (samples, rstd.shape[1]) if rstd.dim() == 2 else (1, count)
    if rstd.dim() not in (1, 2) or groups < 1 or count % groups:
        raise InputError(f"rstd: got {tuple(rstd.shape)}, wanted (C,) or (N, groups) for h's {count} channels")
    h = (h if is_channels_last(h) else h.contiguous()).resolve_neg()
    given = [like_h(name, t, h) for name, t in (("tangent", tangent), ("cotangent", cotangent), ("adjoint", adjoint))]
    mean, rstd = (entries(name, t, h, sets * groups) for name, t in (("mean", mean), ("rstd", rstd)))
    weight, by_h = entries("weight", weight, h, count), torch.empty_like(h)
    wants, totals = (wants_weight, wants_bias), h.new_empty((2, count))
    if h.numel():
        _launch([h, *given], mean, rstd, weight, by_h, totals, any(wants))
    else:
        totals.zero_()
    return by_h, *(total if want else None for total, want in zip(totals, wants, strict=True))


def _launch(
    given: list[Tensor | None],
    mean: Tensor | None,
    rstd: Tensor,
    weight: Tensor | None,
    by_h: Tensor,
    totals: Tensor,
    wanted: bool,
) -> None:
    """Fills `by_h`, and `totals`, the gradients of weight and bias, if they are wanted."""
    h, samples, count = given[0], *by_h.shape[:2]
    places = h.numel() // (samples * count)
    sets, groups = (1, count) if rstd.dim() == 1 else rstd.shape
    rows, per_group, last = samples // sets * places, count // groups, is_channels_last(h) or places == 1
    width = min(triton.next_power_of_2(count), max(CHANNELS if last else FEW, ENTRIES // triton.next_power_of_2(rows)))
    tile, across = ENTRIES // width, triton.cdiv(count, width)
    tiles = triton.cdiv(rows, tile)
    chunk = triton.cdiv(tiles, min(CHUNKS, max(1, PROGRAMS // (sets * across)))) * tile
    chunks = triton.cdiv(rows, chunk)
    k = triton.next_power_of_2(chunks)
    # Two chunks at least: of more channels as many would take too many registers.
    p = min(SUMMED // max(k, 2), triton.next_power_of_2(per_group))
    g = min(SUMMED // (max(k, 2) * p), triton.next_power_of_2(groups))
    partials = h.new_empty((sets * chunks, SUMS.value, count), dtype=torch.float64)
    coeffs = h.new_empty((sets, COEFFS.value, count))
    products = partials.new_empty((sets, 2, count)) if wanted else partials
    flags = {"ADJOINT": given[3] is not None, "CENTRED": mean is not None}
    tiled = {"LAST": last, "WIDE": h.numel() > NARROW, "ROWS": tile, "WIDTH": width}
    tiled |= {"num_warps": NUM_WARPS} | flags
    given, mean = [h if t is None else t for t in given], h if mean is None else mean
    shape = count, places, groups, per_group
    with torch.cuda.device_of(h):
        _norms_channels_sums_kernel[sets * chunks, across](*given, mean, partials, rows, chunk, chunks, *shape, **tiled)
        _norms_channels_coefficients_kernel[sets, triton.cdiv(groups, g)](
            partials, rstd, h if weight is None else weight, coeffs, products, rows * per_group, chunks, count, groups,
            per_group, WEIGHTED=weight is not None, TOTALS=wanted, K=k, G=g, P=p, num_warps=NUM_WARPS, **flags,
        )  # fmt: skip
        _norms_channels_results_kernel[sets * tiles, across](
            *given, mean, coeffs, products, by_h, *totals, sets, rows, tiles, *shape, TOTALS=wanted, **tiled
        )
