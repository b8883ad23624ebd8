"""All that the next step of a run depends on, as it was after some step: the state itself, or a copy of it."""

import copy
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from gnfast.train.copies import copy_all
from gnfast.train.restore import assembled
from gnfast.train.ring import between
from gnfast.train.state import State


class Live:
    """The state as it is now, for work that is done before the next step."""

    def __init__(self, state: State):
        self.state = state

    @property
    def step(self) -> int:
        return self.state.step

    def losses(self, start: int) -> Tensor:
        """(n, names): of the steps from `start` on."""
        return between(self.state.losses.values, start, self.step)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return self.state.state_dict()


class Rows:
    """A copy of the losses alone."""

    def __init__(self, state: State):
        self.step = state.step
        self._losses = state.losses.values.clone()
        self._taken = _event(state.device)

    def arrive(self) -> None:
        """From here on the current stream may read it."""
        if self._taken is not None:
            torch.cuda.current_stream().wait_event(self._taken)

    def losses(self, start: int) -> Tensor:
        """(n, names): of the steps from `start` on."""
        return between(self._losses, start, self.step)


class Snapshot:
    """A copy in memory of its own, for work that goes on while the next steps run. `take` writes it, again and again.

    Args:
        shown: a state of the same networks, which is what others may look at; `state` brings it to this copy.
    """

    def __init__(self, shown: State | None = None):
        self._shown = shown
        self._of: Any = None
        self._own: dict[str, Any] = {}
        self._copied: tuple[list[Tensor], list[Tensor]] = ([], [])
        self._small: dict[str, Any] = {}
        self._taken: torch.cuda.Event | None = None
        self._device = torch.device("cpu")

    @property
    def step(self) -> int:
        return self._small["step"]

    @torch.no_grad()
    def take(self, state: State) -> None:
        """Becomes a copy of the state. On a GPU it is queued behind the last step, and nothing waits for it."""
        live = state.tensors()
        if live is not self._of:
            # The first time, and after a state has taken over a checkpoint: its optimisers then have other tensors.
            self._of, self._own = live, pytree.tree_map_only(Tensor, torch.clone, live)
            self._copied = _leaves(self._own), _leaves(live)
        else:
            copy_all(*self._copied)
        self._small, self._device = state.small(), state.device
        self._taken = _event(state.device)

    def arrive(self) -> None:
        """From here on the current stream may read it."""
        if self._taken is not None:
            torch.cuda.current_stream().wait_event(self._taken)

    @property
    @torch.no_grad()
    def state(self) -> State:
        """A state whose networks are as they were; it serves one at a time, until the next is asked for."""
        theirs = self._shown.networks()
        copy_all(_leaves(theirs), _leaves({name: self._own[name] for name in theirs}))
        self._shown.step = self.step
        return self._shown

    def losses(self, start: int) -> Tensor:
        return between(self._own["losses"], start, self.step)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds, on the CPU."""
        content = pytree.tree_map_only(Tensor, _on_cpu, assembled(self._own, self._small))
        if self._taken is not None:
            # Of the state's device, which is not the current one where the training thread asks.
            torch.cuda.current_stream(self._device).synchronize()
        return content


def shown(state: State) -> State:
    """A state to look at: with networks of its own and without training."""
    twin = copy.copy(state)
    twin.ema = copy.copy(state.ema)
    twin.generator, twin.critic, twin.ema.module = map(copy.deepcopy, (state.generator, state.critic, state.ema.module))
    return twin


def _event(device: torch.device) -> torch.cuda.Event | None:
    """What tells when a GPU has done all that was asked of it so far; None on a CPU."""
    return torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None


def _on_cpu(tensor: Tensor) -> Tensor:
    """The tensor in pinned memory, once the current stream has come so far: a GPU copies there while it computes."""
    if tensor.device.type == "cpu":
        return tensor
    return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)


def _leaves(nest: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(nest) if isinstance(leaf, Tensor)]
