"""Derivatives of layer and RMS norm in Triton: a program reads whole rows, so that each entry is read once.

Statistics of a row are taken of what is in registers, about its means. Imported when it is chosen, as Triton may be
missing.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from gnfast.kernels.jit import acc_type
from gnfast.kernels.norms.given import check, entries, like_h

# The longest row that registers hold.
MAX_ROW = 2048
# Of a tile, if rows are that short; of a thread; and what is launched at most, as gradients of a weight are summed by
# program.
ENTRIES, PER_THREAD, PROGRAMS = 1024, 8, 512
# At 112, two blocks of 256 threads keep memory busy; float64 is there for tests.
REGISTER_BUDGET = {"fp32": 112, "fp64": 192}


@triton.jit
def _about_mean(u, inside, size, CENTRED: tl.constexpr):
    """u - <u>."""
    return tl.where(inside, u - tl.sum(u, axis=1, keep_dims=True) / size, 0.0) if CENTRED else u


@triton.jit
def _norms_second_rows_kernel(
    h, tangent, cotangent, adjoint, mean, rstd, weight, by_h, partials, rows, size, chunk,
    CENTRED: tl.constexpr, ADJOINT: tl.constexpr, WEIGHTED: tl.constexpr, BY_AFFINE: tl.constexpr,
    WIDE: tl.constexpr, ACC: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The gradient of h for a chunk of rows, and what those of weight and bias have from it."""
    e = tl.arange(0, WIDTH)
    w = tl.load(weight + e, mask=e < size, other=0)[None, :].to(ACC) if WEIGHTED else 1.0
    of_weight, of_bias = tl.zeros((WIDTH,), ACC), tl.zeros((WIDTH,), ACC)
    start = tl.program_id(0) * chunk
    end = tl.minimum(start + chunk, rows)
    for begin in range(start, end, ROWS):
        row = begin + tl.arange(0, ROWS)
        inside = (row < end)[:, None] & (e < size)[None, :]
        place = (row.to(tl.int64) if WIDE else row)[:, None] * size + e[None, :]
        r = tl.load(rstd + row, mask=row < end, other=0)[:, None]
        x_hat = tl.load(h + place, mask=inside, other=0)
        if CENTRED:
            x_hat = tl.where(inside, x_hat - tl.load(mean + row, mask=row < end, other=0)[:, None], 0.0)
        x_hat *= r
        t = _about_mean(tl.load(tangent + place, mask=inside, other=0), inside, size, CENTRED)
        by_tangent = tl.sum(x_hat * t, axis=1, keep_dims=True) / size
        moved = r * (t - x_hat * by_tangent)
        delta = tl.load(cotangent + place, mask=inside, other=0)
        mu = tl.load(adjoint + place, mask=inside, other=0) if ADJOINT else tl.zeros_like(delta)
        total = _about_mean((mu - r * by_tangent * delta) * w, inside, size, CENTRED)
        if BY_AFFINE:
            of_weight += tl.sum(delta * moved + mu * x_hat, axis=0)
            of_bias += tl.sum(mu, axis=0)
        delta = _about_mean(delta * w, inside, size, CENTRED)
        along = tl.sum(x_hat * delta, axis=1, keep_dims=True) / size
        both = (
            tl.sum(x_hat * total, axis=1, keep_dims=True) / size + tl.sum(delta * moved, axis=1, keep_dims=True) / size
        )
        tl.store(by_h + place, r * (total - along * moved - both * x_hat), mask=inside)
    if BY_AFFINE:
        place = tl.program_id(0).to(tl.int64) * 2 * size + e
        tl.store(partials + place, of_weight, mask=e < size)
        tl.store(partials + place + size, of_bias, mask=e < size)


@triton.jit
def _norms_project_rows_kernel(
    u, h, rstd, weight, out, rows, size,
    WEIGHTED: tl.constexpr, WIDE: tl.constexpr, ACC: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """r P(u · weight) without means."""
    e, row = tl.arange(0, WIDTH), tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = (row < rows)[:, None] & (e < size)[None, :]
    place = (row.to(tl.int64) if WIDE else row)[:, None] * size + e[None, :]
    r = tl.load(rstd + row, mask=row < rows, other=0)[:, None]
    x_hat, v = r * tl.load(h + place, mask=inside, other=0), tl.load(u + place, mask=inside, other=0)
    if WEIGHTED:
        v *= tl.load(weight + e, mask=e < size, other=0)[None, :]
    v -= x_hat * (tl.sum(x_hat * v, axis=1, keep_dims=True) / size)
    tl.store(out + place, r * v, mask=inside)


def rows(
    h: Tensor,
    tangent: Tensor,
    cotangent: Tensor,
    adjoint: Tensor | None,
    mean: Tensor | None,
    rstd: Tensor,
    weight: Tensor | None,
    dims: int,
    wants_weight: bool,
    wants_bias: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """`rows`, of up to `MAX_ROW` entries.

    Raises:
        InputError: an argument has another shape, dtype or device than it is to have.
    """
    check(h, max(dims, 1), adjoint, wants_bias)
    h, shape = h.contiguous().resolve_neg(), h.shape[h.dim() - dims :]
    size = math.prod(shape)
    count = h.numel() // max(1, size)
    given = [like_h(name, t, h) for name, t in (("tangent", tangent), ("cotangent", cotangent), ("adjoint", adjoint))]
    given += [entries(name, t, h, count) for name, t in (("mean", mean), ("rstd", rstd))]
    given = [h if t is None else t for t in (h, *given, entries("weight", weight, h, size))]
    by_h, options = torch.empty_like(h), _tile(h, count, size)
    tiles = triton.cdiv(count, options["ROWS"])
    chunk = triton.cdiv(tiles, PROGRAMS) * options["ROWS"]
    programs, wanted = triton.cdiv(count, chunk) if count else 0, wants_weight or wants_bias
    partials = h.new_empty((programs if wanted else 0, 2, *shape))
    if programs:
        with torch.cuda.device_of(h):
            _norms_second_rows_kernel[(programs,)](
                *given, by_h, partials, count, size, chunk, CENTRED=mean is not None, ADJOINT=adjoint is not None,
                WEIGHTED=weight is not None, BY_AFFINE=wanted, **options,
            )  # fmt: skip
    by_weight, by_bias = partials.sum(0) if wanted else (None, None)
    return by_h, by_weight if wants_weight else None, by_bias if wants_bias else None


def project_rows(u: Tensor, h: Tensor, rstd: Tensor, weight: Tensor | None, dims: int) -> Tensor:
    """`project_rows`, of up to `MAX_ROW` entries; raises as `rows`."""
    check(h, max(dims, 1), None, False)
    h, size = h.contiguous().resolve_neg(), math.prod(h.shape[h.dim() - dims :])
    count = h.numel() // max(1, size)
    given = like_h("u", u, h), h, entries("rstd", rstd, h, count), entries("weight", weight, h, size)
    given = [h if t is None else t for t in given]
    out, options = torch.empty_like(h), _tile(h, count, size)
    if count:
        with torch.cuda.device_of(h):
            _norms_project_rows_kernel[(triton.cdiv(count, options["ROWS"]),)](
                *given, out, count, size, WEIGHTED=weight is not None, **options
            )
    return out


def _tile(h: Tensor, rows: int, size: int) -> dict[str, object]:
    """The constants that say how many entries at a time are worked on."""
    width = triton.next_power_of_2(max(1, size))
    height = max(1, ENTRIES // width)
    warps = min(16, max(4, width * height // (32 * PER_THREAD)))
    return {"ROWS": height, "WIDTH": width, "WIDE": rows * size >= 2**31, "ACC": acc_type(h.dtype), "num_warps": warps}
