"""Draws in Triton, one kernel each. Imported when it is chosen, as Triton may be missing."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from gnfast.kernels.draws import Purpose, Rows, sides

BLOCK = 256
PIXELS = 1024
"""Of an image, at a time; in large images a program takes several of these, as each finds the image's index anew."""
NUM_WARPS = 4
REGISTER_BUDGET = {"fp32": 48}

# Numbers that are other ones in other runs, and would each be compiled anew where they are 1 or divisible by 16.
NUMBERS = [
    "seed", "purpose", "total", "per_step", "size", "first", "count", "dim", "quads", "classes", "images", "a", "b",
]  # fmt: skip
_ORDER = tl.constexpr(int(Purpose.ORDER))
_MIRROR = tl.constexpr(int(Purpose.MIRROR))


@triton.jit
def _words(seed, step, purpose, sample, word):
    """Four random words for each sample, uint32."""
    upper = (step >> 32).to(tl.uint32) + (purpose << 24).to(tl.uint32)
    return tl.philox(seed, sample.to(tl.uint32), word.to(tl.uint32), step.to(tl.uint32), upper)


@triton.jit
def _number(row, size, first, count):
    """The number of a row's sample in the step."""
    return row // count * size + first + row % count


@triton.jit
def _normals(first, second):
    """Two numbers of two words, by Box and Muller's transform."""
    radius = tl.sqrt_rn(-2 * tl.log(first.to(tl.float32) * 2.0**-32 + 2.0**-33))
    angle = second.to(tl.float32) * 2.0**-32 * 6.283185307179586
    return radius * tl.cos(angle), radius * tl.sin(angle)


@triton.jit
def _mixed(h):
    """MurmurHash3's finaliser."""
    h = tl.mul(h ^ (h >> 16), 0x85EBCA6B, sanitize_overflow=False)
    h = tl.mul(h ^ (h >> 13), 0xC2B2AE35, sanitize_overflow=False)
    return h ^ (h >> 16)


@triton.jit
def _moved(x, by, key, limit):
    """x + f(by) modulo `limit`, of x below it."""
    x += tl.umulhi(_mixed(by ^ key), limit)
    return tl.where(x >= limit, x - limit, x)


@triton.jit
def _four_rounds(left, right, keys, a, b):
    left = _moved(left, right, keys[0], a)
    right = _moved(right, left, keys[1], b)
    left = _moved(left, right, keys[2], a)
    return left, _moved(right, left, keys[3], b)


@triton.jit
def _network(x, first, second, third, a, b):
    """A permutation of 0..ab-1, by three tuples of four keys."""
    left, right = _four_rounds(x // b, x % b, first, a, b)
    left, right = _four_rounds(left, right, second, a, b)
    left, right = _four_rounds(left, right, third, a, b)
    return left * b + right


@triton.jit
def _permuted(seed, epoch, place, images, a, b):
    """Where a place leads in its epoch's permutation of 0..images-1."""
    order, zero = tl.full((), _ORDER, tl.int32), epoch.to(tl.uint32) * 0
    first, second = _words(seed, epoch, order, zero, zero), _words(seed, epoch, order, zero + 1, zero)
    third = _words(seed, epoch, order, zero + 2, zero)
    a, b = a.to(tl.uint32), b.to(tl.uint32)
    index = _network(place.to(tl.uint32), first, second, third, a, b)
    while index >= images.to(tl.uint32):
        index = _network(index, first, second, third, a, b)
    return index


@triton.jit(do_not_specialize=NUMBERS)
def _draws_latents_kernel(
    z, y, step, seed, purpose, total, size, first, count, dim, quads, classes,
    LABELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Four columns of a row from each four words; the words after a row's last are its label's."""
    e = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row, quad = e // (quads + LABELS), e % (quads + LABELS)
    inside = row < total
    w_0, w_1, w_2, w_3 = _words(seed, tl.load(step), purpose, _number(row, size, first, count), quad)
    n_0, n_1 = _normals(w_0, w_1)
    n_2, n_3 = _normals(w_2, w_3)
    numbers = (n_0, n_1, n_2, n_3)
    start = z + row.to(tl.int64) * dim + quad * 4
    for k in tl.static_range(4):
        tl.store(start + k, numbers[k].to(z.dtype.element_ty), mask=inside & (quad * 4 + k < dim))
    if LABELS:
        tl.store(y + row, tl.umulhi(w_0, classes.to(tl.uint32)).to(tl.int64), mask=inside & (quad == quads))


@triton.jit(do_not_specialize=NUMBERS)
def _draws_uniform_kernel(
    out, step, seed, purpose, total, size, first, count, COLUMNS: tl.constexpr, BLOCK: tl.constexpr
):
    """A column from each of the first words of a row."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    words = _words(seed, tl.load(step), purpose, _number(row, size, first, count), row * 0)
    for k in tl.static_range(COLUMNS):
        tl.store(out + k * total + row, (words[k] >> 8).to(tl.float32) * 2.0**-24, mask=row < total)


@triton.jit(do_not_specialize=NUMBERS)
def _draws_real_kernel(
    source, labels, real, y, step, seed, per_step, size, first, count, images, a, b,
    FLIP: tl.constexpr, LABELS: tl.constexpr, CHANNELS: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, PIXELS: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """A part of SPAN pixels of one image: found, mirrored, scaled, and written in the result's order."""
    row, part = tl.program_id(0), tl.program_id(1)
    number = _number(row, size, first, count)
    now = tl.load(step)
    place = now * per_step + number
    index = _permuted(seed, place // images, place % images, images, a, b).to(tl.int64)
    if LABELS and part == 0:
        tl.store(y + row, tl.load(labels + index))
    mirrored = False
    if FLIP:
        mirrored = _words(seed, now, tl.full((), _MIRROR, tl.int32), number, number * 0)[0] < 0x80000000
    SIZE: tl.constexpr = CHANNELS * HEIGHT * WIDTH
    for block in range(0, SPAN, PIXELS):
        e = part * SPAN + block + tl.arange(0, PIXELS)
        inside = e < SIZE
        if CHANNELS_LAST:
            channel, place_in_row, start = e % CHANNELS, e // CHANNELS % WIDTH, e // (CHANNELS * WIDTH) * WIDTH
            start += channel * (HEIGHT * WIDTH)
        else:
            place_in_row = e % WIDTH
            start = e - place_in_row
        origin = start + tl.where(mirrored, WIDTH - 1 - place_in_row, place_in_row)
        pixel = tl.load(source + index * SIZE + origin, mask=inside, other=0).to(tl.float32)
        scaled = tl.div_rn(pixel, 127.5) - 1
        tl.store(real + row.to(tl.int64) * SIZE + e, scaled.to(real.dtype.element_ty), mask=inside)


def latents(
    seed: int, step: Tensor, purpose: Purpose, rows: Rows, dim: int, classes: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    """`latents`."""
    z = torch.empty((rows.total, dim), dtype=dtype, device=step.device)
    y = torch.empty(rows.total, dtype=torch.int64, device=step.device) if classes else None
    quads = triton.cdiv(dim, 4)
    with torch.cuda.device_of(z):
        _draws_latents_kernel[(triton.cdiv(rows.total * (quads + bool(classes)), BLOCK),)](
            z, z if y is None else y, step, seed, int(purpose), rows.total, *rows[1:], dim, quads, classes,
            LABELS=bool(classes), BLOCK=BLOCK, num_warps=NUM_WARPS,
        )  # fmt: skip
    return z, y


def uniform(seed: int, step: Tensor, purpose: Purpose, rows: Rows, columns: int) -> Tensor:
    """`uniform`."""
    out = torch.empty((columns, rows.total), device=step.device)
    with torch.cuda.device_of(out):
        _draws_uniform_kernel[(triton.cdiv(rows.total, BLOCK),)](
            out, step, seed, int(purpose), rows.total, *rows[1:], COLUMNS=columns, BLOCK=BLOCK, num_warps=NUM_WARPS
        )
    return out


def real_batch(
    images: Tensor,
    labels: Tensor | None,
    seed: int,
    step: Tensor,
    rows: Rows,
    flip: bool,
    dtype: torch.dtype,
    memory_format: torch.memory_format,
) -> tuple[Tensor, Tensor | None]:
    """`real_batch`."""
    size = images[0].numel()
    real = torch.empty((rows.total, *images.shape[1:]), dtype=dtype, device=step.device, memory_format=memory_format)
    y = None if labels is None else labels.new_empty(rows.total)
    span = PIXELS if size <= 16 * PIXELS else 16 * PIXELS
    with torch.cuda.device_of(real):
        _draws_real_kernel[(rows.total, triton.cdiv(size, span))](
            images, images if labels is None else labels, real, real if y is None else y, step, seed,
            rows.batches * rows.size, *rows[1:], len(images), *sides(len(images)), FLIP=flip, LABELS=y is not None,
            **_shape(images, memory_format), SPAN=span, num_warps=NUM_WARPS,
        )  # fmt: skip
    return real, y


def _shape(images: Tensor, memory_format: torch.memory_format) -> dict[str, Any]:
    """What is compiled in of the images."""
    sizes = dict(zip(("CHANNELS", "HEIGHT", "WIDTH"), images.shape[1:], strict=True))
    return {**sizes, "CHANNELS_LAST": memory_format == torch.channels_last, "PIXELS": PIXELS}
