"""Arithmetic on recorded spans of time: what each kind of work took, how long nothing ran, and which gaps were long.

Times are integers, in nanoseconds, so that parts add up to the whole.
"""

import functools
import re
from collections.abc import Iterable
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple


class Span(NamedTuple):
    """A kernel on a stream of a GPU, or an operation on a thread of a CPU."""

    name: str
    begin: int
    end: int
    lane: int = 0
    """The stream or thread."""


class Gap(NamedTuple):
    """A time in which no span ran, and the names of those around it; `""` at an end of the window."""

    length: int
    after: str
    before: str


class Part(NamedTuple):
    """The time that is one span's alone: a fraction where several ran at once."""

    name: str
    kind: str
    time: Fraction


class Total(NamedTuple):
    """What the spans of one kind or name took together, and how many there were."""

    time: Fraction
    times: int


PYTHON, OTHER, OPTIMISER = "Python and autograd", "other", "optimiser"
# A kind, and how names of kernels (cuBLAS's, cuDNN's, PyTorch's, gnfast's) and of PyTorch's operations look that are of
# it, in capitals or not; the first that fits.
_KINDS = (
    ("all-reduce", r"nccl|all_?reduce|c10d::|gloo"),
    (OPTIMISER, r"adam|rmsprop|^optimizer\."),
    ("spectral norm", r"spectral_norm"),
    (
        "products",
        r"conv(?!ert)|gemm|gemv|cutlass|xmma|nvjet|splitk|winograd|[fd]prop|[dw]grad|mlp_(for|back)ward"
        r"|::(_?addmm|b?mm|baddbmm|addmv|mv|dot|matmul|linear|einsum|bilinear)\b",
    ),
    ("batch norm", r"batch_?norm|cudnn::bn|\bbn_"),
    ("random numbers", r"distribution|philox|_draws_|::(rand|bernoulli|normal_|uniform_|exponential_)"),
    ("fills", r"memset|fill|::(zero|ones|full|arange|scalar_tensor|new_zeros|new_full)"),
    (
        "copies",
        r"memcpy|copy|catarray|::(cat|stack|clone|contiguous|_to_copy|index|gather|flip|repeat)|convert|nchw|nhwc"
        r"|transpose_|gather|index_|_operands_|flip_",
    ),
    ("reductions", r"reduce|_sums_|::(sum|mean|amax|amin|max|min|var|std|linalg_vector_norm|norm|any|all)\b"),
    (
        "views and allocation",
        r"^detach_?$|::((new_)?empty(_like|_strided)?|detach|as_strided|view|(un)?flatten|reshape|_unsafe_view|unsqueeze"
        r"|_reshape_alias|squeeze|expand|permute|transpose|t|select|slice|narrow|chunk|split(_with_sizes)?|unbind"
        r"|resize|to|resolve_conj|resolve_neg|item|_local_scalar_dense|promote_types|result_type|record_stream)_?$",
    ),
    ("pointwise", r"elementwise|_kernel\b|kernel<|multi_tensor_apply|^(aten|prims|gnfast)::"),
)
_PATTERNS = tuple((kind, re.compile(pattern, re.IGNORECASE)) for kind, pattern in _KINDS)
# Nodes of autograd's graph, which are classes by name, and stretches that gnfast names.
_NODE = re.compile(r"(torch::)?autograd::|gnfast: |_?[A-Z]\w*$")


@functools.cache
def kind_of(name: str) -> str:
    """The kind of a kernel or an operation, by its name."""
    return next((kind for kind, pattern in _PATTERNS if pattern.search(name)), OTHER)


def shared_times(spans: Iterable[Span], begin: int, end: int) -> tuple[list[Part], list[Gap]]:
    """What each span took between `begin` and `end`, and the gaps in which none ran.

    Where k spans run at once, as kernels on two streams do, each has 1/k of that time, so that the times of all spans
    and the lengths of all gaps add up to `end - begin`.
    """
    inside = sorted(s for s in set(spans) if s.end > begin and s.begin < end)
    edges = sorted({begin, end, *(min(max(t, begin), end) for s in inside for t in (s.begin, s.end))})
    took = dict.fromkeys(inside, Fraction(0))
    waiting = sorted(inside, key=lambda s: -s.begin)
    gaps, running, last = [], [], (begin, "")
    for now, then in pairwise(edges):
        running = [s for s in running if s.end > now]
        while waiting and waiting[-1].begin <= now:
            running.append(waiting.pop())
            last = max(last, (running[-1].end, running[-1].name))
        for span in running:
            took[span] += Fraction(then - now, len(running))
        if not running:
            gaps.append(Gap(then - now, last[1], waiting[-1].name if waiting else ""))
    return [Part(span.name, kind_of(span.name), time) for span, time in took.items()], gaps


def own_times(spans: Iterable[Span], lane: int, begin: int, end: int) -> list[Part]:
    """What each operation of one thread took between `begin` and `end`, less what those inside it took.

    The first part is the time outside of all of them. What runs inside an optimiser's step is the optimiser's.
    """
    found = [Part("outside of operations", PYTHON, Fraction(end - begin))]
    # The ends of those that have begun and not ended, and their places in `found`.
    open_: list[tuple[int, int]] = [(end, 0)]
    inside = (s for s in spans if s.lane == lane and s.end > begin and s.begin < end)
    for span in sorted(inside, key=lambda s: (s.begin, -s.end)):
        first = max(span.begin, begin)
        while len(open_) > 1 and open_[-1][0] <= first:
            open_.pop()
        last, place = open_[-1]
        last = min(span.end, last)
        around = found[place]
        found[place] = around._replace(time=around.time - (last - first))
        kind = OPTIMISER if around.kind == OPTIMISER else PYTHON if _NODE.match(span.name) else kind_of(span.name)
        open_.append((last, len(found)))
        found.append(Part(span.name, kind, Fraction(last - first)))
    return found


def totals(parts: Iterable[Part], of: str) -> dict[str, Total]:
    """Times added up by `kind` or by `name`, longest first."""
    found: dict[str, Total] = {}
    for part in parts:
        time, times = found.get(getattr(part, of), (0, 0))
        found[getattr(part, of)] = Total(time + part.time, times + 1)
    return dict(sorted(found.items(), key=lambda item: -item[1].time))
