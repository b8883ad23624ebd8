"""`memory="low"`: a backward in six passes that computes activations again gives what it gives from those kept."""

import copy

import pytest
import torch
from torch import nn

import gnfast
from gnfast import GradientNorm, InputError, penalties, reference
from gnfast.bench.count import peak_bytes
from gnfast.kernels.join import plain
from tests.engine.test_norms_of_x import IMAGE, LAYERS, between, normal
from tests.engine.test_six_passes import NETWORKS
from tests.oracle import PAIRS, assert_same, outputs_and_gradients


@pytest.fixture(params=NETWORKS)
def net(request):
    return NETWORKS[request.param]().double()


@pytest.fixture
def x():
    return torch.randn(4, 3, 6, 7, dtype=torch.float64)


def assert_agrees(net, x, tolerance=0):
    """With double backward, and with what is kept, to the last bit if nothing is said."""
    for fast, oracle in PAIRS.values():
        low, kept = (outputs_and_gradients(fast, net, x, strict=True, memory=memory) for memory in ("low", "keep"))
        assert_same(low, outputs_and_gradients(oracle, net, x))
        assert_same(low, kept, tolerance)


@pytest.mark.parametrize("fused", [False, True], ids=["as on a CPU", "fused as on a GPU"])
def test_every_gradient(net, x, fused, monkeypatch):
    monkeypatch.setattr(plain, "FUSES", fused)
    assert_agrees(net, x)
    net[0].requires_grad_(False) if isinstance(net, nn.Sequential) else next(net.parameters()).requires_grad_(False)
    assert_agrees(net, x)


@pytest.mark.parametrize("name", LAYERS)
def test_norms(name):
    make, conv, size = LAYERS[name]
    # From statistics, PyTorch's kernels round in another order than with them.
    assert_agrees(between(make(), conv), normal(5, *size), tolerance=1e-12)


def test_without_a_gradient_of_x(net, x):
    found = []
    for options in ({"memory": "low", "strict": True}, {"impl": "reference"}):
        net.zero_grad()
        (gnfast.normalize_gradient(net, x, **options).square().sum() + penalties.r1(net, x, **options)).backward()
        found.append({name: p.grad for name, p in net.named_parameters()})
    assert_same(*found)


def test_two_calls_before_one_backward_and_a_second_backward(net, x):
    found = []
    for function, options in ((gnfast.normalize_gradient, {"memory": "low"}), (reference.normalize_gradient, {})):
        total = function(net, x, **options).sin().sum() + function(net, x * 2, **options).cos().sum()
        wanted = dict(net.named_parameters())
        for retained in (True, False):
            grads = torch.autograd.grad(total, [*wanted.values()], retain_graph=retained)
            found.append(dict(zip(wanted, grads, strict=True)))
    assert_same(found[0], found[2])
    assert_same(found[1], found[0], tolerance=0)


def test_running_statistics_advance_once():
    net, x = between(nn.BatchNorm2d(4), LAYERS["batch norm"][1]), normal(5, *IMAGE)
    twin = copy.deepcopy(net)
    gnfast.normalize_gradient(net, x, memory="low", strict=True).sum().backward()
    twin(x)
    assert_same(*({name: b.double() for name, b in module.named_buffers()} for module in (net, twin)), tolerance=1e-12)


def test_wrappers_and_kept_recordings(x):
    net = NETWORKS["silu"]().double()
    expected = outputs_and_gradients(reference.normalize_gradient, net, x)
    wrapped = GradientNorm(net, memory="low", static=True, strict=True)
    for _ in range(3):
        assert_same(outputs_and_gradients(lambda _, x: wrapped(x), net, x), expected)


def test_autocast(x):
    """Passes that begin in another dtype than x's."""
    net, found = NETWORKS["silu"](), []
    for memory in ("low", "keep"):
        with torch.autocast("cpu", torch.bfloat16):
            found.append(outputs_and_gradients(gnfast.normalize_gradient, net, x.float(), strict=True, memory=memory))
    assert_same(*found, tolerance=0)


def test_less_is_kept():
    """Of two calls before one backward, the activations of one are there at a time."""
    layers = [layer for _ in range(6) for layer in (nn.Conv2d(8, 8, 3, padding=1), nn.SiLU())]
    net, x = nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * 24 * 24, 1)), torch.randn(16, 8, 24, 24)

    def step(memory):
        total = sum(gnfast.normalize_gradient(net, x * k, memory=memory, strict=True).sum() for k in (1, 2))
        torch.autograd.grad(total, [*net.parameters()])

    low, kept = (peak_bytes(lambda memory=memory: step(memory)) for memory in ("low", "keep"))
    # At least four of the six inputs of SiLUs, of one call.
    assert low < kept - 4 * x.nbytes


def test_bad_input(x):
    net = NETWORKS["silu"]().double()
    functions = [fast for fast, _ in PAIRS.values()]
    for function in (*functions, lambda net, x, memory: GradientNorm(net, memory=memory)(x)):
        with pytest.raises(InputError, match="memory: got 'small', wanted 'keep' or 'low'"):
            function(net, x, memory="small")
