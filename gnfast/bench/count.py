"""What a step does, counted: floating-point operations, bytes, kernels by kind, and peak memory."""

import contextlib
import inspect
import math
import os
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

Step = Callable[[], object]


class Launch(NamedTuple):
    """An operation that writes a tensor of its own or in place, on a GPU a kernel or a few; or a kernel of Triton's."""

    kind: str
    """convolution, product, dtype copy, layout copy, copy, reduction, fill, elementwise; or a Triton kernel's name."""
    name: str
    read: int
    """Bytes of the tensors that it is given, each once."""
    written: int
    """Bytes of those that it writes."""


@dataclass(frozen=True)
class Work:
    """What one run of a step dispatched.

    Attributes:
        flops: floating-point operations of convolutions and matrix products, as PyTorch counts them.
        product_bytes: their operands and results, each read or written once: what must move if everything between two
            products is fused into them.
        launched: what was launched, in order.
    """

    flops: int
    product_bytes: int
    launched: Sequence[Launch]

    @property
    def launches(self) -> int:
        return len(self.launched)

    def by_kind(self) -> dict[str, tuple[int, int]]:
        """kind: how many launches, and the bytes that they move; most launches first."""
        counts = Counter(launch.kind for launch in self.launched)
        moved = {kind: sum(n.read + n.written for n in self.launched if n.kind == kind) for kind in counts}
        return {kind: (count, moved[kind]) for kind, count in counts.most_common()}


def work(step: Step, warm: bool = False) -> Work:
    """Counts a run of the step, which runs twice unless it is `warm`; sees nothing of compiled code and CUDA graphs."""
    if not warm:
        # A first run traces the network, whose shapes come from running operations without data; those are not work.
        step()
    counter = _Counter()
    with counter, _at_triton_launches(counter.launched.append):
        step()
    return Work(counter.flops, counter.product_bytes, counter.launched)


@contextlib.contextmanager
def _at_triton_launches(hook: Callable[[Launch], None]) -> Iterator[None]:
    """Calls the hook at each launch of a Triton kernel, which no dispatcher sees."""
    try:
        from triton.runtime.jit import KernelInterface
    except ImportError:
        yield
        return
    launcher_of = KernelInterface.__getitem__

    def noting(kernel: Any, grid: Any) -> Callable[..., Any]:
        def launch(*args: Any, **kwargs: Any) -> Any:
            hook(_of_triton(kernel, args))
            return launcher_of(kernel, grid)(*args, **kwargs)

        return launch

    with mock.patch.object(KernelInterface, "__getitem__", noting):
        yield


def _of_triton(kernel: Any, args: Sequence[Any]) -> Launch:
    """What its file stores to by name is written; whatever else it is given, or by another name too, is read."""
    while hasattr(kernel.fn, "fn"):
        # A tuner around it.
        kernel = kernel.fn
    try:
        source = inspect.getsource(inspect.getmodule(kernel.fn))
    except (OSError, TypeError):
        # Typed in, with no file to look into.
        source = ""
    stores = set(re.findall(r"tl\.store\((\w+)", source))
    given = list(zip(kernel.arg_names, args, strict=False))
    written, read = (
        {t.data_ptr(): _bytes(t) for name, arg in given if (name in stores) is stored for t in _tensors(arg)}
        for stored in (True, False)
    )
    return Launch(kernel.__name__, kernel.__name__, sum(read.values()), sum(written.values()))


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
    options = {"activities": [torch.profiler.ProfilerActivity.CPU], "profile_memory": True}
    with _without_lines(b"Memory block of unknown size"), torch.profiler.profile(**options) as profile:
        step()
    occupied = peak = 0
    events = (event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]")
    for event in sorted(events, key=lambda event: event.start_ns()):
        occupied += event.nbytes()
        peak = max(peak, occupied)
    return peak


@contextlib.contextmanager
def _without_lines(words: bytes) -> Iterator[None]:
    """Keeps lines with these words from stderr, which PyTorch's C++ writes to by itself; others come at the end.

    The profiler warns of memory that was there before it, and is now freed. That is what `peak_bytes` leaves out.
    """
    with tempfile.TemporaryFile() as kept, contextlib.ExitStack() as back:
        try:
            own = os.dup(2)
        except OSError:
            # It is closed.
            yield
            return
        back.callback(os.close, own)
        os.dup2(kept.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(own, 2)
            kept.seek(0)
            os.write(2, b"".join(line for line in kept if words not in line))


# Operations that neither compute nor copy.
_FREE = {"empty", "empty_like", "empty_strided", "new_empty", "detach", "lift_fresh", "_unsafe_view", "record_stream"}
_FREE |= {"as_strided_", "squeeze_", "unsqueeze_", "t_", "transpose_"}
_FILLS = {"zeros", "ones", "full", "zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full", "zero_"}
_FILLS |= {"fill_", "scalar_tensor", "arange"}
_COPIES = {"_to_copy", "copy_", "clone", "contiguous"}
_REDUCTIONS = {"sum", "mean", "amax", "amin", "max", "min", "linalg_vector_norm", "norm", "var", "std"}

# How many of the first arguments.
_READ_TWICE = {"native_batch_norm": 1, "native_batch_norm_backward": 2}


class _Counter(TorchDispatchMode):
    """PyTorch's formulas without the module tracking of its FlopCounterMode, which breaks `torch.autograd.grad`."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = self.product_bytes = 0
        self.launched: list[Launch] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if formula := flop_registry.get(func._overloadpacket):
            self.flops += formula(*args, **kwargs, out_val=result)
            self.product_bytes += sum(t.nbytes for t in _tensors(_read(func, args)) + _tensors(result))
        name = func._overloadpacket.__name__
        # What works on lists in place returns nothing.
        results = _tensors(result) or (_tensors(args[:1]) if func._schema.is_mutable else [])
        if results and not func.is_view and name not in _FREE:
            read = _tensors(_read(func, args)) + _tensors(kwargs)
            moved = sum(map(_bytes, read)), sum(map(_bytes, results))
            self.launched.append(Launch(_kind(func, name, read, results), name, *moved))
        return result


def _kind(func: Any, name: str, read: Sequence[Tensor], results: Sequence[Tensor]) -> str:
    """What `Launch.kind` says of one of PyTorch's operations."""
    if "conv" in name:
        return "convolution"
    if func._overloadpacket in flop_registry:
        return "product"
    if name in _COPIES and read:
        if read[0].dtype != results[0].dtype:
            return "dtype copy"
        return "copy" if read[0].stride() == results[0].stride() else "layout copy"
    return "fill" if name in _FILLS else "reduction" if name in _REDUCTIONS else "elementwise"


def _read(func: Any, args: Any) -> Any:
    """The arguments whose entries an operation reads: a convolution's backward may need the input's shape alone."""
    name = func._overloadpacket.__name__
    if name == "convolution_backward":
        grad, x, weight, *_, mask = args
        return [grad, *([weight] if mask[0] else []), *([x] if mask[1] else [])]
    if name in _READ_TWICE:
        # In training: by the kernel that sums, and by the one that computes the result.
        return [*args, *args[: _READ_TWICE[name]]]
    # Of what is overwritten, and of what says only how large the result is to be, nothing.
    return args[1:] if name == "copy_" else () if name in _FILLS else args


def _bytes(t: Tensor) -> int:
    """Those that a tensor has in memory; what is expanded has each entry once."""
    extents = [extent for extent, stride in zip(t.shape, t.stride(), strict=True) if stride]
    return math.prod(extents) * t.element_size()


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
