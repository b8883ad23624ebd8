"""The state before things went wrong: a copy from the last good row of the log, and the way from there."""

import copy
from typing import Any

import torch

from gnfast.train.state import State


class Guard:
    """Keeps a copy of a run's state on its device, to go back to when a loss is not finite.

    Losses are looked at every few steps only, and by then the weights of the step before the failure are gone. From the
    copy that step is computed again: on a CPU to the same bits, since the random states are in the copy.

    Args:
        state: the run's state; the first copy is of what it is now.
    """

    def __init__(self, state: State):
        self.state = state
        self.keep()

    def keep(self) -> None:
        """Replaces the copy by the state as it is now."""
        self.copied = _clone(self.state.state_dict())

    def rewind(self, step: int) -> None:
        """Brings the state back to what it was after `step`, which is not before the copy's."""
        self.state.load_state_dict(_clone(self.copied))
        while self.state.step < step:
            self.state.update()


def _clone(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, dict):
        return type(value)((key, _clone(item)) for key, item in value.items())
    if isinstance(value, list | tuple):
        return type(value)(_clone(item) for item in value)
    return copy.copy(value)
