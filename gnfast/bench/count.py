"""What a step does, counted: floating-point operations, bytes, kernel launches and peak memory."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

Step = Callable[[], object]


@dataclass(frozen=True)
class Work:
    """What one run of a step dispatched.

    Attributes:
        flops: floating-point operations of convolutions and matrix products, as PyTorch counts them.
        product_bytes: their operands and results, each read or written once: what must move if everything between two
            products is fused into them.
        launches: operations that write a tensor of their own or in place, on a GPU a kernel or a few each, and launches
            of Triton kernels.
    """

    flops: int
    product_bytes: int
    launches: int


def work(step: Step, warm: bool = False) -> Work:
    """Counts a run of the step, which runs twice unless it is `warm`; sees nothing of compiled code and CUDA graphs."""
    if not warm:
        # A first run traces the network, whose shapes come from running operations without data; those are not work.
        step()
    counter = _Counter()

    def launched(metadata: object) -> None:
        counter.launches += 1

    with counter, _at_triton_launches(launched):
        step()
    return Work(counter.flops, counter.product_bytes, counter.launches)


@contextlib.contextmanager
def _at_triton_launches(hook: Callable[[object], None]) -> Iterator[None]:
    """Calls the hook at each launch of a Triton kernel, which no dispatcher sees."""
    try:
        from triton import knobs
    except ImportError:
        yield
        return
    knobs.runtime.launch_enter_hook.add(hook)
    try:
        yield
    finally:
        knobs.runtime.launch_enter_hook.remove(hook)


def peak_bytes(step: Step, warm: bool = False) -> int:
    """The most bytes that tensors allocated by the step occupy at one time, gradients that it returns included."""
    if not warm:
        step()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    occupied = peak = 0
    events = (event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]")
    for event in sorted(events, key=lambda event: event.start_ns()):
        occupied += event.nbytes()
        peak = max(peak, occupied)
    return peak


# Operations that neither compute nor copy.
_FREE = {"empty", "empty_like", "empty_strided", "new_empty", "detach", "lift_fresh", "_unsafe_view", "record_stream"}
_FREE |= {"as_strided_", "squeeze_", "unsqueeze_", "t_", "transpose_"}


class _Counter(TorchDispatchMode):
    """PyTorch's formulas without the module tracking of its FlopCounterMode, which breaks `torch.autograd.grad`."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = self.product_bytes = self.launches = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if formula := flop_registry.get(func._overloadpacket):
            self.flops += formula(*args, **kwargs, out_val=result)
            self.product_bytes += sum(t.nbytes for t in _tensors(_read(func, args)) + _tensors(result))
        if _tensors(result) and not func.is_view and func._overloadpacket.__name__ not in _FREE:
            self.launches += 1
        return result


def _read(func: Any, args: Any) -> Any:
    """The arguments whose entries a product reads: a convolution's backward may need the input's shape alone."""
    if func._overloadpacket is torch.ops.aten.convolution_backward:
        grad, x, weight, *_, mask = args
        return [grad, *([weight] if mask[0] else []), *([x] if mask[1] else [])]
    return args


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
