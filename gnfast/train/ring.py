"""The losses of the latest steps, kept on the device until a row of the log is due."""

from collections.abc import Sequence

import torch
from torch import Tensor


class NonFiniteLossError(RuntimeError):
    """A loss became NaN or infinite; the message names the step and what to look at.

    Attributes:
        step: the generator update in which it did.
    """

    def __init__(self, step: int, message: str):
        super().__init__(message)
        self.step = step


class LossRing:
    """Rows that steps write without a word from the host: reading one at every step would make a GPU wait for Python.

    Args:
        names: of the losses in a row.
        rows: how many steps it remembers, >= 1.
        like: a tensor of the losses' dtype, on their device.

    Attributes:
        values: (rows, names); the losses of step s, counted from 0, are in row s mod rows.
    """

    def __init__(self, names: Sequence[str], rows: int, like: Tensor):
        self.values = like.new_zeros(rows, len(names))

    def write(self, clock: Tensor, losses: Tensor) -> None:
        """Takes in the losses (names,) of the step that `clock` (1,), int64 on the device, counts."""
        self.values.index_copy_(0, clock % len(self.values), losses[None])

    def put(self, step: int, losses: Tensor) -> None:
        """The same from the host."""
        self.values[step % len(self.values)] = losses


def between(values: Tensor, start: int, stop: int) -> Tensor:
    """(n, names): what a ring's values say of the steps from `start` to `stop`, the last `rows` at most."""
    steps = torch.arange(max(start, stop - len(values)), stop)
    return values.index_select(0, (steps % len(values)).to(values.device))


def means(names: Sequence[str], rows: Tensor, stop: int) -> dict[str, float]:
    """The mean of each loss over rows (n, names) of the n steps before `stop`.

    Raises:
        NonFiniteLossError: one of them is NaN or infinite.
    """
    rows = rows.double().cpu()
    bad = (~rows.isfinite()).nonzero()
    if len(bad):
        row, column = bad[0].tolist()
        step = stop - len(rows) + row + 1
        raise NonFiniteLossError(
            step,
            f"step {step}: {names[column]} is {rows[row, column].item()}. "
            "Look at metrics.jsonl and the sample grids before that step; lower --lr-d and --lr-g, or repeat with "
            "--impl reference in another --run-dir to see whether the engine is to blame.",
        )
    return dict(zip(names, rows.mean(0).tolist(), strict=True))
