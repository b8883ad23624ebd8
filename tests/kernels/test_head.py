"""The fused kernels of the normalisers against their plain twins, and under the engine."""

import itertools
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gnfast
from gnfast import heads, models, reference
from gnfast.kernels.backend import implementation
from gnfast.kernels.layout import accumulator
from gnfast.plan.fused import Contribution, Pending
from tests.engine.test_engine import Called, ResNet
from tests.oracle import assert_same, outputs_and_gradients

HEADS = {name: heads.find(name) for name in heads.METHODS} | {"gran, options": heads.gran(1.2, 0.03)}
TOLERANCE = {torch.float64: 1e-14, torch.float32: 3e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}
DTYPES = [torch.float64, torch.float32, torch.float16]


def check_head(name, dtype, device, layout=torch.channels_last):
    """Both kernels against the twin, with dead samples, tiny and large gradients, and f of both signs and zero."""
    from gnfast.kernels.head import triton as heads_triton

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
    twin = head.__class__(**{**vars(head), "formula": None})
    f_hat, _, saved = heads.normalize(twin, f, [Contribution(g, False)], dtype)
    actual, same, partials = heads_triton.normalize(head.formula, f, [g], None, dtype)
    assert same is g
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(actual, f_hat, rtol=tolerance, atol=tolerance, equal_nan=True)
    check_two_terms(heads_triton, head, f, g)
    # Thirteen parts of every sample's squares, of which g itself cannot be the source.
    squares = (g.double() - head.centre).square().flatten(1).unflatten(1, (13, -1)).sum(2)
    pending = Pending(g.clone, None, lambda centre: (torch.full_like(g, torch.nan), squares))
    from_squares = heads.normalize(twin, f, [pending], dtype)[0]
    in_triton = heads_triton.normalize(head.formula, f, [torch.full_like(g, torch.nan)], squares, dtype)[0]
    for actual in (from_squares, in_triton):
        torch.testing.assert_close(actual, f_hat, rtol=tolerance, atol=tolerance, equal_nan=True)
    for wants in ((True, False), (False, True), (True, True)):
        expected = heads.pull(twin, saved, upstream, x, g, *wants)
        given = heads_triton.pull(head.formula, partials, upstream, x, g, *wants, dtype)
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
    method = {"method": "gran", "tau": 1.2, "eps": 0.03} if name == "gran, options" else {"method": name}
    expected = outputs_and_gradients(reference.normalize_gradient, net, x, **method)
    assert_same(outputs_and_gradients(gnfast.normalize_gradient, net, x, strict=True, **method), expected)


def test_every_named_method_has_a_formula():
    assert all(head.formula is not None for head in HEADS.values())
    assert implementation("head", "cpu") is None


@pytest.mark.gpu
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", [*DTYPES, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", HEADS)
def test_kernels_match_the_twin(name, dtype, layout):
    check_head(name, dtype, "cuda", layout)


@pytest.mark.gpu
@pytest.mark.parametrize("name", HEADS)
def test_engine_with_kernels(name):
    net = models.build("resnet", resolution=32, width=0.1)[1].double().cuda()
    check_engine(name, net, torch.randn(3, 3, 32, 32, dtype=torch.float64, device="cuda"))
