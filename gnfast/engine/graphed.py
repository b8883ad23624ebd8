"""The passes as CUDA graphs, for recordings that are kept: no Python between x and f̂, nor on the way back.

A pair of graphs holds the memory of one call from its forward to its backward. Two calls under way at once, real and
generated images before one backward, take two pairs.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gnfast.engine.once_differentiable import once_differentiable
from gnfast.errors import UnsupportedError, warn_user
from gnfast.plan.state import copies
from gnfast.steps.captured import record_graph

Call = Callable[..., Any]
"""(x, operands) ↦ a tensor or two."""

_MOST_PAIRS = 4
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}


def has_graphs(device: torch.device) -> bool:
    """Whether what runs there can be a CUDA graph."""
    return device.type == "cuda"


class Pairs:
    """The graphs for one form of call; empty until the first."""

    def __init__(self) -> None:
        self._pairs: list[_Pair] = []
        self._failed = False
        self._calls = 0
        self._lock = threading.Lock()

    def run(self, call: Call, x: Tensor, operands: Sequence[Tensor], fixed: Sequence[bool]) -> Any:
        """call(x, operands) by a replay, by operations where there is no free pair, or where none could be made.

        Args:
            fixed: per operand, whether it is the same tensor in every call; the others are copied to where it was.
        """
        self._calls += 1
        # A batch of another size, at the end of an epoch, is not worth graphs.
        if self._calls == 1:
            return call(x, operands)
        given = [x, *operands]
        with self._lock:
            pair = self._taken(call, given, [False, *fixed])
        if pair is None:
            return call(x, operands)
        result = _Replay.apply(pair, *given)
        return result if len(result) > 1 else result[0]

    def clear(self) -> None:
        """Frees their memory."""
        self._pairs.clear()

    def _taken(self, call: Call, given: list[Tensor], fixed: list[bool]) -> "_Pair | None":
        """A pair that is nobody else's from now on; None if there is none to be had."""
        # Those whose weights have moved to other memory serve no more.
        self._pairs = [pair for pair in self._pairs if pair.reads(given)]
        pair = next((pair for pair in self._pairs if pair.free), None)
        if pair is None and len(self._pairs) < _MOST_PAIRS and not self._failed:
            pair = self._made(call, given, fixed)
        if pair is not None:
            pair.free = False
        return pair

    def _made(self, call: Call, given: list[Tensor], fixed: list[bool]) -> "_Pair | None":
        try:
            with torch.cuda.device_of(given[0]):
                pair = _Pair(call, given, fixed)
        except Exception as error:
            self._failed = True
            warn_user(f"static: the passes run one by one, since no CUDA graph of them could be made: {error}")
            return None
        self._pairs.append(pair)
        return pair


class _Pair:
    """The graphs of a forward and its backward, and the memory that they read and write."""

    def __init__(self, call: Call, given: list[Tensor], fixed: list[bool]) -> None:
        self._call, self._fixed = call, fixed
        self.uses = 0
        """How many calls it has served."""
        self.free = True
        # Not the weights themselves: their hooks would act here and once more outside.
        self._inputs = [t.detach() if f else t.detach().clone() for t, f in zip(given, fixed, strict=True)]
        for own, t in zip(self._inputs, given, strict=True):
            own.requires_grad_(t.requires_grad and torch.is_grad_enabled())
        self._wanted = [t for t in self._inputs if t.requires_grad]
        stream = torch.cuda.Stream()
        expected = self._warm_up(stream)
        self._forward, self._results = record_graph(self._run, stream)
        self._upstream = [torch.ones_like(t) for t in self._results]
        self._backward, self._grads = record_graph(self._pull, stream) if self._wanted else (None, ())
        self._live: list[Tensor] = []
        actual = [*self.forward(given), *(self.backward(self._upstream) if self._wanted else ())]
        _require_same(actual, expected)

    def reads(self, given: Sequence[Tensor]) -> bool:
        """Whether what it reads in place is where it was."""
        triples = zip(self._inputs, given, self._fixed, strict=True)
        return all(own.data_ptr() == t.data_ptr() and own.stride() == t.stride() for own, t, f in triples if f)

    def forward(self, given: Sequence[Tensor]) -> list[Tensor]:
        """What the call returns, in memory of its own."""
        pairs = [(t, g) for t, g, f in zip(self._inputs, given, self._fixed, strict=True) if not f]
        with torch.no_grad():
            torch._foreach_copy_(*map(list, zip(*pairs, strict=True)))
            self._forward.replay()
            return copies(self._results)

    def backward(self, upstream: Sequence[Tensor]) -> list[Tensor | None]:
        """The gradient of each input, None where there is none, in memory of its own."""
        with torch.no_grad():
            torch._foreach_copy_(self._upstream, list(upstream))
            self._backward.replay()
            grads = iter(copies([t for t in self._grads if t is not None]))
        return [None if t is None else next(grads) for t in self._grads]

    def _run(self) -> list[Tensor]:
        result = self._call(self._inputs[0], self._inputs[1:])
        self._live = list(result) if isinstance(result, tuple) else [result]
        return [t.detach() for t in self._live]

    def _pull(self) -> list[Tensor | None]:
        grads = iter(torch.autograd.grad(self._live, self._wanted, self._upstream, allow_unused=True))
        return [next(grads) if t.requires_grad else None for t in self._inputs]

    def _warm_up(self, stream: torch.cuda.Stream) -> list[Tensor | None]:
        """What both give by operations; all that happens once has happened after it."""
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                results = self._run()
                self._upstream = [torch.ones_like(t) for t in results]
                grads = self._pull() if self._wanted else ()
        torch.cuda.current_stream().wait_stream(stream)
        return [*results, *grads]


class _Replay(torch.autograd.Function):
    """(x, operands) ↦ what the call returns, a tuple."""

    @staticmethod
    def forward(ctx, pair: _Pair, *given: Tensor) -> tuple[Tensor, ...]:
        pair.uses += 1
        ctx.pair, ctx.use = pair, pair.uses
        # Free again after the backward, or when what leads to one is gone: at once where there is none.
        ctx.lease = _Lease(pair, ctx.use)
        ctx.save_for_backward(*given)
        return tuple(pair.forward(given))

    @staticmethod
    @once_differentiable
    def backward(ctx, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.pair.uses != ctx.use:
            raise UnsupportedError("static=True: a second backward of a call, after its memory has served another one")
        # Raises where an operand was written in place, as PyTorch does: the graph would read what it is now.
        _ = ctx.saved_tensors
        grads = ctx.pair.backward(upstream)
        ctx.lease.end()
        return None, *grads


class _Lease:
    """Keeps a pair for the call that it serves, until that has had its backward or will have none."""

    def __init__(self, pair: _Pair, use: int) -> None:
        self._pair, self._use = pair, use

    def end(self) -> None:
        if self._pair.uses == self._use:
            self._pair.free = True

    __del__ = end


def _require_same(actual: Sequence[Tensor | None], expected: Sequence[Tensor | None]) -> None:
    """Raises for graphs that compute something else than the operations that they are made of."""
    for a, b in zip(actual, expected, strict=True):
        if (a is None) != (b is None):
            raise RuntimeError("its replay leaves out a gradient")
        if a is None or not b.isfinite().all():
            continue
        error = (a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-12)
        if error > _TOLERANCE.get(a.dtype, 3e-2):
            raise RuntimeError(f"its replay differs by {error:.1e}")
