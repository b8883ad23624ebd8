"""The order and the flips of images that `gnfast.kernels.draws` draws on a device, for data that the CPU gathers."""

import torch
from torch import Tensor

from gnfast.data.dataset import DataError, at_least
from gnfast.kernels.draws import plain

_AT_ONCE = 64
"""Steps that are drawn together: small tensors cost as much as larger ones."""


class StepOrder:
    """Which images come in each batch of each step of a run, and which of them are mirrored.

    Both are functions of the seed and the batch's number, those of `gnfast.kernels.draws.real_batch`.

    Args:
        size: how many images there are.
        seed: 0..2⁶³-1.
        per_step: how many batches a step takes.
        batch_size: of a whole batch, for all processes.

    Attributes:
        number: of the next batch, s · per_step at the start of step s.

    Raises:
        DataError: an argument is not as wanted.
    """

    def __init__(self, size: int, seed: int, per_step: int, batch_size: int) -> None:
        self.size, self.seed = at_least("size", size, 1), at_least("seed", seed, 0)
        if seed >= 2**63:
            raise DataError(f"seed: got {seed}, wanted at most 2**63 - 1")
        self.per_step, self.batch_size = at_least("per_step", per_step, 1), at_least("batch_size", batch_size, 1)
        self.number = 0
        self._block = -1
        self._indices = self._mirrored = torch.empty(0)

    def next_batch(self) -> tuple[Tensor, Tensor]:
        """(batch_size,) int64 indices of images; (batch_size,) bool, which would be mirrored."""
        block, batch = divmod(self.number, _AT_ONCE * self.per_step)
        if block != self._block:
            self._draw(block)
        self.number += 1
        part = slice(batch * self.batch_size, (batch + 1) * self.batch_size)
        return self._indices[part], self._mirrored[part]

    def _draw(self, block: int) -> None:
        """All batches of a block of steps."""
        in_step = torch.arange(self.per_step * self.batch_size)
        steps = torch.arange(block * _AT_ONCE, (block + 1) * _AT_ONCE)[:, None]
        places = (steps * len(in_step) + in_step).flatten()
        self._block = block
        self._indices = plain.permuted(self.seed, places // self.size, places % self.size, self.size)
        self._mirrored = plain.mirrored(self.seed, steps, in_step).flatten()
