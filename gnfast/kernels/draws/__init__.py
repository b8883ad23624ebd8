"""What chance decides in a step, as a function of a seed and the step's number, drawn on the device that needs it.

Random words are Philox4x32-10's (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011). Its key is the
seed, and its counter says what a word is for:

    (sample, word, step mod 2³², 2²⁴ purpose + step div 2³²)

What is drawn for a sample depends on nothing else: not on which samples are drawn with it, and by which process. The
step's number is a tensor on the device, so that a CUDA graph draws anew in every replay. All functions are without a
wait for the device and without gradients, and give the same integers on every device.
"""

import functools
import math
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

from gnfast.errors import InputError, require_int
from gnfast.kernels.backend import implementation


class Purpose(IntEnum):
    """What random words are for. Runs depend on these numbers."""

    ORDER = 0
    MIRROR = 1
    CRITIC_LATENTS = 2
    GENERATOR_LATENTS = 3
    PLACE = 4
    SHIFTS = 5


class Rows(NamedTuple):
    """Which samples of a step are drawn: of each of its batches, `count` from the `first` on.

    Row i is the sample number (i // count) · size + first + i % count of the step.

    Attributes:
        batches: how many batches a step has.
        size: of a batch.
        first, count: the part of it.
    """

    batches: int
    size: int
    first: int
    count: int

    @property
    def total(self) -> int:
        """How many rows there are."""
        return self.batches * self.count


def latents(
    seed: int, step: Tensor, purpose: Purpose, rows: Rows, dim: int, classes: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    """Standard normal numbers, and labels.

    Args:
        seed: 0..2⁶³-1.
        step: (1,) int64, on the device where all is drawn.
        purpose, rows: of what, and which.
        dim: how many numbers a row has.
        classes: how many labels there are, below 2³¹; 0 for none.
        dtype: of the numbers. They are drawn in float32, at most 6.8 large: precision does not change the draw.

    Returns:
        z (rows, dim); y (rows,) int64 in 0..classes-1, each as likely as another to 2⁻³², or None.

    Raises:
        InputError: an argument is not as wanted; as in all functions here.
    """
    _check(seed, step, rows)
    require_int("dim", dim, 1)
    require_int("classes", classes, 0)
    return implementation("draws", step.device.type).latents(seed, step, purpose, rows, dim, classes, dtype)


def uniform(seed: int, step: Tensor, purpose: Purpose, rows: Rows, columns: int = 1) -> Tensor:
    """(columns, rows) float32, uniform multiples of 2⁻²⁴ in [0, 1); one to four columns, the rest as in `latents`."""
    _check(seed, step, rows)
    if columns not in (1, 2, 3, 4):
        raise InputError(f"columns: got {columns!r}, wanted 1 to 4, as many as Philox gives words")
    return implementation("draws", step.device.type).uniform(seed, step, purpose, rows, columns)


def real_batch(
    images: Tensor,
    labels: Tensor | None,
    seed: int,
    step: Tensor,
    rows: Rows,
    *,
    flip: bool = False,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> tuple[Tensor, Tensor | None]:
    """Images of a data set, each once per epoch, in an order that is new in every epoch.

    Sample number i of step s is number p = s · batches · size + i of the run: the (p mod N)-th of epoch p // N. In each
    epoch the order is a keyed permutation of 0..N-1, which is computed for every image alone: a Feistel network over
    pairs of numbers modulo a and b with ab >= N, repeated where it leads beyond N (Black and Rogaway, "Ciphers with
    Arbitrary Finite Domains", CT-RSA 2002). `sides` makes ab as close to N as can be. The function of its twelve
    rounds is MurmurHash3's finaliser, whose keys are twelve words of Philox; with eight rounds, some successions among
    a few images were likelier than others.

    Args:
        images: (N, C, H, W) uint8, contiguous, on the step's device; N below 2³¹.
        labels: (N,) int64 there, or None.
        seed, step, rows: as for `latents`.
        flip: mirror each image left to right with probability ½.
        dtype, memory_format: of the result.

    Returns:
        (rows, C, H, W) in [-1, 1]: v / 127.5 - 1, rounded to float32 and then to `dtype`; (rows,) labels or None.
    """
    _check(seed, step, rows)
    if images.dtype != torch.uint8 or images.dim() != 4 or not images.is_contiguous() or not 0 < len(images) < 2**31:
        raise InputError(
            f"images: got {images.dtype} of shape {tuple(images.shape)}, wanted contiguous uint8 of shape (N, C, H, W)"
        )
    if labels is not None and (labels.dtype != torch.int64 or labels.shape != images.shape[:1]):
        raise InputError(
            f"labels: got {labels.dtype} of shape {tuple(labels.shape)}, wanted int64 of shape ({len(images)},)"
        )
    for name, tensor in (("images", images), ("labels", labels)):
        if tensor is not None and tensor.device != step.device:
            raise InputError(f"{name}: got a tensor on {tensor.device}, wanted one on {step.device}, as the step is")
    kernels = implementation("draws", step.device.type)
    return kernels.real_batch(images, labels, seed, step, rows, flip, dtype, memory_format)


@functools.cache
def sides(count: int) -> tuple[int, int]:
    """a and b, about as large as each other, whose product is at least `count` and as small as can be."""
    # With one side of 1, or much shorter than the other, the network would only rotate.
    root = math.isqrt(count - 1) + 1
    return min(((a, -(-count // a)) for a in range(root, root * 7 // 10, -1)), key=math.prod)


def _check(seed: int, step: Tensor, rows: Rows) -> None:
    if require_int("seed", seed, 0) >= 2**63:
        raise InputError(f"seed: got {seed}, wanted at most 2**63 - 1")
    if step.dtype != torch.int64 or step.numel() != 1:
        raise InputError(f"step: got {step.dtype} of shape {tuple(step.shape)}, wanted int64 of shape (1,)")
    for name, value, least in zip(rows._fields, rows, (1, 1, 0, 1), strict=True):
        require_int(f"rows.{name}", value, least)
    if rows.first + rows.count > rows.size:
        raise InputError(f"rows: got {rows.count} from {rows.first} on, wanted a part of {rows.size}")
