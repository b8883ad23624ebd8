"""Joins in Triton, one kernel each.

Imported when it is chosen, as Triton may be missing. Every program takes `WORDS` rows of 32 consecutive entries, so
that a row's signs make one word; entries are found by their place in memory, whatever the order of the axes.
"""

import functools
from collections.abc import Callable, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from gnfast.kernels.autotune import choose_fastest, enabled, table
from gnfast.kernels.jit import acc_type, masked, rectified
from gnfast.kernels.layout import Strides, filled

WORDS = 64
NUM_WARPS = 4
# name: rows per program and warps, for the tuner; the first is the default.
CONFIGURATIONS = {"64x4": (WORDS, NUM_WARPS), "32x4": (32, 4), "128x4": (128, 4), "128x8": (128, 8), "32x2": (32, 2)}
# Registers per thread by the element that sums are made in: at 96, five blocks of 128 threads with two to four 16-byte
# loads in flight each keep memory busy.
REGISTER_BUDGET = {"fp32": 96, "fp64": 168}

FUSES = True


@triton.jit
def _rows(WORDS: tl.constexpr, WIDE: tl.constexpr):
    """The words of this program, (WORDS,), and the entries in them, (WORDS, 32)."""
    block = tl.program_id(0)
    if WIDE:
        block = block.to(tl.int64)
    word = block * WORDS + tl.arange(0, WORDS)
    return word, word[:, None] * 32 + tl.arange(0, 32)[None, :]


@triton.jit
def _bias_sum(
    bias_1, bias_2, word, e, numel, inner, channels,
    BIASES: tl.constexpr, ALIGNED: tl.constexpr, CHANNELS_LAST: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Σ biases at the entries; a division per row instead of one per entry where rows do not straddle channels."""
    if ALIGNED:
        inside = (word * 32 < numel)[:, None]
        c = (word * 32 // inner % channels)[:, None]
        if CHANNELS_LAST:
            c = c + tl.arange(0, 32)[None, :]
    else:
        inside = e < numel
        c = e // inner % channels
    total = tl.load(bias_1 + c, mask=inside, other=0).to(ACC)
    if BIASES > 1:
        total += tl.load(bias_2 + c, mask=inside, other=0).to(ACC)
    return total


@triton.jit
def _join_forward_kernel(
    term_1, term_2, bias_1, bias_2, y, total, bits, numel, inner, channels,
    TERMS: tl.constexpr, BIASES: tl.constexpr, KEEP_SUM: tl.constexpr, SLOPE: tl.constexpr,
    ALIGNED: tl.constexpr, CHANNELS_LAST: tl.constexpr, WIDE: tl.constexpr, ACC: tl.constexpr, WORDS: tl.constexpr,
):  # fmt: skip
    """s = Σ terms + Σ biases, y = s where s > 0 else slope · s, and a bit for s > 0."""
    word, e = _rows(WORDS, WIDE)
    inside = e < numel
    s = tl.load(term_1 + e, mask=inside, other=0).to(ACC)
    if TERMS > 1:
        s += tl.load(term_2 + e, mask=inside, other=0).to(ACC)
    if BIASES > 0:
        s += _bias_sum(bias_1, bias_2, word, e, numel, inner, channels, BIASES, ALIGNED, CHANNELS_LAST, ACC)
    positive = (s > 0) & inside
    if KEEP_SUM:
        tl.store(total + e, s.to(total.dtype.element_ty), mask=inside)
    tl.store(y + e, rectified(s, positive, SLOPE).to(y.dtype.element_ty), mask=inside)
    flags = positive.to(tl.int32) << tl.arange(0, 32)[None, :]
    tl.store(bits + word, tl.sum(flags, axis=1), mask=word * 32 < numel)


@triton.jit
def _join_masked_kernel(
    term_1, term_2, after_1, after_2, bias_1, bias_2, scale, bits, out, total, numel, inner, channels, per_sample,
    TERMS: tl.constexpr, SHARED: tl.constexpr, AFTER: tl.constexpr, BIASES: tl.constexpr, KEEP_SUM: tl.constexpr,
    SLOPE: tl.constexpr, ALIGNED: tl.constexpr, CHANNELS_LAST: tl.constexpr, WIDE: tl.constexpr, ACC: tl.constexpr,
    WORDS: tl.constexpr,
):  # fmt: skip
    """total = Σ terms + scale · Σ biases, out = mask · total + Σ after: a pushforward without `after`, a pullback
    without biases. Where SHARED, the first term has the entries of one sample, for all of them."""
    word, e = _rows(WORDS, WIDE)
    inside = e < numel
    place = e
    if SHARED:
        if ALIGNED and not CHANNELS_LAST:
            place = (word * 32 % per_sample)[:, None] + tl.arange(0, 32)[None, :]
        else:
            place = e % per_sample
    value = tl.load(term_1 + place, mask=inside, other=0).to(ACC)
    if TERMS > 1:
        value += tl.load(term_2 + e, mask=inside, other=0).to(ACC)
    if BIASES > 0:
        bias = _bias_sum(bias_1, bias_2, word, e, numel, inner, channels, BIASES, ALIGNED, CHANNELS_LAST, ACC)
        if ALIGNED:
            row = word * 32
            factor = tl.load(scale + row // per_sample, mask=row < numel, other=0).to(ACC)[:, None]
        else:
            factor = tl.load(scale + e // per_sample, mask=inside, other=0).to(ACC)
        value += factor * bias
    if KEEP_SUM:
        tl.store(total + e, value.to(total.dtype.element_ty), mask=inside)
    flags = tl.load(bits + word, mask=word * 32 < numel, other=0)
    positive = ((flags[:, None] >> tl.arange(0, 32)[None, :]) & 1) != 0
    value = masked(value, positive, SLOPE)
    if AFTER > 0:
        value += tl.load(after_1 + e, mask=inside, other=0).to(ACC)
    if AFTER > 1:
        value += tl.load(after_2 + e, mask=inside, other=0).to(ACC)
    tl.store(out + e, value.to(out.dtype.element_ty), mask=inside)


def forward(
    terms: Sequence[Tensor],
    biases: Sequence[Tensor],
    axis: int,
    slope: float,
    keep_sum: bool,
    target: Tensor | None,
    configuration: str | None = None,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """`join_forward`; the result, s where it is kept, may lie in `target`."""
    first = terms[0]
    if configuration is None:
        configuration = _tuned(
            ("join_forward", len(terms), len(biases), keep_sum), first, axis,
            lambda name: forward(terms, biases, axis, slope, keep_sum, None, name),
        )  # fmt: skip
    numel = first.numel()
    own = torch.empty_like(first) if target is None else target
    y, total = (torch.empty_like(first), own) if keep_sum else (own, None)
    bits = torch.empty((triton.cdiv(numel, 32),), dtype=torch.int32, device=first.device)
    if numel:
        with torch.cuda.device_of(first):
            _join_forward_kernel[_grid(numel, configuration)](
                *filled(terms, 2, first), *filled(biases, 2, first), y, y if total is None else total, bits, numel,
                *_place(first, axis), TERMS=len(terms), BIASES=len(biases), KEEP_SUM=keep_sum, SLOPE=slope,
                **_layout(first, axis, configuration),
            )  # fmt: skip
    return y, total, bits


def pullback(
    of_y: Sequence[Tensor],
    of_sum: Sequence[Tensor],
    bits: Tensor,
    strides: Strides,
    slope: float,
    target: Tensor | None,
    configuration: str | None = None,
) -> Tensor:
    """`join_pullback`, of cotangents that have those strides; the first may be one sample's, expanded."""
    first = of_y[0]
    out = target
    if out is None:
        out = torch.empty_strided(first.shape, strides, dtype=first.dtype, device=first.device)
    if configuration is None:
        configuration = _tuned(
            ("join_pullback", len(of_y), len(of_sum), first.stride()), out, 0,
            lambda name: pullback(of_y, of_sum, bits, strides, slope, None, name),
        )  # fmt: skip
    _launch_masked(of_y, of_sum, (), None, 0, bits, slope, out, None, configuration)
    return out


def pushforward(
    tangents: Sequence[Tensor],
    biases: Sequence[Tensor],
    scale: Tensor | None,
    axis: int,
    bits: Tensor,
    slope: float,
    keep_sum: bool,
    target: Tensor | None,
    configuration: str | None = None,
) -> tuple[Tensor, Tensor | None]:
    """`join_pushforward`; the result, ṡ where it is kept, may lie in `target`."""
    first = tangents[0]
    if configuration is None:
        configuration = _tuned(
            ("join_pushforward", len(tangents), len(biases), keep_sum), first, axis,
            lambda name: pushforward(tangents, biases, scale, axis, bits, slope, keep_sum, None, name),
        )  # fmt: skip
    own = torch.empty_like(first) if target is None else target
    out, total = (torch.empty_like(first), own) if keep_sum else (own, None)
    _launch_masked(tangents, (), biases, scale, axis, bits, slope, out, total, configuration)
    return out, total


def _launch_masked(terms, after, biases, scale, axis, bits, slope, out, total, configuration):
    first, numel = terms[0], out.numel()
    if numel:
        with torch.cuda.device_of(out):
            _join_masked_kernel[_grid(numel, configuration)](
                *filled(terms, 2, first), *filled(after, 2, first), *filled(biases, 2, first),
                first if scale is None else scale, bits, out, out if total is None else total, numel,
                *_place(out, axis), numel // max(len(out), 1),
                TERMS=len(terms), SHARED=first.dim() > 0 and first.stride(0) == 0, AFTER=len(after), BIASES=len(biases),
                KEEP_SUM=total is not None, SLOPE=slope, **_layout(out, axis, configuration),
            )  # fmt: skip


def _tuned(operation: tuple[object, ...], first: Tensor, axis: int, call: Callable[[str], object]) -> str:
    """The configuration to launch with; the default unless the tuner is on or a table ships for the device."""
    if not first.numel() or not (enabled() or table(first.device)):
        return next(iter(CONFIGURATIONS))
    key = operation, (first.shape, first.stride(), axis, first.dtype)
    candidates = {name: functools.partial(call, name) for name in CONFIGURATIONS}
    # The same sums in the same order: only the placement of the work differs.
    return choose_fastest(key, candidates, first.device, tolerance=0.0)


def _grid(numel: int, configuration: str) -> tuple[int]:
    return (triton.cdiv(numel, 32 * CONFIGURATIONS[configuration][0]),)


def _place(t: Tensor, axis: int) -> tuple[int, int]:
    """(inner, channels): entry i of the memory belongs to channel i // inner % channels."""
    if t.dim() == 0 or t.shape[axis] == 1:
        return max(t.numel(), 1), 1
    return t.stride(axis), t.shape[axis]


def _layout(t: Tensor, axis: int, configuration: str) -> dict[str, object]:
    inner, channels = _place(t, axis)
    words, warps = CONFIGURATIONS[configuration]
    return {
        "ALIGNED": (channels if inner == 1 else inner) % 32 == 0,
        "CHANNELS_LAST": inner == 1,
        "WIDE": t.numel() >= 2**31 - 32 * words,
        "ACC": acc_type(t.dtype),
        "WORDS": words,
        "num_warps": warps,
    }
