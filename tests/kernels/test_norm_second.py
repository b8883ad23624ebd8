"""Derivatives of norms by the compiled library, against the plain formulas, which tests/plan/test_curved.py checks."""

import itertools
from unittest import mock

import pytest
import torch
from torch import Tensor

from gnfast.bench.count import peak_bytes
from gnfast.kernels.backend import backends, implementation
from gnfast.kernels.layout import is_channels_last
from gnfast.plan.op import Context
from gnfast.plan.ops import norms
from gnfast.plan.ops.norms import BatchNorm, GroupNorm, LayerNorm, RMSNorm
from tests.processes import assert_passes_on

pytestmark = pytest.mark.skipif(backends()["norms"]["cpu"] != "cpp", reason="the C++ library is not built")

EPS = 1e-3
LAST = torch.channels_last
BATCH = BatchNorm(EPS, 0.1)
# The op, h's shape and whether it is in channels_last: less than a vector, vectors and a rest, several chunks of rows
# or samples, one entry for each channel, more rows than a panel of columns has.
CASES = {
    "layer": (LayerNorm(EPS, (37,)), (5, 3, 37), False),
    "layer of few": (LayerNorm(EPS, (3,)), (7, 3), False),
    "layer, two axes": (LayerNorm(EPS, (4, 9)), (2, 3, 4, 9), False),
    "layer, chunks": (LayerNorm(EPS, (1100,)), (70, 1100), False),
    "rms": (RMSNorm(EPS, (37,)), (5, 3, 37), False),
    "rms, chunks": (RMSNorm(EPS, (1100,)), (70, 1100), False),
    "batch": (BATCH, (5, 6, 3, 7), False),
    "batch, last": (BATCH, (5, 19, 3, 7), True),
    "batch of vectors": (BATCH, (21, 19), False),
    "batch of sound": (BATCH, (5, 3, 41), False),
    "batch, chunks": (BATCH, (9, 17, 30, 31), False),
    "batch, last, chunks": (BATCH, (9, 17, 30, 31), True),
    "group": (GroupNorm(EPS, 3), (5, 12, 3, 7), False),
    "group, last": (GroupNorm(EPS, 3), (5, 33, 3, 7), True),
    "group of vectors": (GroupNorm(EPS, 2), (5, 18), False),
    "group, chunks": (GroupNorm(EPS, 4), (9, 16, 30, 31), False),
    "instance": (GroupNorm(EPS, None), (5, 6, 3, 7), False),
    "instance, last": (GroupNorm(EPS, None), (5, 19, 3, 7), True),
    "instance of volumes": (GroupNorm(EPS, None), (3, 4, 2, 3, 5), False),
}
SMALL = [name for name in CASES if "chunks" not in name]


class Case:
    """What an op of `CASES` is given, of float32 numbers; h and the rest have means beside which their spread is small
    for `offset` > 1."""

    def __init__(self, name: str, dtype: torch.dtype = torch.float64, offset: float = 0.5) -> None:
        self.op, shape, last = CASES[name]
        torch.manual_seed(0)

        def random() -> Tensor:
            entries = (torch.randn(shape) + offset).to(dtype)
            return entries.contiguous(memory_format=LAST) if last else entries

        self.h, self.t, self.cotangent, self.adjoint = (random() for _ in range(4))
        of_affine = self.op.shape if isinstance(self.op, LayerNorm) else shape[1:2]
        self.weight, bias = (torch.randn(of_affine).to(dtype) for _ in range(2))
        self.statistics = self.op.forward(Context([self.weight, bias, None, None]), self.h)[1]

    def arguments(self, adjoint: bool = True, weight: bool = True) -> list[Tensor | None]:
        own = self.adjoint if adjoint else None, self.weight if weight else None
        return [self.h, self.t, self.cotangent, own[0], *self.statistics, own[1]]

    def by_kernels(self, arguments, wants=(True, True)):
        return self.op.by_kernels(implementation("norms", "cpu"), arguments, wants)

    def plainly(self, arguments, wants=(True, True)):
        with mock.patch.object(norms, "implementation", return_value=None):
            return self.op.plainly(*arguments, *wants)


def assert_same(actual, expected, tolerance: float) -> None:
    for a, b in zip(actual, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert a.dtype == b.dtype
            assert a.shape == b.shape
            assert relative(a, b) < tolerance


def relative(actual: Tensor, expected: Tensor) -> float:
    return ((actual.double() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("name", CASES)
def test_matches_plain_formulas(name):
    case = Case(name)
    for adjoint, weight in itertools.product((True, False), repeat=2):
        arguments = case.arguments(adjoint, weight)
        for wants in itertools.product((True, False) if weight else (False,), (True, False) if adjoint else (False,)):
            assert_same(case.by_kernels(arguments, wants), case.plainly(arguments, wants), 1e-12)


@pytest.mark.parametrize("offset", [0, 100])
@pytest.mark.parametrize("name", CASES)
def test_single_precision_is_no_worse_than_plain(name, offset):
    """Where all entries of a group have nearly one value, differences of sums must keep the digits."""
    case = Case(name, torch.float32, offset)
    arguments = case.arguments()
    truth = case.plainly([t if t is None else t.double() for t in arguments])
    plain = case.plainly(arguments)
    for actual, by_plain, expected in zip(case.by_kernels(arguments), plain, truth, strict=True):
        assert relative(actual, expected) < 2 * relative(by_plain, expected) + 1e-6


@pytest.mark.parametrize("name", SMALL)
def test_layouts(name):
    case = Case(name)
    expected = case.by_kernels(case.arguments())
    case.t = torch.stack([case.t, case.t], -1)[..., 0]
    case.cotangent = case.cotangent.transpose(0, 1).contiguous().transpose(0, 1)
    actual = case.by_kernels(case.arguments())
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
    assert is_channels_last(actual[0]) == is_channels_last(case.h)
    case.h = case.h.transpose(0, 1).contiguous().transpose(0, 1)
    # In another order of memory, sums are in another order.
    assert_same(case.by_kernels(case.arguments()), expected, 1e-12)
    case.adjoint = case.adjoint[:1].expand(case.h.shape)
    assert_same(case.by_kernels(case.arguments()), case.plainly(case.arguments()), 1e-12)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", SMALL)
def test_what_is_not_finite_stays_with_its_group(name, value):
    for argument in range(4):
        case = Case(name)
        arguments = case.arguments()
        arguments[argument] = arguments[argument].clone()
        arguments[argument][(0,) * case.h.dim()] = value
        results = case.by_kernels(arguments)
        assert not results[0].isfinite().all()
        for actual, expected in zip(results, case.plainly(arguments), strict=True):
            assert torch.equal(actual.isfinite(), expected.isfinite())
            rest = actual.isfinite()
            torch.testing.assert_close(actual[rest], expected[rest], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["layer, chunks", "batch, chunks", "batch, last, chunks", "group, chunks"])
def test_threads_change_nothing_and_memory_is_that_of_the_results(name):
    case = Case(name, torch.float32)
    arguments, threads = case.arguments(), torch.get_num_threads()
    try:
        results = []
        for count in (1, 3):
            torch.set_num_threads(count)
            results.append(case.by_kernels(arguments))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    size = case.h.numel() * 4
    assert peak_bytes(lambda: case.by_kernels(arguments)) < 1.5 * size
    assert peak_bytes(lambda: case.plainly(arguments)) > 3 * size


@pytest.mark.parametrize("name", CASES)
def test_nothing_to_do(name):
    case = Case(name)
    arguments = [t[:0] for t in case.arguments()[:4]]
    statistics = case.statistics
    if not isinstance(case.op, BatchNorm):
        statistics = [t if t is None else t[:0] for t in statistics]
    by_h, by_weight, by_bias = case.by_kernels([*arguments, *statistics, case.weight])
    assert by_h.shape == case.h[:0].shape
    assert not by_weight.any()
    assert not by_bias.any()


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("name", ["rms", "rms, chunks"])
def test_projection_of_rms_norm(name, weighted):
    for dtype, tolerance in ((torch.float64, 1e-13), (torch.float32, 1e-6)):
        case = Case(name, dtype)
        weight = case.weight if weighted else None
        r = case.statistics[1]
        u = case.t.double() * (weight if weighted else 1)
        x_hat = case.h.double() * r
        expected = r * (u - x_hat * (x_hat * u).mean(-1, keepdim=True))
        actual = case.op.projected(case.t, case.h, case.statistics, weight)
        assert actual.dtype == dtype
        assert relative(actual, expected) < tolerance


REFUSED = {
    "tangent: got double, wanted h's float": (1, lambda t: t.double(), TypeError),
    "cotangent: got sizes .4, 6, 3, 7., wanted h's, .5, 6, 3, 7": (2, lambda t: t[:4], ValueError),
    "weight: got sizes .5., wanted 6 entries": (6, lambda t: t[:5], ValueError),
    "mean: got sizes .4., wanted 6 entries": (4, lambda t: t[:4], ValueError),
    "rstd: got sizes .1, 6, 1., wanted": (5, lambda t: t.view(1, 6, 1), ValueError),
    "rstd: got sizes .1, 4., wanted": (5, lambda t: t[None, :4], ValueError),
    "h: got sizes .630., wanted .N, C": (0, lambda t: t.flatten(), ValueError),
    "adjoint: got None, wanted a tensor": (3, lambda t: None, ValueError),
    "not implemented for 'Int'": (0, lambda t: t.int(), (NotImplementedError, TypeError)),
}


@pytest.mark.parametrize("message", REFUSED)
def test_refusals(message):
    case = Case("batch", torch.float32)
    arguments = case.arguments()
    place, change, error = REFUSED[message]
    arguments[place] = change(arguments[place])
    if message.startswith("not"):
        arguments = [t.int() for t in arguments]
    with pytest.raises(error, match=message):
        case.by_kernels(arguments)


@pytest.mark.parametrize("dims", [0, 4])
def test_dims_are_checked(dims):
    arguments = Case("layer").arguments()
    with pytest.raises(ValueError, match=f"dims: got {dims}, wanted 1 to h's 3"):
        implementation("norms", "cpu").rows(*arguments, dims, True, True)


@pytest.mark.parametrize("name", ["layer, two axes", "rms", "batch", "batch, last", "group", "instance, last"])
def test_fakes(name):
    case, operators = Case(name), torch.ops.gnfast
    rows = isinstance(case.op, LayerNorm)
    operator = operators.norms_second_rows if rows else operators.norms_second_channels
    dims = [len(case.op.shape)] if rows else []
    for adjoint, wants in ((True, (True, True)), (False, (False, False))):
        torch.library.opcheck(operator.default, (*case.arguments(adjoint), *dims, *wants))
    if isinstance(case.op, RMSNorm):
        given = case.t, case.h, case.statistics[1], case.weight, 1
        torch.library.opcheck(operators.norms_project_rows.default, given)


@pytest.mark.parametrize("capability", ["avx2", "default"])
def test_narrower_vectors(capability):
    assert_passes_on(capability, __file__, "plain or projection or finite")
