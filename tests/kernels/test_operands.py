"""Operands, made at once: the plain twin against autograd, the Triton kernel against the twin."""

import contextlib
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gnfast
from gnfast import reference
from gnfast.bench.gpu_ways import gpu_ways
from gnfast.kernels import operands, tables
from gnfast.kernels.operands import Fold, Form, Spread, plain
from tests.oracle import assert_matches_double_backward, outputs_and_gradients, relative_error

LAYOUTS = [torch.contiguous_format, torch.channels_last]
FOLDS = [
    Fold((2, 2)),
    Fold((1, 2)),
    Fold((3, 2), mean=False),
    Fold((2, 2), mean=False, transposed=1),
    Fold((3, 1), transposed=1),
    Fold((2, 3), mean=False, transposed=2),
]
# Two roundings of the last bit: to where sums end, and from there to where a fold's quotient goes.
TOLERANCE = {torch.float64: 1e-15, torch.float32: 2e-7, torch.bfloat16: 4e-3, torch.float16: 5e-4}


@pytest.mark.parametrize("fold", [*FOLDS, Spread((1, 2, 3)), Spread((6, 2, 3), 6), Spread((6, 2, 3), 1)])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_gradients_are_the_adjoint(fold, layout):
    weight = torch.randn(4, 6, 3, 2, dtype=torch.float64).contiguous(memory_format=layout)
    weight = (weight[:, :, 0, 0] if isinstance(fold, Spread) else weight).requires_grad_()
    form = Form(torch.float64, fold)
    (made,) = operands.prepare([weight], [form])
    seed = torch.randn_like(made)
    (expected,) = torch.autograd.grad(made, weight, seed)
    (grad,) = plain.gradients([seed], [weight], [form])
    assert relative_error(grad, expected) < 1e-14


def test_what_has_its_form_is_itself():
    sources = [torch.randn(3), torch.randn(2, 3, 1, 2).contiguous(memory_format=torch.channels_last)]
    forms = [Form(torch.float32), Form(torch.float32, channels_last=True)]
    assert all(a is b for a, b in zip(operands.prepare(sources, forms), sources, strict=True))
    assert operands.prepare([], []) == operands.gradients([], [], []) == []


def cases(source_dtype, dtype, device):
    """Sources and forms: layouts, folds, vectors, matrices with any strides, more than one launch takes."""

    def made(*shape, layout=torch.contiguous_format):
        t = torch.randn(shape, dtype=torch.float64, device=device).to(source_dtype)
        return t.contiguous(memory_format=layout)

    plain_form, last = Form(dtype), Form(dtype, channels_last=True)
    yield made(5), plain_form
    yield made(), plain_form
    yield made(1, 1, 1, 1), last
    yield made(7, 3).t(), plain_form
    yield made(7, 6)[:, ::2], plain_form
    yield made(2, 3, 1, 2, 2), plain_form
    yield made(2, 3, 1, 2, 2).transpose(0, 3), plain_form
    yield made(0, 3, 2, 2), last
    yield made(33, 9, 2, 2), last
    yield made(33, 9, 2, 2), Form(source_dtype, channels_last=True)
    yield made(33, 9, 2, 2), Form(source_dtype)
    yield made(33, 9, 2, 2, layout=torch.channels_last), Form(source_dtype, channels_last=True)
    for layout, fold, last in itertools.product(LAYOUTS, FOLDS, (False, True)):
        yield made(4, 6, 3, 2, layout=layout), Form(dtype, fold, last)
    for layout in LAYOUTS:
        yield made(3, 5, 2, 3, layout=layout), plain_form
        yield made(3, 5, 2, 3, layout=layout), Form(dtype, channels_last=True)
    for spread, last in itertools.product(
        (Spread((5, 2, 3)), Spread((30, 2, 3), 6), Spread((30, 3, 1), 1)), (False, True)
    ):
        yield made(2, 30), Form(dtype, spread, last)
    yield from [(made(3), plain_form)] * 10


def check(source_dtype, dtype, device):
    """The Triton kernel against the twin, both ways."""
    from gnfast.kernels.operands import triton

    sources, forms = zip(*cases(source_dtype, dtype, device), strict=True)
    expected = plain.prepare(sources, forms)
    found = triton.prepare(sources, forms)
    for actual, wanted, source, form in zip(found, expected, sources, forms, strict=True):
        assert (actual is source) == (wanted is source)
        assert actual.shape == wanted.shape and actual.dtype == form.dtype
        assert actual.is_contiguous(memory_format=torch.channels_last) or not form.channels_last
        torch.testing.assert_close(actual, wanted, rtol=TOLERANCE[form.dtype], atol=TOLERANCE[form.dtype])
    seeds = [torch.randn_like(t) for t in expected]
    expected = plain.gradients(seeds, sources, forms)
    found = triton.gradients(seeds, sources, forms)
    for actual, wanted, source, form in zip(found, expected, sources, forms, strict=True):
        assert actual.dtype == source_dtype and actual.shape == source.shape
        by_kernel = not isinstance(form.fold, Fold) or form.fold.transposed < 2
        if source.is_contiguous() or (source.dim() == 4 and by_kernel):
            assert actual.stride() == source.stride() or not source.numel()
        torch.testing.assert_close(actual, wanted, rtol=2 * TOLERANCE[source_dtype], atol=2 * TOLERANCE[source_dtype])


DTYPES = [(torch.float32, torch.float16), (torch.float64, torch.float64), (torch.float16, torch.float32)]


@pytest.mark.interpreted
@pytest.mark.parametrize(("source_dtype", "dtype"), DTYPES, ids=str)
def test_interpreted_kernels_match_the_twin(source_dtype, dtype):
    check(source_dtype, dtype, "cpu")


# The interpreter cuts bfloat16 off.
@pytest.mark.gpu
@pytest.mark.parametrize(("source_dtype", "dtype"), [*DTYPES, (torch.float32, torch.bfloat16)], ids=str)
def test_kernels_match_the_twin(source_dtype, dtype):
    check(source_dtype, dtype, "cuda")


class Critic(nn.Module):
    """Folded, pooled and plain convolutions, a weight that is used twice, and a linear layer of a map."""

    def __init__(self):
        super().__init__()
        self.first, self.pixels = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(3, 6, 1)
        self.second, self.last = nn.Conv2d(6, 6, 3, padding=1), nn.Linear(24, 1)

    def forward(self, x):
        h = self.second(F.relu(self.first(x)))
        h = F.relu(F.avg_pool2d(h, 2) + self.pixels(F.avg_pool2d(x, 2)))
        return self.last(F.relu(self.second(h) + h).flatten(1))


@pytest.mark.interpreted
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_interpreted_engine(layout):
    """All that a GPU does, in float64 and under autocast."""
    net, x = Critic().double().to(memory_format=layout), torch.randn(3, 3, 4, 4, dtype=torch.float64)
    with gpu_ways():
        assert_matches_double_backward(net, x)
        # The gradient of a sum is one number, expanded.
        f = gnfast.value_and_grad_norm(net, x, strict=True)[0]
        (found,) = torch.autograd.grad(f.sum(), net.second.bias)
    (expected,) = torch.autograd.grad(net(x).sum(), net.second.bias)
    assert relative_error(found, expected) < 1e-12
    truth = outputs_and_gradients(reference.normalize_gradient, net, x)
    net.float()
    errors = []
    for function, way in ((reference.normalize_gradient, contextlib.nullcontext()), (strict, gpu_ways())):
        with torch.autocast("cpu", torch.float16), way:
            seen = outputs_and_gradients(function, net, x.float())
        assert all(value.dtype == torch.float32 for value in seen.values())
        errors.append(sum(relative_error(seen[name].double(), value) ** 2 for name, value in truth.items()))
    assert errors[1] <= 4 * errors[0]


class Gapped(Critic):
    """Biases that are every other entry of a tensor, and one entry expanded."""

    def __init__(self):
        super().__init__()
        self.biases, self.one = nn.Parameter(torch.randn(12)), nn.Parameter(torch.randn(1))

    def forward(self, x):
        h = F.relu(F.conv2d(x, self.first.weight, self.biases[::2], padding=1))
        h = F.relu(F.conv2d(h, self.second.weight, self.one.expand(6), padding=1) + self.pixels(x))
        h = F.relu(F.linear(h.mean((2, 3)), self.second.weight[:, :, 1, 1], self.biases[1::2]))
        return F.linear(h, self.last.weight[:, ::4], self.biases[3::12])


@pytest.mark.interpreted
def test_interpreted_biases_with_gaps():
    net, x = Gapped().double(), torch.randn(3, 3, 4, 4, dtype=torch.float64)
    with gpu_ways():
        assert_matches_double_backward(net, x)


def strict(net, x):
    return gnfast.normalize_gradient(net, x, strict=True)


@pytest.mark.gpu
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_engine(layout):
    net = Critic().double().to("cuda", memory_format=layout)
    assert_matches_double_backward(net, torch.randn(3, 3, 4, 4, dtype=torch.float64, device="cuda"))


@pytest.mark.gpu
def test_a_graph_that_is_captured_first_gives_the_same():
    """Without tables, which cannot be made while a graph is captured."""
    net, x = Critic().cuda(), torch.randn(3, 3, 4, 4, device="cuda")
    parameters = list(net.parameters())

    def step():
        with torch.autocast("cuda", torch.bfloat16):
            f_hat = strict(net, x)
        return torch.autograd.grad(f_hat.sum(), parameters)

    expected = step()
    tables._TABLES.clear()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step()
    graph.replay()
    assert not tables._TABLES
    for grad, wanted in zip(found, expected, strict=True):
        assert relative_error(grad, wanted) < 2e-2
