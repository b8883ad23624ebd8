"""Derivatives of layer and RMS norm in Triton, against the plain formulas."""

import pytest
import torch
from torch import nn

from gnfast import InputError
from gnfast.bench.count import work
from gnfast.bench.gpu_ways import gpu_ways, nothing_computed
from gnfast.kernels.backend import implementation
from gnfast.plan.op import Context
from gnfast.plan.ops.norms import LayerNorm
from tests.kernels.test_norm_channels_triton import CHOICES
from tests.kernels.test_norm_second import CASES, Case, assert_same, relative
from tests.oracle import assert_matches_double_backward

ROWS = [name for name, (op, *_) in CASES.items() if isinstance(op, LayerNorm)]
SMALL = [name for name in ROWS if "chunks" not in name]


def triton():
    return implementation("norms", "cpu", "triton")


def on(device, arguments):
    return [t if t is None else t.to(device) for t in arguments]


def check(name, device):
    """All that may be given and wanted, in float64 to rounding, in float32 no worse than twice the formulas."""
    case = Case(name)
    for adjoint, weight, wants in CHOICES:
        arguments = on(device, case.arguments(adjoint, weight))
        assert_same(case.op.by_kernels(triton(), arguments, wants), case.plainly(arguments, wants), 1e-12)
    for offset in 0, 100:
        case = Case(name, torch.float32, offset)
        arguments = on(device, case.arguments())
        exact = [t if t is None else t.double() for t in arguments]
        # Those in float32 are not quite the mean, and formulas that agree where they are do not elsewhere.
        exact[4:6] = case.op.forward(Context([None] * 4), exact[0])[1]
        truth, plain = case.plainly(exact), case.plainly(arguments)
        for actual, by_plain, expected in zip(
            case.op.by_kernels(triton(), arguments, (True, True)), plain, truth, strict=True
        ):
            assert actual.dtype == torch.float32
            assert relative(actual, expected) < 2 * relative(by_plain, expected) + 1e-6


@pytest.fixture
def few_programs(monkeypatch):
    """Each has several tiles."""
    monkeypatch.setattr(pytest.importorskip("gnfast.kernels.norms.triton_rows"), "PROGRAMS", 3)


@pytest.mark.interpreted
@pytest.mark.usefixtures("few_programs")
@pytest.mark.parametrize("name", ROWS)
def test_interpreted(name):
    check(name, "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("name", ROWS)
def test_on_a_gpu(name):
    check(name, "cuda")


@pytest.mark.interpreted
@pytest.mark.parametrize("name", SMALL)
def test_interpreted_layouts(name):
    case = Case(name)
    expected = case.op.by_kernels(triton(), case.arguments(), (True, True))
    case.t = torch.stack([case.t, case.t], -1)[..., 0]
    case.cotangent = torch._neg_view(-case.cotangent)
    case.h = torch._neg_view(-case.h.transpose(0, 1).contiguous().transpose(0, 1))
    case.adjoint = case.adjoint[:1].expand(case.h.shape)
    assert_same(case.op.by_kernels(triton(), case.arguments(), (True, True)), case.plainly(case.arguments()), 1e-12)
    assert expected[0].is_contiguous()


@pytest.mark.interpreted
@pytest.mark.parametrize("name", SMALL)
def test_interpreted_not_finite(name):
    """What is not finite stays with its row."""
    for argument in range(4):
        case = Case(name)
        arguments = case.arguments()
        arguments[argument] = arguments[argument].clone()
        arguments[argument][(0,) * case.h.dim()] = float("nan")
        results = case.op.by_kernels(triton(), arguments, (True, True))
        for actual, expected in zip(results, case.plainly(arguments), strict=True):
            assert torch.equal(actual.isfinite(), expected.isfinite())
            torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-11, equal_nan=True)


@pytest.mark.interpreted
@pytest.mark.parametrize("name", ROWS)
def test_interpreted_nothing_to_do(name):
    case = Case(name)
    arguments = [t if t is None else t[:0] for t in case.arguments()[:6]]
    by_h, by_weight, by_bias = case.op.by_kernels(triton(), [*arguments, case.weight], (True, True))
    assert by_h.shape == case.h[:0].shape
    assert not by_weight.any()
    assert not by_bias.any()


@pytest.mark.interpreted
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("name", ["rms", "rms, chunks"])
def test_interpreted_projection(name, weighted):
    for dtype, tolerance in ((torch.float64, 1e-13), (torch.float32, 1e-6)):
        case = Case(name, dtype)
        given = case.t, case.h, case.statistics[1], case.weight if weighted else None
        actual = triton().project_rows(*given, 1)
        u, h, r = (t.double() for t in given[:3])
        u = u * case.weight if weighted else u
        x_hat = h * r
        assert actual.dtype == dtype
        assert relative(actual, r * (u - x_hat * (x_hat * u).mean(-1, keepdim=True))) < tolerance


@pytest.mark.interpreted
def test_interpreted_long_rows(use, monkeypatch):
    """Rows that registers do not hold are left to PyTorch's operations."""
    use("norms", "cpu", "triton")
    case, module = Case("layer, chunks"), triton()
    monkeypatch.setattr(module, "MAX_ROW", 1099)
    monkeypatch.setattr(module, "rows", None)
    assert_same(case.by_kernels(case.arguments()), case.plainly(case.arguments()), 1e-13)


@pytest.mark.interpreted
@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm], ids=lambda made: made.__name__)
def test_interpreted_passes(norm, use, monkeypatch):
    """Under the whole engine."""
    use("norms", "cpu", "triton")
    module, shapes = triton(), []
    rows = module.rows
    monkeypatch.setattr(module, "rows", lambda h, *given: shapes.append(h.shape) or rows(h, *given))
    net = nn.Sequential(
        nn.Linear(7, 9), norm(9), nn.SiLU(), nn.Linear(9, 6), norm((6,)), nn.Flatten(), nn.Linear(18, 1)
    )
    assert_matches_double_backward(net.double(), torch.randn(4, 3, 7, dtype=torch.float64))
    assert {*shapes} == {(4, 3, 9), (4, 3, 6)}


def test_each_tensor_is_read_once():
    pytest.importorskip("triton")
    case = Case("layer, chunks", torch.float32)
    with gpu_ways(), nothing_computed():
        second = work(lambda: case.op.by_kernels(triton(), case.arguments(), (True, True)))
        projected = work(lambda: triton().project_rows(case.t, case.h, case.statistics[1], case.weight, 1))
    one, row, sums = case.h.nbytes, case.weight.nbytes, 2 * case.h.nbytes
    assert [launch.name for launch in second.launched] == ["_norms_second_rows_kernel", "sum"]
    assert second.launched[0].read == 4 * one + row + 2 * len(case.h) * 4
    assert second.launched[0].written == one + sums
    assert [launch.name for launch in projected.launched] == ["_norms_project_rows_kernel"]
    assert projected.launched[0].read == 2 * one + row + len(case.h) * 4
    assert projected.launched[0].written == one


REFUSED = {
    r"tangent: got .*float64": (1, lambda t: t.double()),
    r"cotangent: got \(4, 3, 37\)": (2, lambda t: t[:4]),
    r"mean: got .*wanted 15 entries": (4, lambda t: t[:4]),
    r"weight: got .*wanted 37 entries": (6, lambda t: t[:5]),
    r"adjoint: got None": (3, lambda t: None),
    r"h: got \(\) of": (0, lambda t: t.sum()),
}


@pytest.mark.parametrize("message", REFUSED)
def test_refusals(message):
    pytest.importorskip("triton")
    arguments = Case("layer", torch.float32).arguments()
    place, change = REFUSED[message]
    arguments[place] = change(arguments[place])
    with pytest.raises(InputError, match=message):
        triton().rows(*arguments, 1, True, True)


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("size", [48, 192, 768, 2048])
@pytest.mark.parametrize("element", ["fp32", "fp64"])
@pytest.mark.parametrize("centred", [True, False])
def test_compiled(element, size, centred, capability):
    compiling = pytest.importorskip("tests.kernels.test_triton_compile")
    from gnfast.kernels.norms import triton_rows

    dtype = {"fp32": torch.float32, "fp64": torch.float64}[element]
    options = triton_rows._tile(torch.empty(0, dtype=dtype), 1 << 16, size)
    warps = {"num_warps": options.pop("num_warps")}
    flags = dict.fromkeys(("CENTRED", "ADJOINT", "WEIGHTED", "BY_AFFINE"), True) | {"CENTRED": centred}
    given = ("h", "tangent", "cotangent", "adjoint", "mean", "rstd", "weight", "by_h", "partials", "u", "out")
    for kernel in triton_rows._norms_second_rows_kernel, triton_rows._norms_project_rows_kernel:
        names = set(kernel.arg_names)
        pointers = {name: element for name in given if name in names}
        constants = {name: value for name, value in (flags | options).items() if name in names}
        budget = triton_rows.REGISTER_BUDGET[element]
        compiling.assert_compiles(kernel, pointers, constants, budget, capability, ("rows",), **warps)
