"""Draws in plain PyTorch: the test oracle, and what runs where there are no kernels. 32-bit words are held in int64."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from gnfast.kernels.draws import Purpose, Rows, sides

_MASK = 2**32 - 1
Word = Tensor | int


def latents(seed, step, purpose, rows, dim, classes, dtype):
    """`latents`: four numbers of each four words by Box and Muller's transform, and the label of words of its own."""
    number, quads = _numbers(rows, step), -(-dim // 4)
    drawn = _words(seed, step, purpose, number[:, None], torch.arange(quads, device=step.device))
    z = torch.stack([*_normals(*drawn[:2]), *_normals(*drawn[2:])], 2).flatten(1)[:, :dim].to(dtype).contiguous()
    return z, _below(classes, _words(seed, step, purpose, number, quads)[0]) if classes else None


def uniform(seed, step, purpose, rows, columns):
    """`uniform`, of the upper 24 bits of a word."""
    drawn = _words(seed, step, purpose, _numbers(rows, step), 0)[:columns]
    return torch.stack([(word >> 8).float() * 2.0**-24 for word in drawn])


def real_batch(images, labels, seed, step, rows, flip, dtype, memory_format):
    """`real_batch`."""
    number, size = _numbers(rows, step), len(images)
    total = step * (rows.batches * rows.size) + number
    index = permuted(seed, total // size, total % size, size)
    chosen = images.index_select(0, index)
    if flip:
        chosen = torch.where(mirrored(seed, step, number)[:, None, None, None], chosen.flip(3), chosen)
    # By a tensor: PyTorch's CUDA kernel multiplies by the rounded inverse of a number.
    real = (chosen.float() / torch.full((), 127.5, device=step.device) - 1).to(dtype)
    return real.contiguous(memory_format=memory_format), None if labels is None else labels.index_select(0, index)


def mirrored(seed: int, step: Tensor, number: Tensor) -> Tensor:
    """Which samples of a step are mirrored, by their numbers in it."""
    return _words(seed, step, Purpose.MIRROR, number, 0)[0] < 2**31


def permuted(seed: int, epoch: Tensor, place: Tensor, size: int) -> Tensor:
    """Where each place 0..size-1 leads in its epoch's permutation; int64, with an epoch for each or for all."""
    a, b = sides(size)
    keys = [key for four in range(3) for key in _words(seed, epoch, Purpose.ORDER, four, 0)]
    index = _network(place, keys, a, b)
    # Who leaves 0..size-1 comes back after at most as many rounds as there are numbers outside.
    for _ in range(a * b - size):
        index = torch.where(index >= size, _network(index, keys, a, b), index)
    return index


def philox(counter: Iterable[Word], key: tuple[int, int]) -> tuple[Word, Word, Word, Word]:
    """Philox4x32-10: four words of a counter of four."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # As tensors these wrap around into negative numbers with the same 64 bits.
        first, second = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1 = (second >> 32 & _MASK) ^ c1 ^ k0, second & _MASK
        c2, c3 = (first >> 32 & _MASK) ^ c3 ^ k1, first & _MASK
        k0, k1 = k0 + 0x9E3779B9 & _MASK, k1 + 0xBB67AE85 & _MASK
    return c0, c1, c2, c3


def _words(seed: int, step: Tensor, purpose: int, sample: Word, word: Word) -> tuple[Tensor, ...]:
    """Four random words for each sample and step, which are broadcast."""
    counter = sample, word, step & _MASK, (step >> 32) + (purpose << 24)
    return philox(counter, (seed & _MASK, seed >> 32))


def _numbers(rows: Rows, step: Tensor) -> Tensor:
    row = torch.arange(rows.total, device=step.device)
    return row // rows.count * rows.size + rows.first + row % rows.count


def _below(limit: int, word: Tensor) -> Tensor:
    """0..limit-1 of words: the upper half of their product with `limit`."""
    return word * limit >> 32


def _normals(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Box and Muller's: the first word gives the radius, from a number in (0, 1], and the second the angle."""
    radius = (-2 * (first.float() * 2.0**-32 + 2.0**-33).log()).sqrt()
    angle = second.float() * 2.0**-32 * (2 * math.pi)
    return radius * angle.cos(), radius * angle.sin()


def _network(x: Tensor, keys: list[Tensor], a: int, b: int) -> Tensor:
    """A permutation of 0..ab-1."""
    left, right = x // b, x % b
    for of_left, of_right in zip(keys[::2], keys[1::2], strict=True):
        left = (left + _below(a, _mixed(right ^ of_left))) % a
        right = (right + _below(b, _mixed(left ^ of_right))) % b
    return left * b + right


def _mixed(h: Tensor) -> Tensor:
    """MurmurHash3's finaliser (fmix32, Austin Appleby, public domain): each bit of h changes half of the result's."""
    h = (h ^ h >> 16) * 0x85EBCA6B & _MASK
    h = (h ^ h >> 13) * 0xC2B2AE35 & _MASK
    return h ^ h >> 16
