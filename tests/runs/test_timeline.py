"""Shares of time and gaps, against counting nanosecond by nanosecond."""

import random
from collections import Counter
from fractions import Fraction

import pytest

from gnfast.runs.timeline import OPTIMISER, OTHER, PYTHON, Gap, Part, Span, kind_of, own_times, shared_times, totals

GEMM, FILL, NCCL = "sm90_gemm", "FillFunctor", "ncclDevKernel_AllReduce"


def test_kernels_on_two_streams_share_the_time_and_leave_gaps():
    spans = [
        # Begins before the window, and alone for 10.
        Span(GEMM, 90, 110, lane=7),
        # Both streams at once for 20, of which each has half; then one alone for 5.
        Span(GEMM, 130, 150, lane=7),
        Span(NCCL, 130, 155, lane=8),
        # At once after it, without a gap; it ends after the window.
        Span(FILL, 180, 190, lane=7),
        Span(FILL, 190, 230, lane=7),
        Span(GEMM, 300, 310, lane=7),
    ]
    parts, gaps = shared_times(reversed(spans), 100, 200)
    assert gaps == [Gap(20, GEMM, GEMM), Gap(25, NCCL, FILL)]
    found = {name: (total.time, total.times) for name, total in totals(parts, "name").items()}
    assert found == {GEMM: (10 + 10, 2), NCCL: (10 + 5, 1), FILL: (10 + 10, 2)}
    kinds = totals(parts, "kind")
    assert {kind: total.time for kind, total in kinds.items()} == {"products": 20, "fills": 20, "all-reduce": 15}
    assert [*kinds][-1] == "all-reduce"
    assert sum(part.time for part in parts) + sum(gap.length for gap in gaps) == 100


def test_gaps_at_the_ends_have_one_neighbour():
    assert shared_times([Span(GEMM, 10, 20)], 0, 50) == (
        [Part(GEMM, "products", 10)],
        [Gap(10, "", GEMM), Gap(30, GEMM, "")],
    )
    assert shared_times([], 0, 50) == ([], [Gap(50, "", "")])
    # What ended last, not what began last.
    assert shared_times([Span(GEMM, 0, 30), Span(FILL, 10, 20, 1)], 0, 40)[1] == [Gap(10, GEMM, "")]


@pytest.mark.parametrize("seed", range(20))
def test_shares_are_those_of_each_nanosecond(seed):
    chance = random.Random(seed)
    begins = [(chance.randrange(-20, 120), chance.randrange(4)) for _ in range(chance.randrange(1, 15))]
    spans = [Span(f"k{n}", begin, begin + chance.randrange(1, 30), lane) for n, (begin, lane) in enumerate(begins)]
    took, idle = Counter(), 0
    for now in range(100):
        running = [span.name for span in spans if span.begin <= now < span.end]
        idle += not running
        took.update({name: Fraction(1, len(running)) for name in running})
    parts, gaps = shared_times(spans, 0, 100)
    assert sum(gap.length for gap in gaps) == idle
    assert {part.name: part.time for part in parts} == dict(took)


def nested(chance, begin, end, depth=0):
    """Operations inside each other, as one thread runs them."""
    at = begin
    while at < end and depth < 4:
        at += chance.randrange(0, 8)
        last = min(at + chance.randrange(1, 25), end)
        if at < last:
            yield Span(f"op{chance.randrange(10**9)}", at, last, 1)
            yield from nested(chance, at, last, depth + 1)
        at = last


@pytest.mark.parametrize("seed", range(20))
def test_each_nanosecond_is_the_innermost_operations(seed):
    chance = random.Random(seed)
    spans = list(nested(chance, 0, 140))
    took = Counter()
    for now in range(10, 120):
        inner = [span for span in spans if span.begin <= now < span.end]
        # Where two begin and end together, the later one in the list is inside.
        took[inner[-1].name if inner else "outside of operations"] += 1
    other_thread = Span("elsewhere", 20, 60, 2)
    order = [*spans, other_thread]
    parts = own_times(order, 1, 10, 120)
    assert sum(part.time for part in parts) == 110
    assert {part.name: part.time for part in parts if part.time} == dict(took)


def test_what_an_optimiser_does_is_the_optimisers():
    spans = [Span("Optimizer.step#Adam.step", 0, 50), Span("aten::add_", 10, 20), Span("aten::mm", 60, 70)]
    parts = own_times(spans, 0, 0, 100)
    assert {kind: (total.time, total.times) for kind, total in totals(parts, "kind").items()} == {
        OPTIMISER: (50, 2),
        PYTHON: (40, 1),
        "products": (10, 1),
    }


@pytest.mark.parametrize(
    "name",
    [
        "autograd::engine::evaluate_function: ConvolutionBackward0",
        "ConvolutionBackward0",
        "_FourPasses",
        "gnfast: update",
    ],
)
def test_what_autograd_does_around_operations_is_pythons(name):
    parts = own_times([Span(name, 0, 50), Span("aten::convolution_backward", 10, 40)], 0, 0, 50)
    assert [(part.kind, part.time) for part in parts] == [(PYTHON, 0), (PYTHON, 20), ("products", 30)]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_tilesize128x128x64_cudnn", "products"),
        ("nvjet_tst_64x8_64x16_4x1_v_bz_TNT", "products"),
        ("conv_kernel", "products"),
        ("gnfast::winograd_conv2d_weight_grad", "products"),
        ("aten::addmm", "products"),
        ("void cudnn::engines_precompiled::nchwToNhwcKernel<…>", "copies"),
        ("Memcpy HtoD (Pinned -> Device)", "copies"),
        ("_operands_kernel", "copies"),
        ("Memset (Device)", "fills"),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::FillFunctor<float>>", "fills"),
        ("void at::native::multi_tensor_apply_kernel<…, at::native::FusedAdamMathFunctor<float, 4>>", OPTIMISER),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>>", "pointwise"),
        ("_join_forward_kernel", "pointwise"),
        ("aten::tanh", "pointwise"),
        ("aten::t", "views and allocation"),
        ("aten::empty_strided", "views and allocation"),
        ("void at::native::reduce_kernel<512, 1, at::native::MeanOps<float, float>>", "reductions"),
        ("_scaled_sums_chunks_kernel", "reductions"),
        ("void at::native::batch_norm_collect_statistics_channels_last_kernel<…>", "batch norm"),
        ("aten::native_batch_norm_backward", "batch norm"),
        ("_spectral_norm_finish_kernel", "spectral norm"),
        ("void at::native::distribution_elementwise_grid_stride_kernel<float, 4>", "random numbers"),
        ("_draws_latents_kernel", "random numbers"),
        ("ncclDevKernel_AllReduce_Sum_f32_RING_LL(ncclDevKernelArgsStorage<4096ul>)", "all-reduce"),
        ("something else", OTHER),
    ],
)
def test_names_have_kinds(name, kind):
    assert kind_of(name) == kind
