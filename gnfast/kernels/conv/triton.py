"""Convolutions of 4-D tensors in channels_last, with what precedes and follows them in the same kernel, in Triton.

    y  = W * x + b                                                                              (conv2d)
    gx = the transposed convolution of gy by W, and ‖gx − centre‖² per sample                   (conv2d_input_grad*)
    s  = W * x + Σ terms + Σ biases,  y = s where s > 0, else slope · s                         (conv_join_forward)
    ṡ  = W * ẋ + Σ terms + scale · Σ biases,  ẏ = mask · ṡ                                      (conv_join_pushforward)
    gs = mask · (gx + Σ before) + Σ after                                                       (conv_input_grad_join)

A convolution is a matrix product whose left factor is read from the source as it is needed: position (b, i, j) and tap
(t, u) stand for the source's pixel (b, i · step + offset ± t, j · step + offset ± u). A data gradient with stride s
falls into s × s phases, the positions that leave the same remainders, each a convolution with stride 1 by the taps that
reach it. Sums are float32, joins those of `gnfast.kernels.join` on sums that were not rounded in between.

Every function takes the name of one of `CONFIGURATIONS`, among which `gnfast.kernels.conv` chooses. Tensors are as
`supports` says, channels_last, and of one dtype, weights with any strides; biases have any floating-point dtype.
Imported when it is chosen, as Triton may be missing. None of these functions is differentiable itself.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from gnfast.kernels.winograd import Arguments

# name: positions, output channels and reduction of a tile in 16-bit numbers, warps, stages; the first is the default.
CONFIGURATIONS = {
    "64x64x64": (64, 64, 64, 4, 4),
    "32x64x64": (32, 64, 64, 4, 4),
    "64x128x64": (64, 128, 64, 4, 4),
    "128x64x64": (128, 64, 64, 4, 4),
    "128x64x32": (128, 64, 32, 4, 3),
    "128x128x32": (128, 128, 32, 8, 3),
    "128x128x64": (128, 128, 64, 8, 3),
    "128x16x64": (128, 16, 64, 4, 4),
}
# Compiling one takes a second or two: so many are tried per shape.
_TRIED = 4
# Tiles that keep a large GPU's multiprocessors busy, roughly.
_BUSY = 100
# All that a thread can have. The large tiles need them, and shared memory holds two blocks of theirs at most.
REGISTER_BUDGET = 255
# Entries of a tensor from which its addresses take 64 bits: indices go a tile beyond the end.
WIDE_FROM = 2**31 - 2**16

_NO_SIGNS, _PACK, _MASK = 0, 1, 2
_PACKED = tl.constexpr(_PACK)
_MASKED = tl.constexpr(_MASK)


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
def _conv_kernel(
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
    block_m = program // tiles_n
    rows, columns = out_height, out_width
    if GRADIENT:
        rows, columns = tl.cdiv(out_height, STRIDE_H), tl.cdiv(out_width, STRIDE_W)
    if WIDE:
        block_m = block_m.to(tl.int64)
    if SQUARES:
        # No tile straddles samples.
        tiles_m = tl.cdiv(rows * columns, BM)
        m = block_m % tiles_m * BM + tl.arange(0, BM)
        b = block_m // tiles_m + tl.zeros_like(m)
    else:
        m = block_m * BM + tl.arange(0, BM)
        b = m // (rows * columns)
        m = m % (rows * columns)
    i, j = m // columns, m % columns
    n = block_n + tl.arange(0, BN)

    if GRADIENT:
        # Pixel h = s · i + phase gets from output o by tap r where o · s + r − padding = h: r = first + s · t.
        first_h, first_w = (phase_h + padding_h) % STRIDE_H, (phase_w + padding_w) % STRIDE_W
        taps_h = tl.maximum(KERNEL_H - first_h + STRIDE_H - 1, 0) // STRIDE_H
        taps_w = tl.maximum(KERNEL_W - first_w + STRIDE_W - 1, 0) // STRIDE_W
        h, w = i * STRIDE_H + phase_h, j * STRIDE_W + phase_w
        valid = (b < batch) & (h < out_height) & (w < out_width)
        acc = _product(
            source, weight, b, i, j, valid, n, in_height, in_width, in_channels, out_channels, taps_h, taps_w,
            (phase_h + padding_h) // STRIDE_H, (phase_w + padding_w) // STRIDE_W,
            first_h * weight_h + first_w * weight_w, weight_n, weight_c, STRIDE_H * weight_h, STRIDE_W * weight_w,
            1, 1, -1, FLAT, CHANNELS, PRECISION, BM, BN, BK,
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
    if BIASES > 0:
        bias = tl.load(bias_1 + n, mask=n < out_channels, other=0).to(tl.float32)
        if BIASES > 1:
            bias += tl.load(bias_2 + n, mask=n < out_channels, other=0).to(tl.float32)
        if SCALED:
            acc += tl.load(scale + b, mask=valid, other=0).to(tl.float32)[:, None] * bias[None, :]
        else:
            acc += bias[None, :]

    pixel = ((b * out_height + h) * out_width + w) * out_channels
    if ALIGNED:
        # A word of signs is a row along the last axis.
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
        # With slope 0, NaN goes through, as in torch.relu, and -inf does not become NaN.
        negative = tl.where(value != value, value, 0.0) if SLOPE == 0 else value * SLOPE
        value = tl.where(positive, value, negative)
    if SIGNS == _MASKED:
        # Slope 0 selects, so that inf and NaN become 0.
        negative = tl.zeros_like(value) if SLOPE == 0 else value * SLOPE
        value = tl.where(positive, value, negative)
    if AFTER > 0:
        value += tl.load(after_1 + e, mask=inside, other=0).to(tl.float32)
    if AFTER > 1:
        value += tl.load(after_2 + e, mask=inside, other=0).to(tl.float32)
    tl.store(out + e, value.to(out.dtype.element_ty), mask=inside)
    if SQUARES:
        # In float64, whose range squares of float32 numbers do not leave.
        distance = tl.where(inside, value - CENTRE, 0.0).to(tl.float64)
        share = tl.sum(tl.sum(distance * distance, axis=1), axis=0)
        tl.store(sums + program.to(tl.int64) * tl.num_programs(1) + phase, share)


def supports(x_dtype: torch.dtype, weight: Tensor, arguments: Arguments) -> bool:
    """Whether the functions below take an input of that dtype, this weight and these arguments."""
    stride, padding, dilation, transposed, _, groups = arguments
    return (
        x_dtype in (torch.bfloat16, torch.float16, torch.float32)
        and weight.dtype == x_dtype
        and weight.dim() == 4
        and weight.numel() < 2**31
        and len(stride) == len(padding) == 2
        and tuple(dilation) == (1, 1)
        and not transposed
        and groups == 1
    )


def promising(positions: int, channels: int) -> list[str]:
    """The configurations worth trying for a result of so many positions, over all samples, and channels.

    Those as wide as the channels at most, the largest tiles first, as long as there are enough tiles for a large GPU.
    """

    def tiles(name: str) -> int:
        rows, columns, *_ = CONFIGURATIONS[name]
        return triton.cdiv(positions, rows) * triton.cdiv(channels, columns)

    def entries(name: str) -> int:
        return CONFIGURATIONS[name][0] * CONFIGURATIONS[name][1]

    widest = 16 if channels <= 16 else max(64, triton.next_power_of_2(channels))
    suited = [name for name, (_, columns, *_) in CONFIGURATIONS.items() if columns <= widest] or list(CONFIGURATIONS)
    suited.sort(key=entries, reverse=True)
    busy = [name for name in suited if tiles(name) >= _BUSY]
    return busy[:_TRIED] or suited[-2:]


def supports_join(channels: int) -> bool:
    """Whether `conv_join_forward` and `conv_join_pushforward` make results with that many channels: words of signs must
    not straddle pixels."""
    return channels % 32 == 0


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, arguments: Arguments, configuration: str) -> Tensor:
    """`torch.convolution(x, weight, bias, *arguments)`.

    Args:
        x: (B, C_in, H, W).
        weight: (C_out, C_in, KH, KW).
        bias: (C_out,).
        arguments: stride, padding, dilation, transposed, output_padding, groups.
    """
    y = _output(x, weight, arguments)
    _launch(x, weight, y, arguments, configuration, biases=() if bias is None else (bias,))
    return y


def conv2d_input_grad(
    cotangent: Tensor, shape: Sequence[int], weight: Tensor, arguments: Arguments, configuration: str
) -> Tensor:
    """The gradient of <cotangent, conv2d(x, weight)> with respect to x of that shape."""
    grad = _channels_last(cotangent, shape)
    _launch(cotangent, weight, grad, arguments, configuration, gradient=True)
    return grad


def conv2d_input_grad_squares(
    cotangent: Tensor,
    shape: Sequence[int],
    weight: Tensor,
    arguments: Arguments,
    centre: float,
    configuration: str,
) -> tuple[Tensor, Tensor]:
    """`conv2d_input_grad`, and (B, P) float64 whose sums over P are those of (gx − centre)² before gx was rounded."""
    grad = _channels_last(cotangent, shape)
    sums = _launch(cotangent, weight, grad, arguments, configuration, gradient=True, centre=centre)
    return grad, sums


def conv_join_forward(
    x: Tensor,
    weight: Tensor,
    arguments: Arguments,
    terms: Sequence[Tensor],
    biases: Sequence[Tensor],
    slope: float,
    keep_sum: bool,
    configuration: str,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """`gnfast.kernels.join.join_forward` of the convolution and at most one more term of its shape.

    Args:
        x, weight, arguments: as for `conv2d`.
        terms, biases, slope, keep_sum: as for `join_forward`.

    Returns:
        y, s (None unless wanted) and bits.
    """
    y = _output(x, weight, arguments)
    total = torch.empty_like(y) if keep_sum else None
    bits = torch.empty((y.numel() // 32,), dtype=torch.int32, device=x.device)
    _launch(
        x, weight, y, arguments, configuration,
        terms=terms, biases=biases, total=total, signs=_PACK, bits=bits, slope=slope,
    )  # fmt: skip
    return y, total, bits


def conv_join_pushforward(
    x: Tensor,
    weight: Tensor,
    arguments: Arguments,
    terms: Sequence[Tensor],
    biases: Sequence[Tensor],
    scale: Tensor | None,
    bits: Tensor,
    slope: float,
    keep_sum: bool,
    configuration: str,
) -> tuple[Tensor, Tensor | None]:
    """`gnfast.kernels.join.join_pushforward` of the convolution of a tangent and at most one more tangent.

    Args:
        x: the tangent of the convolution's input.
        weight, arguments: as for `conv2d`.
        terms, biases, scale, bits, slope, keep_sum: as for `join_pushforward`, the first with at most one tensor.

    Returns:
        The tangents of y and of s (None unless wanted).
    """
    y = _output(x, weight, arguments)
    total = torch.empty_like(y) if keep_sum else None
    _launch(
        x, weight, y, arguments, configuration,
        terms=terms, biases=() if scale is None else biases, scale=scale, total=total, signs=_MASK, bits=bits,
        slope=slope,
    )  # fmt: skip
    return y, total


def conv_input_grad_join(
    cotangent: Tensor,
    shape: Sequence[int],
    weight: Tensor,
    arguments: Arguments,
    before: Sequence[Tensor],
    after: Sequence[Tensor],
    bits: Tensor,
    slope: float,
    configuration: str,
) -> Tensor:
    """`gnfast.kernels.join.join_pullback` of the data gradient.

    Args:
        cotangent, shape, weight, arguments: as for `conv2d_input_grad`.
        before: at most one more cotangent of y, of that shape.
        after: at most two cotangents of s.
        bits, slope: of the s that `join_forward` saw, any number of channels.
    """
    grad = _channels_last(cotangent, shape)
    _launch(
        cotangent, weight, grad, arguments, configuration,
        gradient=True, terms=before, after=after, signs=_MASK, bits=bits, slope=slope,
    )  # fmt: skip
    return grad


def _launch(
    source: Tensor,
    weight: Tensor,
    out: Tensor,
    arguments: Arguments,
    configuration: str,
    *,
    gradient: bool = False,
    terms: Sequence[Tensor] = (),
    biases: Sequence[Tensor] = (),
    scale: Tensor | None = None,
    after: Sequence[Tensor] = (),
    total: Tensor | None = None,
    signs: int = _NO_SIGNS,
    bits: Tensor | None = None,
    slope: float = 0.0,
    centre: float | None = None,
) -> Tensor | None:
    """Writes `out`; with `centre` returns the shares of the squared distances, (B, P)."""
    (stride_h, stride_w), padding = arguments[0], arguments[1]
    batch, channels, height, width = out.shape
    phases = stride_h * stride_w if gradient else 1
    positions = triton.cdiv(height, stride_h) * triton.cdiv(width, stride_w) if gradient else height * width
    precision = "tf32" if torch.backends.cudnn.conv.fp32_precision == "tf32" else "ieee"
    aligned = signs != _NO_SIGNS and channels % 32 == 0
    epilogue = signs != _NO_SIGNS or centre is not None
    constants = tile(configuration, source.dtype, source.shape[1], epilogue, aligned, precision)
    tiles_m = triton.cdiv(positions if centre is not None else batch * positions, constants["BM"])
    tiles_n = triton.cdiv(channels, constants["BN"])
    sums = None
    if centre is not None:
        sums = out.new_empty((batch, tiles_m * tiles_n * phases), dtype=torch.float64)
        tiles_m *= batch
    if out.numel():
        weight_n, weight_c, weight_h, weight_w = weight.stride()
        if gradient:
            weight_n, weight_c = weight_c, weight_n
        with torch.cuda.device_of(source):
            _conv_kernel[(tiles_m * tiles_n, phases)](
                source, weight, out, *_filled(terms, 1, out), *_filled(biases, 2, out), *_filled(after, 2, out),
                *(out if t is None else t for t in (scale, total, bits, sums)),
                batch, *source.shape[2:], source.shape[1], height, width, channels, *padding,
                weight_n, weight_c, weight_h, weight_w,
                KERNEL_H=weight.shape[2], KERNEL_W=weight.shape[3], STRIDE_H=stride_h, STRIDE_W=stride_w,
                GRADIENT=gradient, TERMS=len(terms), BIASES=len(biases), SCALED=scale is not None, AFTER=len(after),
                KEEP_SUM=total is not None, SIGNS=signs, ALIGNED=aligned, SLOPE=slope, SQUARES=centre is not None,
                CENTRE=centre or 0.0, WIDE=max(source.numel(), out.numel()) >= WIDE_FROM, **constants,
            )  # fmt: skip
    return sums


def tile(
    configuration: str, dtype: torch.dtype, channels: int, epilogue: bool, aligned: bool, precision: str
) -> dict[str, object]:
    """The constants and options that a kernel is compiled with.

    Args:
        channels: of the reduction.
        epilogue: whether the kernel does more with its sums than to add biases and to store them.
        aligned: whether words of signs are read or written that are rows of channels.
        precision: of products of float32 numbers, "tf32" or "ieee".
    """
    rows, columns, depth, warps, stages = CONFIGURATIONS[configuration]
    if channels % 8:
        # Every number is loaded by itself and through a register.
        depth = min(depth, 32)
    if dtype == torch.float32:
        # Without tensor cores a thread holds factors of its sums, too, of the whole depth.
        depth = depth // 2 if precision == "tf32" else 16
        if (epilogue or precision == "ieee") and rows * columns >= 2048 * warps:
            # Beside 64 sums a thread has no registers for as many 32-bit summands or factors.
            columns //= 2
    if aligned:
        columns = max(columns, 32)
    flat = channels % depth != 0
    if flat and warps > 4:
        # Taps and channels as one axis under eight warps have been miscompiled for sm_90 (PyTorch's issue 173068).
        rows, warps = rows // 2, 4
    return {
        "BM": rows,
        "BN": columns,
        "BK": depth,
        "FLAT": flat,
        "CHANNELS": channels if flat else 0,
        "PRECISION": precision,
        "num_warps": warps,
        "num_stages": stages,
    }


def _filled(tensors: Sequence[Tensor], count: int, filler: Tensor) -> list[Tensor]:
    """Pointers for so many arguments, of which the kernel reads as many as there are tensors."""
    return [*tensors, *[filler] * (count - len(tensors))]


def _output(x: Tensor, weight: Tensor, arguments: Arguments) -> Tensor:
    """Memory for `conv2d`'s result."""
    space = [
        (extent + 2 * padding - kernel) // stride + 1
        for extent, kernel, stride, padding in zip(x.shape[2:], weight.shape[2:], *arguments[:2], strict=True)
    ]
    return _channels_last(x, (len(x), len(weight), *space))


def _channels_last(like: Tensor, shape: Sequence[int]) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)
