"""Small critics in two kernels, against double backward."""

from itertools import pairwise

import pytest
import torch
from torch import nn

import gnfast
from gnfast import heads, reference
from gnfast.engine.small_critics import chain_of
from gnfast.kernels import mlp
from gnfast.kernels.backend import implementation
from tests.oracle import outputs_and_gradients, relative_error


def perceptron(*widths, slope=0.0, bias=True):
    layers = [nn.Flatten()]
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after, bias=bias), nn.LeakyReLU(slope) if slope else nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], 1, bias=bias))


# widths of x and of the hidden layers, slope, biases, batch
CASES = {
    "one hidden layer": ((2, 16), 0.0, True, 5),
    "three hidden layers": ((2, 20, 33, 7), 0.2, True, 67),
    "without biases": ((12, 9, 16), 0.1, False, 32),
    "four hidden layers": ((3, 5, 8, 13, 4), -0.3, True, 33),
    "one sample": ((2, 16, 16), 0.0, True, 1),
}


def check(case, method, device):
    """f̂ and every gradient, the kernels in float32 against double backward in float64."""
    widths, slope, bias, batch = CASES[case]
    net = perceptron(*widths, slope=slope, bias=bias).to(device)
    x = torch.randn(batch, widths[0], device=device)
    actual = outputs_and_gradients(gnfast.normalize_gradient, net, x, method=method)
    expected = outputs_and_gradients(reference.normalize_gradient, net.double(), x.double(), method=method)
    for key, value in expected.items():
        assert actual[key].dtype == torch.float32
        assert relative_error(actual[key].double(), value) <= 2e-5, key


@pytest.fixture
def interpreted(use, monkeypatch):
    use("mlp", "cpu", "triton")
    kernels, calls = implementation("mlp", "cpu"), []
    forward = kernels.forward
    monkeypatch.setattr(kernels, "forward", lambda *given: calls.append(given) or forward(*given))
    yield
    assert calls


@pytest.mark.interpreted
@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("case", CASES)
def test_interpreted_chains(case):
    check(case, ("gn", "pgn", "gran", "gran-shift")[list(CASES).index(case) % 4], "cpu")


@pytest.mark.interpreted
@pytest.mark.usefixtures("interpreted")
def test_interpreted_frozen_weights():
    net = perceptron(2, 16, 16).requires_grad_(False)
    x = torch.randn(7, 2, requires_grad=True)
    (expected,) = torch.autograd.grad(reference.normalize_gradient(net, x).sum(), x)
    (actual,) = torch.autograd.grad(gnfast.normalize_gradient(net, x).sum(), x)
    assert relative_error(actual, expected) < 1e-5
    net[1].weight.requires_grad_(True)
    gnfast.normalize_gradient(net, x).sum().backward()
    assert net[1].weight.grad is not None and net[1].bias.grad is None


def test_which_plans_are_chains():
    x = torch.randn(4, 12)
    assert chain_of(gnfast.trace(perceptron(12, 5, 6, slope=0.2), x)) == (0.2, (0, 2, 4), (1, 3, 5))
    shared = nn.Linear(12, 12)
    for net in (
        nn.Sequential(nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 3), nn.LeakyReLU(0.1), nn.Linear(3, 1)),
        nn.Sequential(nn.Linear(12, 5), nn.Linear(5, 1)),
        nn.Sequential(nn.ReLU(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 1)),
        nn.Sequential(shared, nn.ReLU(), shared, nn.ReLU(), nn.Linear(12, 1)),
        nn.Sequential(nn.Linear(12, 5), nn.Hardtanh(), nn.Linear(5, 1)),
    ):
        assert chain_of(gnfast.trace(net, x)) is None
    assert implementation("mlp", "cpu") is None
    assert mlp.fits([(64, 2), (1, 64)], torch.float32)
    assert not mlp.fits([(65, 2), (1, 65)], torch.float32)
    assert not mlp.fits([(16, 2), (1, 16)], torch.float64)


@pytest.mark.gpu
@pytest.mark.parametrize("method", heads.METHODS)
@pytest.mark.parametrize("case", CASES)
def test_chains(case, method):
    check(case, method, "cuda")


@pytest.mark.gpu
def test_wide_chains(monkeypatch):
    monkeypatch.setitem(CASES, "wide", ((64, 64, 60), 0.0, True, 500))
    check("wide", "gn", "cuda")
