"""Weight gradients beside the tangent pass: a second branch of a captured CUDA graph.

A layer's weight gradient needs the layer's cotangent and the tangent of its input, and nothing in the pass needs the
weight gradient. On streams of their own the two run at one time, which helps where neither fills the device.
"""

import functools
import os
from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gnfast.plan.state import capturing

MOST_WAITING = 2
"""Pieces of work that are on their way at one time: what each reads is held until it is done."""


class InLine:
    """Work that is done at once, in its place."""

    def run(self, work: Callable[[], Any], reads: tuple[Tensor, ...]) -> Any:
        """What `work` returns."""
        return work()

    def join(self) -> None:
        """From here on, results may be used."""


@functools.cache
def _beside(stream: torch.cuda.Stream) -> torch.cuda.Stream:
    """The one of all branches of a stream: PyTorch has 32, and hands them out again while others still use them.

    What another thread asks of a stream that is captured would fail, or become a part of the graph.
    """
    return torch.cuda.Stream()


class Branch(InLine):
    """Work that is done on a stream of its own, of the present device, in order.

    `work` must not write to what others read, and nothing may write to `reads`, the tensors that it takes from the
    stream that is current; those that it returns must not be used before `join`. Between two joins nothing that it
    returns may be dropped: its memory goes to the next piece of work, which waits for all that was asked of the
    current stream before.
    """

    def __init__(self) -> None:
        self._stream = _beside(torch.cuda.current_stream())
        self._waiting: deque[tuple[torch.cuda.Event, tuple[Tensor, ...]]] = deque()

    def run(self, work: Callable[[], Any], reads: tuple[Tensor, ...]) -> Any:
        if len(self._waiting) == MOST_WAITING:
            self._wait()
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            result = work()
        self._waiting.append((self._stream.record_event(), reads))
        return result

    def join(self) -> None:
        while self._waiting:
            self._wait()

    def _wait(self) -> None:
        # Only now may the memory of what was read be given to something else on the current stream.
        done, _ = self._waiting.popleft()
        torch.cuda.current_stream().wait_event(done)


def branch() -> InLine:
    """A second branch while a CUDA graph is captured, unless GNFAST_BRANCH=0; else everything stays in line.

    Outside a graph the host cannot fill two streams.
    """
    return Branch() if capturing() and os.environ.get("GNFAST_BRANCH") != "0" else InLine()
