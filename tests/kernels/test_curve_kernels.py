"""Slopes and second derivatives in one kernel, against the twin in float64."""

import pytest
import torch
from torch import nn

from gnfast.bench.count import work
from gnfast.bench.gpu_ways import gpu_ways, nothing_computed
from gnfast.kernels import curves
from gnfast.kernels.backend import implementation
from gnfast.kernels.curves.plain import CURVES
from tests.oracle import assert_matches_double_backward

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
ARGUMENTS = {"softplus": (2.0, 3.0), "elu": (0.7,), "celu": (0.6,), "gelu": ("tanh",)}
CASES = {**{name: (name, ARGUMENTS.get(name, ())) for name in CURVES}, "gelu by erf": ("gelu", ())}
# Knots, where numbers cancel, and where exponentials are out of the formats' reach.
SPECIAL = [0.0, -0.0, 1e-3, -1e-3, 0.1, -0.1, 1.5, 1.6, 9.0, -9.0]
SATURATED = [25.0, -25.0, 110.0, -110.0, 2e4, -2e4]


def curve_of(case):
    name, args = CASES[case]
    return CURVES[name](*args)


def numbers(curve, size, dtype, device):
    """h with special numbers, t, δ and μ."""
    special = SPECIAL if curve.kind in ("exp", "sin", "cos") else SPECIAL + SATURATED
    h, *rest = torch.randn(4, size, dtype=torch.float64)
    h[: len(special)] = torch.tensor(special)
    return [t.to(device, dtype) for t in (h, *rest)]


def check(case, dtype, device, size=1033, backend="triton"):
    """Entry by entry; in lower precision no worse than twice the twin at that precision, to roundings of the terms."""
    curve = curve_of(case)
    kernels, plain = (implementation("curves", device, way) for way in (backend, "torch"))
    h, t, cotangent, adjoint = given = numbers(curve, size, dtype, device)
    exact = [a.double() for a in given]
    bent, pushed = plain.bent(curve, *exact[:3]), plain.sloped(curve, exact[3], exact[0])
    terms, more = bent.abs() + (exact[1] * exact[2]).abs(), pushed.abs() + exact[3].abs()
    expected = (bent, terms), (pushed, more), (pushed + exact[1], more + exact[1].abs()), (pushed, more), (bent, terms)

    def found(module):
        """φ'' t δ, φ' μ and φ' μ + t, and the first two by what computes both at once."""
        yield module.bent(curve, h, t, cotangent)
        yield module.sloped(curve, adjoint, h)
        yield module.sloped(curve, adjoint, h, t.clone())
        yield module.both(curve, h, adjoint, cotangent)[0]
        yield module.both(curve, h, t, cotangent)[1]

    for actual, low, (truth, made_of) in zip(found(kernels), found(plain), expected, strict=True):
        assert actual.dtype == dtype and actual.isfinite().all()
        # In float64 the twin, which is the truth, has roundings of its own: it takes 1 − σ(h).
        budget = (64 if dtype == torch.float64 else 4) * torch.finfo(dtype).eps * made_of + torch.finfo(dtype).tiny
        if dtype != torch.float64:
            budget += 2 * (low.double() - truth).abs()
        error = (actual.double() - truth).abs()
        assert (error <= budget).all(), (case, (error - budget).max(), h[(error - budget).argmax()])


@pytest.fixture
def launches(use, monkeypatch):
    """On the CPU the kernels do it; the functions that were called."""
    use("curves", "cpu", "triton")
    found, calls = implementation("curves", "cpu"), []
    launch = found._launch
    monkeypatch.setattr(
        found, "_launch", lambda curve, *given, **more: calls.append(curve.kind) or launch(curve, *given, **more)
    )
    return calls


@pytest.mark.interpreted
@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_interpreted_kernels(case, dtype):
    check(case, dtype, "cpu")


@pytest.mark.interpreted
def test_interpreted_small_numbers():
    """tanh to the last digits near 0, where it is a difference of exponentials."""
    h = torch.logspace(-7, 1, 300)
    ones = torch.ones_like(h)
    actual = implementation("curves", "cpu", "triton").bent(curve_of("tanh"), h, ones, ones)
    expected = curve_of("tanh").bend(h.double())
    assert ((actual - expected) / expected)[h < 2].abs().max() < 1e-6


LAYOUTS = {
    "odd": lambda: [torch.randn(3, 5, 7, 11) for _ in range(4)],
    "channels_last": lambda: [torch.randn(2, 5, 7, 3).permute(0, 3, 1, 2) for _ in range(4)],
    "several": lambda: [torch.randn(2, 5, 7, 3).permute(0, 3, 1, 2), *(torch.randn(2, 3, 5, 7) for _ in range(3))],
    "with gaps": lambda: [torch.randn(4, 9)[:, 1:6:2] for _ in range(4)],
    "expanded": lambda: [torch.randn(4, 3), torch.randn(4, 3), torch.randn(3).expand(4, 3), torch.ones(1, 1)],
    "a number": lambda: [torch.randn(()) for _ in range(4)],
    "none": lambda: [torch.randn(0, 3) for _ in range(4)],
    "negative views": lambda: [torch._neg_view(torch.randn(5, 3)) for _ in range(4)],
}


@pytest.mark.interpreted
@pytest.mark.parametrize("layout", LAYOUTS)
def test_interpreted_layouts(layout, launches):
    curve, plain = curve_of("sigmoid"), implementation("curves", "cpu", "torch")
    h, t, u, addend = [a.double() for a in LAYOUTS[layout]()]
    found = [
        (
            module.bent(curve, h, t, u),
            module.sloped(curve, u, h),
            module.sloped(curve, u, h, addend + torch.zeros_like(h)),
            *module.both(curve, h, t, u),
        )
        for module in (curves, plain)
    ]
    torch.testing.assert_close(*found, rtol=1e-13, atol=1e-15, check_stride=False)
    assert launches == ["sigmoid"] * 4
    found = found[0]
    assert found[0].stride() == torch.empty_like(h).stride()


@pytest.mark.interpreted
@pytest.mark.parametrize("activation", [nn.SiLU, nn.Tanh, nn.GELU, nn.Softplus], ids=lambda made: made.__name__)
def test_interpreted_passes(activation, launches):
    """Under the whole engine: one launch for each step for which PyTorch has no kernel."""
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), activation(), nn.Conv2d(4, 2, 3), activation(), nn.Flatten(), nn.Linear(12, 1)
    )
    assert_matches_double_backward(net.double(), torch.randn(2, 3, 6, 7, dtype=torch.float64))
    # Two activations, three functions: in passes 3 and 4; `tanh` in passes 2 and 3 as well, where δ is computed again.
    assert len(launches) == 2 * 3 * (4 if activation is nn.Tanh else 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_one_launch_reads_each_tensor_once(dtype):
    pytest.importorskip("triton")
    h, t, u, addend = torch.randn(4, 2, 3, 5, 7).to(dtype)
    with gpu_ways(), nothing_computed():
        bent = work(lambda: curves.bent(curve_of("silu"), h, t, u))
        onto = work(lambda: curves.sloped(curve_of("silu"), u, h, addend))
        sloped = work(lambda: curves.sloped(curve_of("tanh"), u, h))
        both = work(lambda: curves.both(curve_of("silu"), h, t, u))
    for found, read, written in ((bent, 3, 1), (onto, 3, 1), (sloped, 2, 1), (both, 3, 2)):
        (launch,) = found.launched
        assert (launch.name, launch.read, launch.written) == ("_curves_kernel", read * h.nbytes, written * h.nbytes)


def test_every_curve_has_a_kernel():
    kinds = pytest.importorskip("gnfast.kernels.curves.triton").KINDS
    assert {curve_of(case).kind for case in CASES} == {*kinds}


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_kernels(case, dtype):
    check(case, dtype, "cuda", size=100_003)


@pytest.mark.gpu
@pytest.mark.parametrize("layout", LAYOUTS)
def test_kernels_in_any_layout(layout):
    curve, plain = curve_of("silu"), implementation("curves", "cuda", "torch")
    given = [a.double() for a in LAYOUTS[layout]()[:3]]
    for function in ("bent", "both"):
        actual = getattr(curves, function)(curve, *(a.to("cuda") for a in given))
        actual = [a.cpu() for a in (actual if function == "both" else [actual])]
        expected = getattr(plain, function)(curve, *given)
        expected = [*expected] if function == "both" else [expected]
        torch.testing.assert_close(actual, expected, rtol=1e-13, atol=1e-15, check_stride=False)
