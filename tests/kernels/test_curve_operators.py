"""Slopes and second derivatives by the compiled library, against plain PyTorch in float64."""

import pytest
import torch
from torch import nn

from gnfast.bench.count import peak_bytes
from gnfast.kernels.backend import backends, implementation
from gnfast.kernels.curves import plain
from tests.kernels.test_curve_kernels import CASES, DTYPES, LAYOUTS, check, curve_of
from tests.oracle import assert_matches_double_backward
from tests.processes import assert_passes_on

pytestmark = pytest.mark.skipif(backends()["curves"]["cpu"] != "cpp", reason="the C++ library is not built")

ROUNDINGS = {"rtol": 1e-5, "atol": 1e-6, "check_stride": False}
SERVED = sorted(CASES.keys() - {"sin", "cos"})
INFINITY = float("inf")
CORNERS = [0.0, -0.0, 1e-30, -1e-30, 40.0, -40.0, 100.0, -100.0, 1e10, -1e10, INFINITY, -INFINITY]


def library():
    return implementation("curves", "cpu")


def everything(module, curve, h, t, cotangent, addend):
    """What each function gives."""
    return (
        module.sloped(curve, t, h),
        module.sloped(curve, t, h, addend),
        module.bent(curve, h, t, cotangent),
        *module.both(curve, h, t, cotangent),
    )


def random(*shape):
    return [torch.randn(shape) for _ in range(4)]


@pytest.mark.parametrize("size", [1033, 31])
@pytest.mark.parametrize("case", CASES)
def test_matches_plain_pytorch(case, size):
    check(case, torch.float32, "cpu", size, backend="cpp")


@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES if dtype != torch.float32], ids=str)
def test_other_dtypes_and_functions_stay_plain(dtype):
    plain = implementation("curves", "cpu", "torch")
    for case, given in (("silu", dtype), ("sin", torch.float32)):
        h, t, cotangent, addend = (a.to(given) for a in random(5, 7))
        found = [everything(m, curve_of(case), h, t, cotangent, addend.clone()) for m in (library(), plain)]
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_kinds():
    wanted = "KINDS of kernels/curves/operators.py, the rows of csrc/curves/derivatives.h and their number in cpu.h"
    assert {curve_of(case).kind for case in SERVED} == {*library().KINDS}, wanted


@pytest.mark.parametrize("case", SERVED)
def test_corners(case):
    """φ' and φ'' where they saturate, overflow or change their sign: float64's to the last digits; NaN stays NaN."""
    h, curve = torch.tensor(CORNERS), curve_of(case)
    ones = torch.ones_like(h)
    expected = implementation("curves", "cpu", "torch").both(curve, *(a.double() for a in (h, ones, ones)))
    largest = torch.finfo(torch.float32).max
    for found, truth in zip(library().both(curve, h, ones, ones), expected, strict=True):
        known = truth.isfinite() & (truth.abs() < largest)
        assert known.sum() >= len(CORNERS) - 4
        # Float64 has digits of 1 - σ(h) down to 1e-16.
        torch.testing.assert_close(found[known], truth[known].float(), rtol=1e-6, atol=1e-15)
        over = truth.abs() > largest
        assert torch.equal(found[over], truth[over].float())
    not_a_number = torch.full((3,), float("nan"))
    slope, bend = library().both(curve, not_a_number, *torch.ones(2, 3))
    assert slope.isnan().all()
    assert bend.isnan().all() or case == "square"


def test_small_slopes_keep_their_digits():
    """Of GELU far below 0 and tanh far from it, where plain PyTorch's float32 has none, and of tanh near 0."""
    h = torch.linspace(-12, -3, 1000)
    ones, far = torch.ones_like(h), h.double()
    density = (far.square() / -2).exp()
    expected = density * (torch.special.erfcx(-far * 0.5**0.5) / 2 + far * (2 * torch.pi) ** -0.5)
    torch.testing.assert_close(library().sloped(curve_of("gelu by erf"), ones, h).double(), expected, rtol=1e-5, atol=0)
    expected = 1 / far.cosh().square()
    torch.testing.assert_close(library().sloped(curve_of("tanh"), ones, h).double(), expected, rtol=1e-6, atol=0)
    small = torch.logspace(-30, 0, 300)
    expected = curve_of("tanh").bend(small.double())
    torch.testing.assert_close(
        library().bent(curve_of("tanh"), small, ones[:300], ones[:300]).double(), expected, rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout):
    curve, plain = curve_of("silu"), implementation("curves", "cpu", "torch")
    h, t, cotangent, addend = LAYOUTS[layout]()
    found = [everything(m, curve, h, t, cotangent, addend + torch.zeros_like(h)) for m in (library(), plain)]
    torch.testing.assert_close(*found, **ROUNDINGS)
    for result in (found[0][0], *found[0][2:]):
        assert result.stride() == torch.empty_like(h).stride()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_sums_are_in_the_addends_memory(layout):
    h, u, _, addend = LAYOUTS[layout]()
    # Gaps of the addend's memory are left alone.
    holder = torch.full((*h.shape, 2), 7.0)
    holder[..., 0] = addend
    expected = holder[..., 0] + library().sloped(curve_of("tanh"), u, h)
    total = library().sloped(curve_of("tanh"), u, h, holder[..., 0])
    assert total.data_ptr() == holder.data_ptr()
    torch.testing.assert_close(holder[..., 0], expected, **ROUNDINGS)
    assert (holder[..., 1] == 7).all()


def test_memory_is_that_of_the_results():
    h, t, cotangent, addend = random(64, 1024)
    curve, size = curve_of("mish"), h.nbytes
    assert peak_bytes(lambda: library().both(curve, h, t, cotangent)) < 2.1 * size
    assert peak_bytes(lambda: library().bent(curve, h, t, cotangent)) < 1.1 * size
    assert peak_bytes(lambda: library().sloped(curve, t, h, addend)) < 0.1 * size


@pytest.mark.parametrize("case", ["gelu by erf", "softplus", "tanh"])
def test_results_depend_neither_on_threads_nor_on_the_place(case):
    given, threads = random(3 * 32768 + 1001), torch.get_num_threads()

    def found(given):
        return everything(library(), curve_of(case), *given[:3], given[3].clone())

    try:
        results = []
        for count in (1, 3):
            torch.set_num_threads(count)
            results.append(found(given))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    for start, size in ((1, 16), (5, 3), (32767, 1000)):
        part = found([a[start : start + size] for a in given])
        assert all(torch.equal(a, b[start : start + size]) for a, b in zip(part, results[0], strict=True))


REFUSED = {
    "u: got double, wanted h's float": ("u", lambda t: t.double(), TypeError),
    "u: got sizes .4, 3., wanted h's, .5, 3": ("u", lambda t: t[:4], ValueError),
    "addend: got sizes .3., wanted h's, .5, 3": ("addend", lambda t: t[0], ValueError),
    "addend: got int, wanted h's float": ("addend", lambda t: t.int(), TypeError),
    "h: got Double, wanted float32": ("h", lambda t: t.double(), TypeError),
    "kind: got 'sin', wanted one of": ("kind", lambda kind: "sin", ValueError),
    "constants: got 1, wanted 2 for softplus": ("constants", lambda constants: constants[:1], ValueError),
}


@pytest.mark.parametrize("message", REFUSED)
def test_refusals(message):
    h, u, _, addend = random(5, 3)
    given = {"addend": addend, "u": u, "h": h, "kind": "softplus", "constants": [1.0, 20.0]}
    name, change, error = REFUSED[message]
    before, given[name] = addend.clone(), change(given[name])
    with pytest.raises(error, match=message):
        torch.ops.gnfast.curves_sloped_onto_(*given.values())
    assert torch.equal(addend, before)


@pytest.mark.parametrize("name", ["t", "cotangent"])
def test_sizes_of_second_derivatives_are_checked(name):
    given = dict(zip(("h", "t", "cotangent"), torch.randn(3, 5, 3), strict=True))
    given[name] = given[name][:4]
    for function in (library().bent, library().both):
        with pytest.raises(ValueError, match=f"{name}: got sizes .4, 3., wanted h's, .5, 3"):
            function(curve_of("silu"), *given.values())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_fakes(layout):
    h, t, cotangent, addend = LAYOUTS[layout]()
    operators, curve = torch.ops.gnfast, curve_of("softplus")
    about = curve.kind, list(curve.constants)
    addend = addend + torch.zeros_like(h)
    torch.library.opcheck(operators.curves_sloped.default, (t, h, *about))
    torch.library.opcheck(operators.curves_sloped_onto_.default, (addend, t, h, *about))
    torch.library.opcheck(operators.curves_bent.default, (h, t, cotangent, *about))
    torch.library.opcheck(operators.curves_both.default, (h, t, cotangent, *about))


@pytest.mark.parametrize("frozen", [False, True])
def test_pass_3_reads_h_once(frozen, monkeypatch):
    """φ'(h) t and φ''(h) t δ are one sweep, but where nothing above needs the former."""
    calls = []
    for name in ("bent", "both"):
        function = getattr(library(), name)
        monkeypatch.setattr(library(), name, lambda *given, n=name, f=function: calls.append(n) or f(*given))
    net = nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 6), nn.SiLU(), nn.Linear(6, 1))
    net[-1].requires_grad_(not frozen)
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        calls.clear()
        assert_matches_double_backward(net.to(dtype), torch.randn(4, 5, dtype=dtype), tolerance=tolerance)
        # Each of three functions goes through pass 3.
        assert calls == 3 * (["both", "bent"] if frozen else ["both", "both"])


@pytest.mark.parametrize("capability", ["avx2", "default"])
def test_narrower_vectors(capability):
    assert_passes_on(capability, __file__, "plain or corners or digits or place")


def test_exponentials_that_grow_become_infinite():
    """CELU with a negative α."""
    h = torch.tensor([-300.0, -89.0, -80.0, -1.0, 2.0])
    curve, ones = plain.CURVES["celu"](-1.0), torch.ones(5)
    torch.testing.assert_close(library().sloped(curve, ones, h), plain.sloped(curve, ones, h))
    assert library().bent(curve, h, ones, ones)[:2].isinf().all()
