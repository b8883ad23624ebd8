"""Weight gradients handed out while the tangent pass still runs, for programs that send them to other processes.

The pass goes from the input up, so that they come first layer first; biases come last, all at once.
"""

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Protocol

from torch import Tensor

from gnfast.engine import operands
from gnfast.engine.operands import Made
from gnfast.plan.plan import Plan


class Receiver(Protocol):
    """Who gets gradients early. What it has got, the backward does not return: its operand gets no `.grad`.

    Attributes:
        bucket_bytes: how many bytes of operands it wants at least, at a time.
    """

    bucket_bytes: int

    def takes(self, operand: Tensor) -> bool:
        """Whether it wants the gradient of this operand. It must be a leaf: all others need it to go on backward."""

    def take(self, gradients: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Operands and what a call adds to their gradients, of their shapes and dtypes; an operand may come again."""


_RECEIVER: ContextVar[Receiver | None] = ContextVar("receiver", default=None)
current_receiver = _RECEIVER.get


@contextlib.contextmanager
def handing_out(receiver: Receiver) -> Iterator[None]:
    """Calls of a critic in this block hand their weight gradients to `receiver`, in whichever thread they are found."""
    token = _RECEIVER.set(receiver)
    try:
        yield
    finally:
        _RECEIVER.reset(token)


class Handout:
    """What one backward hands to its receiver."""

    def __init__(self, receiver: Receiver, plan: Plan, made: Made, recorded: Sequence[Tensor | None]) -> None:
        self._receiver, self._given = receiver, (plan, made, recorded)
        origins = [*range(len(recorded)), *(derived.slot for derived in plan.derived)]
        wanted = [t is not None and t.is_leaf and receiver.takes(t) for t in recorded]
        self._bytes = {slot: recorded[o].nbytes for slot, o in enumerate(origins) if wanted[o]}
        self._slots = len(origins)

    def is_due(self, found: Sequence[tuple[int, Tensor]]) -> bool:
        """Whether these are enough to be handed out."""
        return sum(self._bytes.get(slot, 0) for slot, _ in found) >= self._receiver.bucket_bytes

    def __call__(self, found: Sequence[tuple[int, Tensor]]) -> list[tuple[int, Tensor]]:
        """Hands out those of `found`, slots and gradients, that the receiver takes; returns the others."""
        plan, made, recorded = self._given
        grads = by_slot([pair for pair in found if pair[0] in self._bytes], self._slots)
        results = operands.gradients(plan, made, recorded, grads)
        self._receiver.take([(t, grad) for t, grad in zip(recorded, results, strict=True) if grad is not None])
        return [pair for pair in found if pair[0] not in self._bytes]


def by_slot(found: Sequence[tuple[int, Tensor]], count: int) -> list[Tensor | None]:
    """The gradients of `count` slots, each the sum of those found for it; None where there is none."""
    grads: list[Tensor | None] = [None] * count
    for slot, grad in found:
        grads[slot] = grad if grads[slot] is None else grads[slot] + grad
    return grads
