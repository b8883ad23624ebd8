"""A training step as one CUDA graph: recorded once, then replayed without Python."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from gnfast.errors import InputError
from gnfast.kernels.compile_times import compile_times

Step = Callable[..., Any]
T = TypeVar("T")


class CaptureError(RuntimeError):
    """A step that cannot become a CUDA graph; the message says what is known of the reason."""


class CapturedStep(Generic[T]):
    """Calls a step function; on a CUDA device, after a few calls, by replaying a CUDA graph of it.

    The first `warmup` calls run the function as it is, on the stream that is captured later; the next call captures it
    and replays the graph, and so do all that follow. Every call is one step, and k calls leave networks, optimisers and
    random states as k calls of the function do, up to the order of float additions. On other devices each call calls
    the function, so that a program looks the same for all. `normalize_gradient` records the network's Python again on
    every call; in a captured step that happens once.

    What the function reads and writes must be in place: parameters, buffers, optimiser states, `.grad` (freed by
    `zero_grad(set_to_none=True)` inside the step or not at all). In it there must be no `.item()` or other wait for the
    device, no branch on a tensor's value, no number that changes from call to call except in an input tensor, and no
    tensor that is made on the CPU: pass what changes (images, latents drawn on the CPU) as inputs and keep
    learning rates in tensors. Optimisers need `capturable=True`. Random numbers drawn on the device from the default
    generator are new in every replay, as are those of `generators`.

        step = gnfast.CapturedStep(update, device)
        for images, labels in batches:
            losses = step(images, labels)  # tensors of their own

    Args:
        step: takes tensors, and nests of lists, tuples and dicts of tensors and constants; returns the same or None.
        device: where the step runs. Inputs are copied there; those in pinned memory without a wait, and they may be
            dropped at once, but must not be overwritten before the copy has ended.
        warmup: calls before capture, at least 1; optimisers create their states then.
        generators: CUDA generators, other than the default one, from which the step draws.

    Attributes:
        seconds: before the first replay: of the `first calls` (with all that happens once, until the device is done),
            of `capture`, and, as a part of both, of `Triton`, which compiles kernels or reads them from its cache.
            Empty where nothing is captured.
    """

    def __init__(
        self,
        step: Callable[..., T],
        device: torch.device | str,
        *,
        warmup: int = 3,
        generators: Sequence[torch.Generator] = (),
    ) -> None:
        if warmup < 1:
            raise InputError(f"warmup: got {warmup}, wanted at least 1")
        self.step = step
        self.device = torch.device(device)
        self.warmup = warmup
        self.generators = tuple(generators)
        for generator in self.generators:
            if self.device.type == "cuda" and generator.device.type != "cuda":
                raise InputError(
                    f"generators: got one on {generator.device}, wanted CUDA generators; draw on the CPU outside the "
                    "step and pass the tensors"
                )
        self.reset()

    def reset(self) -> None:
        """Forgets the graph and the inputs' shapes; needed after anything that the step uses was replaced.

        That is the case after an optimiser's `load_state_dict`, `module.to(...)` or a change of `train()`/`eval()`.
        """
        self._calls = 0
        self._inputs: tuple[Any, ...] | None = None
        self._held: list[Tensor] = []
        self._outputs: Any = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._stream: torch.cuda.Stream | None = None
        self.seconds: dict[str, float] = {}

    @property
    def captured(self) -> bool:
        """Whether calls replay a graph."""
        return self._graph is not None

    def __call__(self, *args: Any) -> T:
        """One step.

        Raises:
            InputError: an input whose shape, dtype or (where it is not a tensor) value differs from the first call's.
            CaptureError: the step did something that a graph cannot hold.
        """
        args = self._static(args)
        self._calls += 1
        if self.device.type != "cuda":
            return self.step(*args)
        with torch.cuda.device(self.device):
            if self._graph is None and self._calls <= self.warmup:
                with self._counted("first calls"):
                    return self._run_eagerly(args)
            if self._graph is None:
                with self._counted("first calls"):
                    torch.cuda.synchronize()
                with self._counted("capture"):
                    self._capture(args)
            self._graph.replay()
            return pytree.tree_map_only(Tensor, torch.clone, self._outputs)

    def _static(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The inputs in the memory that the graph reads; the arguments themselves where there will be no graph."""
        if self._inputs is None:
            self._inputs = pytree.tree_map_only(Tensor, self._place, args)
            self._held = [leaf for leaf in pytree.tree_leaves(self._inputs) if isinstance(leaf, Tensor)]
        given: list[Tensor] = []
        _gather(args, self._inputs, given)
        if self.device.type != "cuda":
            return args
        if given:
            with torch.no_grad():
                _copy(self._held, given)
        return self._inputs

    def _place(self, value: Tensor) -> Tensor:
        device = self.device if self.device.type == "cuda" else "meta"
        return torch.empty_like(value, device=device, requires_grad=value.requires_grad)

    @contextmanager
    def _counted(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        with compile_times() as compiled:
            yield
        for key, took in ((name, time.perf_counter() - began), ("Triton", sum(compiled))):
            self.seconds[key] = self.seconds.get(key, 0.0) + took

    def _run_eagerly(self, args: tuple[Any, ...]) -> Any:
        if self._stream is None:
            self._stream = torch.cuda.Stream()
        # On the stream of the capture: what autograd remembers of streams must be right when it begins.
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            result = self.step(*args)
        torch.cuda.current_stream().wait_stream(self._stream)
        for value in pytree.tree_leaves(result):
            if isinstance(value, Tensor) and value.is_cuda:
                value.record_stream(torch.cuda.current_stream())
        return _detached(result)

    def _capture(self, args: tuple[Any, ...]) -> None:
        try:
            graph, outputs = record_graph(lambda: _detached(self.step(*args)), self._stream, self.generators)
        except Exception as error:
            name = getattr(self.step, "__qualname__", type(self.step).__name__)
            raise CaptureError(
                f"{name} cannot be captured as a CUDA graph: it raised the error above while its kernels were "
                "recorded. Usual reasons: .item(), .cpu(), print or a branch on a tensor; a tensor made on the CPU; an "
                "optimiser without capturable=True; random numbers from a generator that was not passed as "
                "`generators`."
            ) from error
        if any(isinstance(value, Tensor) and not value.is_cuda for value in pytree.tree_leaves(outputs)):
            raise CaptureError("the step returns a tensor on the CPU, which a replay would not renew")
        self._graph, self._outputs = graph, outputs


def _detached(result: Any) -> Any:
    return pytree.tree_map_only(Tensor, Tensor.detach, result)


def record_graph(
    function: Callable[[], T], stream: torch.cuda.Stream, generators: Sequence[torch.Generator] = ()
) -> tuple[torch.cuda.CUDAGraph, T]:
    """The graph of what `function` does on the current device, and what it returned; nothing of it is computed yet.

    It ran on `stream` before, so that all that happens once has happened. After a failure the process is as before: on
    the stream that was current, with random generators and an allocator that serve eager work, earlier graphs and later
    captures.
    """
    graph, pool, failure = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle(), None
    # In an autocast around the step, casts that are remembered would be missing in the graph, which would read the
    # memory of old ones; and casts of the graph, which are not computed, would be given to eager work.
    torch.clear_autocast_cache()
    for generator in generators:
        graph.register_generator_state(generator)
    # torch.cuda.graph stays on its stream where a capture fails.
    with torch.cuda.stream(torch.cuda.current_stream()):
        try:
            # Other threads (those that pin memory for a loader, say) may go on calling the driver.
            with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                try:
                    result = function()
                except Exception as error:
                    failure = error
                    raise
        except Exception as error:
            _recover(graph, pool, stream, generators)
            # The end of the capture may have raised again, with less to say.
            raise failure or error from None
        finally:
            torch.clear_autocast_cache()
    return graph, result


def _recover(
    graph: torch.cuda.CUDAGraph, pool: Any, stream: torch.cuda.Stream, generators: Sequence[torch.Generator]
) -> None:
    """Puts right what PyTorch leaves undone where the end of a capture raises (pytorch/pytorch#171263).

    Its `capture_end` ends the capture of the stream first and raises there, before it has told the allocator and the
    generators. The allocator would go on asking this graph whether a stream is being captured, and the generators would
    refuse to draw outside of captures ("Offset increment outside graph capture"), in eager work and in replays of other
    graphs.
    """
    device = torch.cuda.current_device()
    try:
        torch._C._cuda_endAllocateToPool(device, pool)
    except RuntimeError:
        # The capture had got that far: the graph returns its memory by itself.
        graph.reset()
    else:
        torch._C._cuda_releasePool(device, pool)
    # A generator learns from the end of a capture, of whichever, that it is not captured. It keeps seed and offset:
    # nothing is drawn by a graph that is never replayed.
    following = torch.cuda.CUDAGraph()
    for generator in generators:
        following.register_generator_state(generator)
    with torch.cuda.graph(following, stream=stream, capture_error_mode="thread_local"):
        torch.zeros(1, device=device)
    _FAILED.append(graph)


_FAILED: list[torch.cuda.CUDAGraph] = []
"""Graphs of failed captures: PyTorch's allocator of pinned memory keeps pointers to them."""


def _gather(given: Any, first: Any, tensors: list[Tensor], *path: Any) -> None:
    """Appends the tensors of a nest to `tensors`, in the order of pytree; all else must be as in the first call.

    A walk of its own: flattening with pytree and comparing structures would take most of a step's time in Python.
    """
    if isinstance(first, Tensor):
        if not isinstance(given, Tensor) or given.shape != first.shape or given.dtype != first.dtype:
            raise _differs(path, given, first)
        tensors.append(given)
    elif type(given) is not type(first):
        raise _differs(path, given, first)
    elif isinstance(first, tuple | list | dict):
        mapping = isinstance(first, dict)
        keys, wanted = (given.keys(), first.keys()) if mapping else (range(len(given)), range(len(first)))
        if keys != wanted:
            raise _differs(path, *(list(k) if mapping else f"{len(k)} of them" for k in (keys, wanted)))
        for key in wanted:
            _gather(given[key], first[key], tensors, *path, key)
    elif given != first:
        raise _differs(path, given, first)


def _differs(path: Sequence[Any], given: Any, wanted: Any) -> InputError:
    """The error for an input that is not what it was in the first call; `path` leads to it in the nest."""
    place = "".join(f"[{key!r}]" for key in path)
    given, wanted = ((tuple(v.shape), v.dtype) if isinstance(v, Tensor) else v for v in (given, wanted))
    return InputError(
        f"inputs{place}: got {given}, wanted {wanted} as in the first call; a captured step has fixed shapes and "
        "constants; reset() starts again"
    )


def _copy(held: list[Tensor], given: list[Tensor]) -> None:
    # In one call, a tensor that comes from the host would turn the one kernel for all others into a copy for each.
    pairs = list(zip(held, given, strict=True))
    if there := [pair for pair in pairs if pair[0].device == pair[1].device]:
        torch._foreach_copy_(*map(list, zip(*there, strict=True)))
    for target, source in pairs:
        if target.device != source.device:
            target.copy_(source, non_blocking=True)
