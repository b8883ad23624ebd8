"""Second derivatives of batch, group and instance norm in Triton, against the plain formulas."""

import pytest
import torch

from gnfast import InputError
from gnfast.bench.count import work
from gnfast.bench.gpu_ways import nothing_computed
from gnfast.kernels.layout import is_channels_last
from gnfast.plan.ops.norms import BatchNorm, GroupNorm, LayerNorm
from tests.kernels import test_norm_second as second
from tests.kernels.test_norm_second import EPS, REFUSED, Case, assert_same, relative

CASES = {name: case for name, case in second.CASES.items() if not isinstance(case[0], LayerNorm)}
SMALL = [name for name in CASES if "chunks" not in name]
# More channels than a program of the second launch has, in a group and in all, and more samples than the third adds up
# at once.
MORE = {
    "group of many": (GroupNorm(EPS, 2), (2, 600, 2, 1), False),
    "group of one sample": (GroupNorm(EPS, 1), (1, 70, 13, 11), True),
    "groups, many": (GroupNorm(EPS, 300), (6, 600, 3), False),
    "batch of many channels": (BatchNorm(EPS, 0.1), (3, 1100, 2), False),
}


@pytest.fixture(autouse=True)
def more_cases(monkeypatch):
    monkeypatch.setattr(second, "CASES", second.CASES | MORE)


def by_triton(arguments, wants=(True, True), device="cpu"):
    from gnfast.kernels.norms import triton_channels

    given = [t if t is None else t.to(device) for t in arguments]
    return [t if t is None else t.cpu() for t in triton_channels.channels(*given, *wants)]


# Whether there are μ and weight, and whether their gradients are wanted: each with each.
CHOICES = [
    (True, True, (True, True)),
    (True, False, (False, True)),
    (True, True, (True, False)),
    (False, True, (True, False)),
    (False, False, (False, False)),
]


def check(name, device, some=slice(None)):
    case = Case(name)
    for adjoint, weight, wants in CHOICES[some]:
        arguments = case.arguments(adjoint, weight)
        assert_same(by_triton(arguments, wants, device), case.plainly(arguments, wants), 1e-12)


def check_single_precision(name, offset, device):
    case = Case(name, torch.float32, offset)
    arguments = case.arguments()
    truth = case.plainly([t.double() for t in arguments])
    plain = case.plainly(arguments)
    for actual, by_plain, expected in zip(by_triton(arguments, device=device), plain, truth, strict=True):
        assert actual.dtype == torch.float32
        assert relative(actual, expected) < 2 * relative(by_plain, expected) + 1e-6


def check_layouts(name, device):
    case = Case(name)
    expected = by_triton(case.arguments(), device=device)
    assert is_channels_last(expected[0]) == is_channels_last(case.h)
    case.t = torch.stack([case.t, case.t], -1)[..., 0]
    case.cotangent = torch._neg_view(-case.cotangent.transpose(0, 1).contiguous().transpose(0, 1))
    assert all(map(torch.equal, by_triton(case.arguments(), device=device), expected))
    # In another order of memory, sums are in another order.
    case.h = case.h.transpose(0, 1).contiguous().transpose(0, 1)
    case.adjoint = case.adjoint[:1].expand(case.h.shape)
    assert_same(by_triton(case.arguments(), device=device), case.plainly(case.arguments()), 1e-12)


def check_not_finite(name, value, device):
    for argument in range(4):
        case = Case(name)
        arguments = case.arguments()
        arguments[argument] = arguments[argument].clone()
        arguments[argument][(0,) * case.h.dim()] = value
        results = by_triton(arguments, device=device)
        assert not results[0].isfinite().all()
        for actual, expected in zip(results, case.plainly(arguments), strict=True):
            rest = expected.isfinite()
            assert torch.equal(actual.isfinite(), rest)
            torch.testing.assert_close(actual[rest], expected[rest], rtol=1e-9, atol=1e-11)


@pytest.mark.interpreted
@pytest.mark.parametrize("name", [*CASES, *MORE])
def test_interpreted_kernels(name):
    # The interpreter is slow.
    check(name, "cpu", slice(None) if name in SMALL else slice(1))


@pytest.mark.interpreted
@pytest.mark.parametrize("name", [name for name in CASES if "chunks" in name])
def test_interpreted_chunks_of_several_tiles(name, monkeypatch):
    from gnfast.kernels.norms import triton_channels

    monkeypatch.setattr(triton_channels, "PROGRAMS", 40)
    check(name, "cpu", slice(1))


@pytest.mark.interpreted
@pytest.mark.parametrize("name", ["batch", "group, last"])
def test_interpreted_in_large_tensors(name, monkeypatch):
    """Those of 2³¹ entries and more, whose places take 64 bits."""
    from gnfast.kernels.norms import triton_channels

    monkeypatch.setattr(triton_channels, "NARROW", 1)
    check(name, "cpu", slice(1))


@pytest.mark.interpreted
@pytest.mark.parametrize("name", CASES)
def test_interpreted_single_precision_is_no_worse_than_plain(name):
    for offset in (0, 100) if name in SMALL else (100,):
        check_single_precision(name, offset, "cpu")


@pytest.mark.interpreted
@pytest.mark.parametrize("name", SMALL)
def test_interpreted_layouts(name):
    check_layouts(name, "cpu")


@pytest.mark.interpreted
@pytest.mark.parametrize("name", SMALL)
def test_interpreted_what_is_not_finite_stays_with_its_group(name):
    check_not_finite(name, float("nan"), "cpu")


@pytest.mark.interpreted
def test_interpreted_without_means():
    """As in RMS norm, whose rows are samples' channels here."""
    case = Case("rms")
    case.weight = None
    arguments = case.arguments()
    expected = case.plainly(arguments, (False, False))
    arguments[5] = arguments[5].squeeze(-1)
    assert_same(by_triton(arguments, (False, False)), expected, 1e-12)


@pytest.mark.parametrize("name", ["batch", "group, last"])
def test_nothing_to_do(name):
    pytest.importorskip("triton")
    case = Case(name)
    arguments = case.arguments()
    arguments = [*(t[:0] for t in arguments[:4]), *(t[: len(t) * (t.dim() == 1)] for t in arguments[4:])]
    by_h, by_weight, by_bias = by_triton(arguments)
    assert by_h.shape == case.h[:0].shape
    assert by_weight.shape == by_bias.shape == case.weight.shape
    assert not by_weight.any() and not by_bias.any()


@pytest.mark.parametrize("message", [name for name in REFUSED if not name.startswith("not")])
def test_refusals(message):
    pytest.importorskip("triton")
    arguments = Case("batch", torch.float32).arguments()
    place, change, _ = REFUSED[message]
    arguments[place] = change(arguments[place])
    name = message.partition(":")[0]
    with pytest.raises(InputError, match=f"{name}: got .*, wanted "):
        by_triton(arguments)


def test_refuses_half_precision():
    pytest.importorskip("triton")
    with pytest.raises(InputError, match=r"h: got .* of torch\.float16, wanted .* of float32 or float64"):
        by_triton([t.half() for t in Case("batch", torch.float32).arguments()])


@pytest.mark.parametrize("name", ["batch, last, chunks", "group, chunks"])
def test_three_launches_read_twice_and_write_once(name):
    pytest.importorskip("triton")
    arguments = Case(name, torch.float32).arguments()
    with nothing_computed():
        sums, coefficients, results = work(lambda: by_triton(arguments)).launched
    size = arguments[0].nbytes
    names = [f"_norms_channels_{name}_kernel" for name in ("sums", "coefficients", "results")]
    assert [launch.name for launch in (sums, coefficients, results)] == names
    small = coefficients.read + coefficients.written
    assert small < size
    assert 4 * size <= sums.read <= 4 * size + small and sums.written <= small
    assert 4 * size <= results.read + results.written - size <= 4 * size + 2 * small


@pytest.mark.gpu
@pytest.mark.parametrize("name", [*CASES, *MORE])
def test_kernels(name):
    check(name, "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("offset", [0, 100])
@pytest.mark.parametrize("name", CASES)
def test_single_precision_is_no_worse_than_plain(name, offset):
    check_single_precision(name, offset, "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("name", SMALL)
def test_layouts(name):
    check_layouts(name, "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", SMALL)
def test_what_is_not_finite_stays_with_its_group(name, value):
    check_not_finite(name, value, "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("name", CASES)
def test_results_repeat(name):
    arguments = Case(name, torch.float32).arguments()
    assert all(map(torch.equal, by_triton(arguments, device="cuda"), by_triton(arguments, device="cuda")))
