"""The Triton kernel of all convolutions: a matrix product with what precedes and follows it.

A convolution is a matrix product whose left factor is read from the source as it is needed: position (b, i, j) and tap
(t, u) stand for the source's pixel (b, i · step + offset ± t, j · step + offset ± u). A data gradient with stride s
falls into s × s phases, the positions that leave the same remainders, each a convolution with stride 1 by the taps that
reach it.
"""

import triton
import triton.language as tl

from gnfast.kernels.jit import masked, rectified

# All that a thread can have. The large tiles need them, and shared memory holds two blocks of theirs at most.
REGISTER_BUDGET = 255

NO_SIGNS, PACK, MASK = 0, 1, 2
_PACKED = tl.constexpr(PACK)
_MASKED = tl.constexpr(MASK)


@triton.jit
def _dot(left, right, acc, PRECISION: tl.constexpr):
    if PRECISION == "tf32" and left.dtype == tl.float32:
        # The tensor cores cut off the last bits, which makes all products smaller.
        left, right = _round_to_tf32(left), _round_to_tf32(right)
    return tl.dot(left, right, acc, input_precision=PRECISION)


@triton.jit
def _round_to_tf32(x):
    nearest = ((x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
    return tl.where(x == x, nearest, x)


@triton.jit
def _product(
    source, weight, b, i, j, valid, n,
    in_height, in_width, in_channels, out_channels, taps_h, taps_w, offset_h, offset_w,
    weight_offset, weight_n, weight_c, weight_h, weight_w,
    STEP_H: tl.constexpr, STEP_W: tl.constexpr, DIRECTION: tl.constexpr, FLAT: tl.constexpr, CHANNELS: tl.constexpr,
    PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """The sums over taps and channels at positions (b, i, j) and output channels n, (BM, BN)."""
    h = i * STEP_H + offset_h
    w = j * STEP_W + offset_w
    row = ((b * in_height + h) * in_width + w) * in_channels
    column = weight_offset + n * weight_n
    wanted = n < out_channels
    acc = tl.zeros((BM, BN), tl.float32)
    k = tl.arange(0, BK)
    if FLAT:
        # Taps and channels as one axis.
        for start in range(0, taps_h * taps_w * CHANNELS, BK):
            tap, c = (start + k) // CHANNELS, (start + k) % CHANNELS
            t, u = tap // taps_w, tap % taps_w
            there = tap < taps_h * taps_w
            at_h = h[:, None] + DIRECTION * t[None, :]
            at_w = w[:, None] + DIRECTION * u[None, :]
            inside = (at_h >= 0) & (at_h < in_height) & (at_w >= 0) & (at_w < in_width) & there[None, :]
            shift = DIRECTION * (t * in_width + u) * CHANNELS + c
            left = tl.load(source + (row[:, None] + shift[None, :]), mask=inside & valid[:, None], other=0)
            shift = t * weight_h + u * weight_w + c * weight_c
            right = tl.load(weight + (shift[:, None] + column[None, :]), mask=there[:, None] & wanted[None, :], other=0)
            acc = _dot(left, right, acc, PRECISION)
    else:
        # Blocks of channels of one tap, counted along so that nothing is divided.
        t, u, c = 0, 0, 0
        for _ in range(taps_h * taps_w * (in_channels // BK)):
            at_h = h + DIRECTION * t
            at_w = w + DIRECTION * u
            inside = valid & (at_h >= 0) & (at_h < in_height) & (at_w >= 0) & (at_w < in_width)
            shift = DIRECTION * (t * in_width + u) * in_channels + c
            left = tl.load(source + shift + (row[:, None] + k[None, :]), mask=inside[:, None], other=0)
            shift = t * weight_h + u * weight_w + c * weight_c
            place = k[:, None] * weight_c + column[None, :]
            right = tl.load(weight + shift + place, mask=wanted[None, :], other=0)
            acc = _dot(left, right, acc, PRECISION)
            c += BK
            next_tap = c == in_channels
            c = tl.where(next_tap, 0, c)
            u = tl.where(next_tap, u + 1, u)
            next_row = u == taps_w
            u = tl.where(next_row, 0, u)
            t = tl.where(next_row, t + 1, t)
    return acc


@triton.jit
def _positions(block, rows, columns, SQUARES: tl.constexpr, WIDE: tl.constexpr, BM: tl.constexpr):
    """Sample, row and column of the tile's positions, (BM,) each."""
    if WIDE:
        block = block.to(tl.int64)
    if SQUARES:
        # No tile straddles samples.
        tiles = tl.cdiv(rows * columns, BM)
        m = block % tiles * BM + tl.arange(0, BM)
        b = block // tiles + tl.zeros_like(m)
    else:
        m = block * BM + tl.arange(0, BM)
        b = m // (rows * columns)
        m = m % (rows * columns)
    return b, m // columns, m % columns


@triton.jit
def _input_grad(
    source, weight, b, i, j, phase_h, phase_w, valid, n,
    in_height, in_width, in_channels, out_channels, padding_h, padding_w, weight_n, weight_c, weight_h, weight_w,
    KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    FLAT: tl.constexpr, CHANNELS: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """The product for one phase of a data gradient."""
    # Pixel h = s · i + phase gets from output o by tap r where o · s + r − padding = h: r = first + s · t.
    first_h, first_w = (phase_h + padding_h) % STRIDE_H, (phase_w + padding_w) % STRIDE_W
    taps_h = tl.maximum(KERNEL_H - first_h + STRIDE_H - 1, 0) // STRIDE_H
    taps_w = tl.maximum(KERNEL_W - first_w + STRIDE_W - 1, 0) // STRIDE_W
    return _product(
        source, weight, b, i, j, valid, n, in_height, in_width, in_channels, out_channels, taps_h, taps_w,
        (phase_h + padding_h) // STRIDE_H, (phase_w + padding_w) // STRIDE_W,
        first_h * weight_h + first_w * weight_w, weight_n, weight_c, STRIDE_H * weight_h, STRIDE_W * weight_w,
        1, 1, -1, FLAT, CHANNELS, PRECISION, BM, BN, BK,
    )  # fmt: skip


@triton.jit
def _with_biases(
    acc, bias_1, bias_2, scale, b, valid, n, out_channels, BIASES: tl.constexpr, SCALED: tl.constexpr
):  # fmt: skip
    """The sums plus scale · Σ biases."""
    if BIASES > 0:
        bias = tl.load(bias_1 + n, mask=n < out_channels, other=0).to(tl.float32)
        if BIASES > 1:
            bias += tl.load(bias_2 + n, mask=n < out_channels, other=0).to(tl.float32)
        if SCALED:
            acc += tl.load(scale + b, mask=valid, other=0).to(tl.float32)[:, None] * bias[None, :]
        else:
            acc += bias[None, :]
    return acc


@triton.jit
def _entries(
    acc, pixel, valid, block_n, n, out_channels, ALIGNED: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr
):  # fmt: skip
    """The sums, their places and which of them exist; the words of their signs, where ALIGNED, and which exist.

    Where ALIGNED, a word of signs is a row along the last axis."""
    if ALIGNED:
        group = block_n + tl.arange(0, BN // 32) * 32
        word = (pixel[:, None] + group[None, :]) // 32
        word_inside = valid[:, None] & (group < out_channels)[None, :]
        channel = (group[:, None] + tl.arange(0, 32)[None, :])[None, :, :]
        value = tl.reshape(acc, (BM, BN // 32, 32))
        e = pixel[:, None, None] + channel
        inside = valid[:, None, None] & (channel < out_channels)
    else:
        channel = n[None, :]
        value = acc
        e = pixel[:, None] + channel
        inside = valid[:, None] & (channel < out_channels)
        word, word_inside = e, inside
    return value, e, inside, word, word_inside


@triton.jit
def _join(
    value, e, inside, word, word_inside, term, after_1, after_2, total, bits, TERMS: tl.constexpr, AFTER: tl.constexpr,
    KEEP_SUM: tl.constexpr, SIGNS: tl.constexpr, ALIGNED: tl.constexpr, SLOPE: tl.constexpr,
):  # fmt: skip
    """mask · (value + Σ terms) + Σ after, with the signs of that sum, which are kept, or by given ones."""
    if SIGNS == _MASKED:
        if ALIGNED:
            flags = tl.load(bits + word, mask=word_inside, other=0)[:, :, None] >> tl.arange(0, 32)[None, None, :]
        else:
            flags = tl.load(bits + e // 32, mask=inside, other=0) >> (e % 32).to(tl.int32)
        positive = (flags & 1) != 0
    if TERMS > 0:
        value += tl.load(term + e, mask=inside, other=0).to(tl.float32)
    if KEEP_SUM:
        tl.store(total + e, value.to(total.dtype.element_ty), mask=inside)
    if SIGNS == _PACKED:
        positive = value > 0
        flags = positive.to(tl.int32) << tl.arange(0, 32)[None, None, :]
        tl.store(bits + word, tl.sum(flags, axis=2), mask=word_inside)
        value = rectified(value, positive, SLOPE)
    if SIGNS == _MASKED:
        value = masked(value, positive, SLOPE)
    if AFTER > 0:
        value += tl.load(after_1 + e, mask=inside, other=0).to(tl.float32)
    if AFTER > 1:
        value += tl.load(after_2 + e, mask=inside, other=0).to(tl.float32)
    return value


@triton.jit
def conv_kernel(
    source, weight, out, term, bias_1, bias_2, after_1, after_2, scale, total, bits, sums,
    batch, in_height, in_width, in_channels, out_height, out_width, out_channels, padding_h, padding_w,
    weight_n, weight_c, weight_h, weight_w,
    KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    GRADIENT: tl.constexpr, FLAT: tl.constexpr, CHANNELS: tl.constexpr, TERMS: tl.constexpr, BIASES: tl.constexpr,
    SCALED: tl.constexpr, AFTER: tl.constexpr, KEEP_SUM: tl.constexpr, SIGNS: tl.constexpr, ALIGNED: tl.constexpr,
    SLOPE: tl.constexpr, SQUARES: tl.constexpr, CENTRE: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """A tile of total = conv + Σ terms + scale · Σ biases and out = mask · total + Σ after, with the signs of the
    total or by given ones; the data gradient, of `out`'s shape, as convolution with GRADIENT.

    Programs: output channels first, which read the same pixels, then positions; phases of a gradient."""
    program = tl.program_id(0)
    phase = tl.program_id(1)
    phase_h, phase_w = phase // STRIDE_W, phase % STRIDE_W
    tiles_n = tl.cdiv(out_channels, BN)
    block_n = program % tiles_n * BN
    n = block_n + tl.arange(0, BN)
    rows, columns = out_height, out_width
    if GRADIENT:
        rows, columns = tl.cdiv(out_height, STRIDE_H), tl.cdiv(out_width, STRIDE_W)
    b, i, j = _positions(program // tiles_n, rows, columns, SQUARES, WIDE, BM)
    if GRADIENT:
        h, w = i * STRIDE_H + phase_h, j * STRIDE_W + phase_w
        valid = (b < batch) & (h < out_height) & (w < out_width)
        acc = _input_grad(
            source, weight, b, i, j, phase_h, phase_w, valid, n, in_height, in_width, in_channels, out_channels,
            padding_h, padding_w, weight_n, weight_c, weight_h, weight_w,
            KERNEL_H, KERNEL_W, STRIDE_H, STRIDE_W, FLAT, CHANNELS, PRECISION, BM, BN, BK,
        )  # fmt: skip
    else:
        h, w = i, j
        valid = (b < batch) & (i < rows)
        acc = _product(
            source, weight, b, i, j, valid, n, in_height, in_width, in_channels, out_channels, KERNEL_H, KERNEL_W,
            -padding_h, -padding_w, 0, weight_n, weight_c, weight_h, weight_w,
            STRIDE_H, STRIDE_W, 1, FLAT, CHANNELS, PRECISION, BM, BN, BK,
        )  # fmt: skip
    # Before the sums change their layout, or the biases' layout would become another of theirs.
    acc = _with_biases(acc, bias_1, bias_2, scale, b, valid, n, out_channels, BIASES, SCALED)
    pixel = ((b * out_height + h) * out_width + w) * out_channels
    value, e, inside, word, word_inside = _entries(acc, pixel, valid, block_n, n, out_channels, ALIGNED, BM, BN)
    value = _join(
        value, e, inside, word, word_inside, term, after_1, after_2, total, bits,
        TERMS, AFTER, KEEP_SUM, SIGNS, ALIGNED, SLOPE,
    )  # fmt: skip
    tl.store(out + e, value.to(out.dtype.element_ty), mask=inside)
    if SQUARES:
        # In float64, whose range squares of float32 numbers do not leave.
        distance = tl.where(inside, value - CENTRE, 0.0).to(tl.float64)
        share = tl.sum(tl.sum(distance * distance, axis=1), axis=0)
        tl.store(sums + program.to(tl.int64) * tl.num_programs(1) + phase, share)
