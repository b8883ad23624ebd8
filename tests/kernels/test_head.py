"""The fused kernels of the normalisers against their plain twins, and under the engine."""

import dataclasses
import itertools
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gnfast
from gnfast import heads, models, reference
from gnfast.kernels import backends
from gnfast.kernels.backend import implementation
from gnfast.kernels.layout import accumulator
from gnfast.plan.fused import Contribution, Pending
from tests.engine.test_engine import Called, ResNet
from tests.oracle import assert_same, outputs_and_gradients

OPTIONS = {f"{name}, options": {"method": name, "tau": 1.2, "eps": 0.03} for name in ("gran", "gran-shift")}
OPTIONS = {name: {"method": name} for name in heads.METHODS} | OPTIONS
HEADS = {name: heads.find(**options) for name, options in OPTIONS.items()}
HEADS = {name: head for name, head in HEADS.items() if head.formula is not None}
TOLERANCE = {torch.float64: 1e-14, torch.float32: 3e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}
DTYPES = [torch.float64, torch.float32, torch.float16]
LAYOUTS = [torch.contiguous_format, torch.channels_last]

has_operators = pytest.mark.skipif(backends()["head"]["cpu"] != "cpp", reason="the C++ library is not built")


def plain(head):
    return dataclasses.replace(head, formula=None)


def check_head(name, dtype, device, layout=torch.channels_last, backend="triton"):
    """Both kernels against the twin, with dead samples, tiny and large gradients, and f of both signs and zero."""
    kernels = implementation("head", device, backend)
    head = HEADS[name]
    size = (9, 3, 13, 57)
    g = torch.randn(size, dtype=torch.float64, device=device)
    sizes = torch.tensor([1, 0, 0, 1e-3, 30, 1, 0.2, 1, 1], dtype=torch.float64, device=device)
    g = (g * sizes.reshape(-1, 1, 1, 1)).to(dtype).contiguous(memory_format=layout)
    if head.centre:
        g[1:3] = head.centre
    x = torch.randn(size, dtype=torch.float64, device=device).to(dtype).contiguous(memory_format=layout)
    f = torch.tensor([[0.3], [0], [-2], [1e-3], [-7], [1], [0], [-0.4], [1]], dtype=dtype, device=device)
    upstream = torch.randn(9, 1, device=device).to(dtype)
    twin = plain(head)
    f_hat, _, saved = heads.normalize(twin, f, [Contribution(g, False)], dtype)
    actual, same, partials = kernels.normalize(head.formula, f, [g], None, dtype)
    assert same is g
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(actual, f_hat, rtol=tolerance, atol=tolerance, equal_nan=True)
    check_two_terms(kernels, head, f, g)
    # Thirteen parts of every sample's squares, of which g itself cannot be the source.
    squares = (g.double() - head.centre).square().flatten(1).unflatten(1, (13, -1)).sum(2)
    pending = Pending(g.clone, None, lambda centre: (torch.full_like(g, torch.nan), squares))
    from_squares = heads.normalize(twin, f, [pending], dtype)[0]
    by_kernels = kernels.normalize(head.formula, f, [torch.full_like(g, torch.nan)], squares, dtype)[0]
    for actual in (from_squares, by_kernels):
        torch.testing.assert_close(actual, f_hat, rtol=tolerance, atol=tolerance, equal_nan=True)
    for wants in ((True, False), (False, True), (True, True)):
        expected = heads.pull(twin, saved, upstream, x, g, *wants)
        given = kernels.pull(head.formula, partials, upstream, x, g, *wants, dtype)
        for left, right in zip(given, expected, strict=True):
            if right is None:
                assert left is None
                continue
            assert left.stride() == right.stride() and left.dtype == right.dtype
            torch.testing.assert_close(left, right, rtol=tolerance, atol=tolerance, equal_nan=True)


def check_two_terms(kernels, head, f, g):
    """Parts of g, of any strides: their sum, rounded once, and what comes of it, with neither part written to."""
    dtype, part = g.dtype, torch.randn_like(g)
    for parts in (
        (part, (g.double() - part.double()).to(dtype)),
        (part.contiguous(), (g - part).transpose(2, 3).contiguous().transpose(2, 3)),
        (part[:1].expand_as(g), g - part[:1]),
        (g - part[:1], part[:1].expand_as(g)),
    ):
        copies = [part.clone() for part in parts]
        f_hat, total, partials = kernels.normalize(head.formula, f, parts, None, dtype)
        assert torch.equal(total, sum(part.to(accumulator(dtype)) for part in parts).to(dtype))
        assert all(map(torch.equal, parts, copies))
        expected, _, again = kernels.normalize(head.formula, f, [total], None, dtype)
        assert torch.equal(partials, again)
        torch.testing.assert_close(f_hat, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.interpreted
@pytest.mark.parametrize(
    ("name", "dtype"),
    # The interpreter is slow: the one or the other of the dtypes whose sums are float32.
    [*((name, torch.float64) for name in HEADS), *zip(HEADS, itertools.cycle(DTYPES[1:]), strict=False)],
    ids=str,
)
def test_interpreted_kernels_match_the_twin(name, dtype):
    check_head(name, dtype, "cpu")


@pytest.mark.interpreted
@pytest.mark.parametrize("name", HEADS)
def test_interpreted_kernels_under_the_engine(name, use):
    use("head", "cpu", "triton")
    check_engine(name, ResNet().double(), torch.randn(3, 3, 5, 7, dtype=torch.float64))


# What else reads x, besides a convolution: one part of g more, whose strides are others or 0; or two.
READERS = {
    "convolution": lambda net, x: net.out(F.leaky_relu(net.conv(x) + net.pixels(x), 0.1).flatten(1)),
    "sum": lambda net, x: net.out(F.leaky_relu(net.conv(x), 0.1).flatten(1)) + 0.1 * x.sum((1, 2, 3))[:, None],
    "permuted": lambda net, x: net.out((net.conv(x).relu() + net.pixels(x.flip(2).mT.relu().mT)).relu().flatten(1)),
    "two": lambda net, x: net.out((net.conv(x) + net.pixels(x)).relu().flatten(1)) + x.abs().amax((1, 2, 3))[:, None],
}


@pytest.mark.interpreted
@pytest.mark.parametrize("method", ["gn", "pgn"])
@pytest.mark.parametrize("reader", READERS)
def test_interpreted_kernels_where_x_is_read_more_than_once(reader, method, use):
    use("join", "cpu", "triton")
    use("head", "cpu", "triton")
    layers = {"conv": nn.Conv2d(3, 4, 3, padding=1), "pixels": nn.Conv2d(3, 4, 1), "out": nn.Linear(140, 1)}
    net, x = Called(READERS[reader], **layers).double(), torch.randn(3, 3, 5, 7, dtype=torch.float64)
    with mock.patch.object(head_kernels(), "normalize", wraps=head_kernels().normalize) as normalize:
        check_engine(method, net, x)
    assert len(normalize.call_args.args[2]) == 2
    net.requires_grad_(False)
    check_engine(method, net, x)


def head_kernels():
    return implementation("head", "cpu", "triton")


def check_engine(name, net, x):
    expected = outputs_and_gradients(reference.normalize_gradient, net, x, **OPTIONS[name])
    assert_same(outputs_and_gradients(gnfast.normalize_gradient, net, x, strict=True, **OPTIONS[name]), expected)


def test_the_papers_methods_have_a_formula():
    assert {"gn", "gn0", "gn1", "gran", "gran-shift", "pgn", "pgn-table"} <= HEADS.keys()


@has_operators
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", [*DTYPES, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", HEADS)
def test_operators_match_the_twin(name, dtype, layout):
    check_head(name, dtype, "cpu", layout, "cpp")


@has_operators
@pytest.mark.parametrize("name", HEADS)
def test_engine_with_operators(name):
    operators = implementation("head", "cpu")
    with (
        mock.patch.object(operators, "normalize", wraps=operators.normalize) as normalize,
        mock.patch.object(operators, "pull", wraps=operators.pull) as pull,
    ):
        check_engine(name, ResNet().double(), torch.randn(3, 3, 5, 7, dtype=torch.float64))
    assert normalize.call_count == pull.call_count == 1


def both_ways(head, f, g, upstream, x, entry=None, wants=(True, True)):
    """f̂, s, c₀ and ∂L/∂x by the operators and by the twin."""
    for way in (head, plain(head)):
        f_hat, _, saved = heads.normalize(way, f, [Contribution(g, False)], x.dtype)
        yield f_hat, *heads.pull(way, saved, upstream, x, g, *wants, entry)


def assert_alike(actual, expected, tolerance):
    for left, right in zip(actual, expected, strict=True):
        assert left.dtype == right.dtype
        torch.testing.assert_close(left, right, rtol=tolerance, atol=tolerance, equal_nan=True)


@has_operators
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("size", [1e-30, 1e-25, 1e-6, 1, 1e4, 1e25, 1e36])
@pytest.mark.parametrize("name", HEADS)
def test_operators_are_no_less_exact_than_the_twin(name, size, dtype):
    limits = torch.finfo(dtype)
    if not limits.tiny < size < limits.max / 10:
        pytest.skip("outside the dtype's range")
    for size_of_f in (1e-20, 1e-3, 1, 100):
        given = [torch.randn(7, 1) * size_of_f, torch.randn(7, 3, 13, 5) * size, torch.randn(7, 1)]
        given = [t.to(dtype) for t in (*given, torch.randn(7, 3, 13, 5))]
        _, exact = both_ways(HEADS[name], *(t.double() for t in given))
        for truth, ours, theirs in zip(exact, *both_ways(HEADS[name], *given), strict=True):
            limits = torch.finfo(ours.dtype)
            # An entry in which two terms cancel has the error of the terms.
            scale = truth.abs().flatten(1).amax(1) if truth.dim() == 4 else truth.abs().flatten()
            inside = (scale < limits.max) & (scale > limits.tiny)
            error, bound = (((t - truth).abs().flatten(1 if t.dim() > 1 else 0)) for t in (ours, theirs))
            error, bound = ((e.reshape(7, -1).amax(1) / scale)[inside].square().sum().sqrt() for e in (error, bound))
            # Over all samples: in a single one, either may be lucky.
            assert error <= bound + limits.eps / 2


@has_operators
@pytest.mark.parametrize("name", HEADS)
def test_operators_where_numbers_are_extreme(name):
    head, nan, inf = HEADS[name], torch.nan, torch.inf
    values = torch.tensor([0, -0.0, 1, -2.5, 1e-160, -1e-310, 1e150, 1e300, inf, -inf, nan], dtype=torch.float64)
    f, m = torch.cartesian_prod(values, values).unbind(1)
    g = torch.stack([m + head.centre, torch.full_like(m, head.centre)], dim=1)
    for upstream in (torch.ones(()), torch.tensor(1e-300), torch.tensor(0.0)):
        given = f, g, upstream.double().expand(len(f)), torch.randn_like(g)
        assert_alike(*both_ways(head, *given), 1e-13)


@has_operators
@pytest.mark.parametrize("name", ["gn", "pgn"])
@pytest.mark.parametrize("shape", [(5,), (5, 1), (5, 1, 1, 1)], ids=str)
@pytest.mark.parametrize(
    ("x_dtype", "g_dtype", "f_dtype", "entry"),
    [
        (torch.float32, torch.float32, torch.float32, torch.bfloat16),
        (torch.float32, torch.bfloat16, torch.bfloat16, torch.bfloat16),
        (torch.float32, torch.float16, torch.float32, torch.float16),
        (torch.float64, torch.bfloat16, torch.float64, torch.bfloat16),
        (torch.bfloat16, torch.float32, torch.float32, None),
        (torch.float32, torch.float64, torch.float64, None),
    ],
    ids=str,
)
def test_operators_with_several_dtypes(name, shape, x_dtype, g_dtype, f_dtype, entry):
    f, upstream = torch.randn(shape, dtype=f_dtype), torch.randn([1] * len(shape), dtype=x_dtype).expand(shape)
    x, g = torch.randn(5, 3, 7, 5, dtype=x_dtype), torch.randn(5, 3, 7, 5, dtype=g_dtype)
    ours, theirs = both_ways(HEADS[name], f, g, upstream, x, entry)
    assert ours[0].shape == shape and ours[2].dtype == (entry or x_dtype)
    coarsest = max((t.dtype for t in theirs), key=lambda dtype: torch.finfo(dtype).eps)
    assert_alike(ours, theirs, TOLERANCE[coarsest])


@has_operators
@pytest.mark.parametrize("shape", [(0, 3, 5, 5), (4, 3, 0, 5), (1, 3, 5, 5), (4, 1)], ids=str)
@pytest.mark.parametrize("wants", [(True, True), (False, True), (True, False), (False, False)], ids=str)
def test_operators_with_few_entries(shape, wants):
    given = [torch.randn(size) for size in (shape[:1], shape, shape[:1], shape)]
    ours, theirs = both_ways(heads.GN, *given, wants=wants)
    for left, right in zip(ours, theirs, strict=True):
        assert (left is None) == (right is None)
        if left is not None:
            assert_alike([left], [right], 1e-6)


@has_operators
def test_operators_read_any_order_of_memory():
    x, g, f, upstream = (torch.randn(size) for size in ((6, 4, 9, 7), (6, 4, 9, 7), (6, 1), (6, 1)))
    expected, _ = both_ways(heads.PGN, f, g, upstream, x)
    orders = {
        "contiguous": lambda t: t,
        "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
        "last dimension first": lambda t: t.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1),
        "samples innermost": lambda t: t.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
        "with gaps": lambda t: torch.cat([t, t], dim=3)[..., :7],
    }
    for of_x, of_g in itertools.product(orders.values(), repeat=2):
        (f_hat, *rest), _ = both_ways(heads.PGN, f, of_g(g), upstream, of_x(x))
        assert_alike([f_hat], expected[:1], 1e-6)
        assert_alike(rest, expected[1:], 1e-6)
    expanded = torch.randn(6, 4, 1, 1).expand(6, 4, 9, 7)
    assert_alike(*both_ways(heads.PGN, f, expanded, upstream, x), 1e-6)


@has_operators
def test_operators_do_not_depend_on_threads():
    given = [torch.randn(size) for size in ((9, 1), (9, 3, 65, 67), (9, 1), (9, 3, 65, 67))]
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 4):
            torch.set_num_threads(count)
            found.append(next(both_ways(heads.GN, *given)))
    finally:
        torch.set_num_threads(threads)
    assert all(map(torch.equal, *found))


@has_operators
def test_operators_are_well_formed():
    operators, formula = torch.ops.gnfast, tuple(heads.gran(1.2, 0.03).formula)
    f, g, x = (torch.randn(size) for size in ((5, 1), (5, 3, 4, 7), (5, 3, 4, 7)))
    g = g.contiguous(memory_format=torch.channels_last)
    for squares, dtype in ((None, torch.float32), (torch.rand(5, 3, dtype=torch.float64), torch.bfloat16)):
        torch.library.opcheck(operators.head_normalize.default, (f, g, squares, dtype, *formula))
    _, partials = operators.head_normalize(f, g, None, torch.float32, *formula)
    for wants in itertools.product((True, False), repeat=2):
        torch.library.opcheck(operators.head_pull.default, (partials, f, x, g, 1.0, *wants, torch.bfloat16))


@has_operators
def test_operators_refuse_what_they_cannot_read():
    normalize, pull = torch.ops.gnfast.head_normalize, torch.ops.gnfast.head_pull
    f, g, formula = torch.randn(5, 1), torch.randn(5, 3), ["gn", False, 0.0, 1.0, 0.1]
    _, partials = normalize(f, g, None, torch.float32, *formula)
    for bad, message in (
        ((f.expand(5, 2), g, None), r"f: got sizes \[5, 2\], wanted one entry for each of 5 samples"),
        ((f[:4], g, None), "f: got sizes"),
        ((f, g, torch.rand(5, 2)), "squares: got float of sizes"),
        ((f, g, torch.rand(4, 2).double()), "squares: got double of sizes"),
        ((f, g[0, 0], None), "g: got a number"),
    ):
        with pytest.raises(ValueError, match=message):
            normalize(*bad, torch.float32, *formula)
    with pytest.raises(ValueError, match="kind: got none, wanted gn, gn0, shift or gran"):
        normalize(f, g, None, torch.float32, "none", *formula[1:])
    for bad, message in (
        ((partials, f, g, g[:4]), "g: got sizes"),
        ((partials.float(), f, g, g), "partials: got float"),
        ((partials, f[:4], g, g), "upstream: got sizes"),
    ):
        with pytest.raises(ValueError, match=message):
            pull(*bad, 0.0, True, True, torch.float32)


@pytest.mark.gpu
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", [*DTYPES, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", HEADS)
def test_kernels_match_the_twin(name, dtype, layout):
    check_head(name, dtype, "cuda", layout)


@pytest.mark.gpu
@pytest.mark.parametrize("name", HEADS)
def test_engine_with_kernels(name):
    net = models.build("resnet", resolution=32, width=0.1)[1].double().cuda()
    check_engine(name, net, torch.randn(3, 3, 32, 32, dtype=torch.float64, device="cuda"))
