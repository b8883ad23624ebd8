"""The fused kernels of the normalisers against their plain twins, and under the engine."""

import functools
import itertools

import pytest
import torch

import gnfast
from gnfast import heads, models, reference
from gnfast.kernels.backend import implementation
from tests.engine.test_engine import ResNet
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
    f_hat, saved = heads.normalize(twin, f, g, None, dtype)
    actual, partials = heads_triton.normalize(head.formula, f, g, None, dtype)
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(actual, f_hat, rtol=tolerance, atol=tolerance, equal_nan=True)
    # Thirteen parts of every sample's squares, of which g itself cannot be the source.
    squares = (g.double() - head.centre).square().flatten(1).unflatten(1, (13, -1)).sum(2)
    for normalize in (
        lambda *given: heads.normalize(twin, *given),
        functools.partial(heads_triton.normalize, head.formula),
    ):
        from_squares = normalize(f, torch.full_like(g, torch.nan), squares, dtype)[0]
        torch.testing.assert_close(from_squares, f_hat, rtol=tolerance, atol=tolerance, equal_nan=True)
    for wants in ((True, False), (False, True), (True, True)):
        expected = heads.pull(twin, saved, upstream, x, g, *wants)
        given = heads_triton.pull(head.formula, partials, upstream, x, g, *wants, dtype)
        for left, right in zip(given, expected, strict=True):
            if right is None:
                assert left is None
                continue
            assert left.stride() == right.stride() and left.dtype == right.dtype
            torch.testing.assert_close(left, right, rtol=tolerance, atol=tolerance, equal_nan=True)


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
