"""The exponential moving average of the generator, over its whole state: parameters and batch-norm buffers."""

import copy

import torch
from torch import nn

from gnfast.train.copies import copy_all


class Ema:
    """Follows a module: a plain copy before step `start`, then `average ← decay · average + (1 - decay) · module`.

    Source: GN-GAN's code, which averages the batch-norm buffers like the weights. Integer buffers (batch counters) are
    copied.

    Args:
        module: the module to follow; it is not changed.
        decay: weight of the past, in [0, 1).
        start: first step that averages.

    Attributes:
        module: the average, a module of the same class that needs no gradient.
    """

    def __init__(self, module: nn.Module, decay: float, start: int = 0):
        self.module = copy.deepcopy(module).requires_grad_(False)
        self.decay = decay
        self.start = start

    def is_copy(self, step: int) -> bool:
        """Whether the average after step `step` equals the module."""
        return step < max(1, self.start) or self.decay == 0

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Takes in the module's state after step `step` (counted from 1)."""
        ours, theirs = self.module.state_dict(), module.state_dict()
        # An average of spectral norm's unit vectors would be shorter than 1.
        averaged, copied = [], []
        for name, value in ours.items():
            follows = step < self.start or not value.is_floating_point() or name.endswith((".0._u", ".0._v"))
            (copied if follows else averaged).append(name)
        # A launch per list, not per tensor, where PyTorch has it.
        if averaged:
            torch._foreach_lerp_([ours[n] for n in averaged], [theirs[n] for n in averaged], 1 - self.decay)
        copy_all([ours[n] for n in copied], [theirs[n] for n in copied])
