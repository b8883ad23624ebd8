"""What the passes take of a network's tensors, made at once: every use of one counts, whatever its dtype."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gnfast
from gnfast import reference
from gnfast.kernels import operands
from gnfast.kernels.join import plain
from tests.engine.test_engine import Called
from tests.oracle import relative_error


@pytest.fixture(params=[False, True], ids=["stated", "fused"], autouse=True)
def fused(request, monkeypatch):
    monkeypatch.setattr(plain, "FUSES", request.param)
    return request.param


def whole(*shape):
    """Small whole numbers, which bfloat16 has, and their sums of products too."""
    return torch.randint(-1, 2, shape).float()


def both(net, x):
    """One weight in bfloat16, in its own dtype, folded, and as a tensor of its own (with a grad_fn)."""
    h = F.relu(F.conv2d(x, net.weight, net.bias, padding=1))
    h = F.avg_pool2d(F.conv2d(h, net.weight, padding=1), 2) * 4 + F.avg_pool2d(h, 2) * 4
    with torch.autocast("cpu", enabled=False):
        h = F.relu(F.conv2d(h.to(net.bias.dtype), net.weight, net.bias, padding=1))
    h = F.conv2d(h, 2 * net.weight)
    return F.linear(h.flatten(1), net.last, net.frozen)


def make():
    torch.manual_seed(0)
    tensors = {"weight": whole(2, 2, 3, 3), "bias": whole(2), "last": whole(1, 2), "frozen": whole(1)}
    net = Called(both, **tensors)
    net.frozen.requires_grad_(False)
    return net, whole(3, 2, 6, 6)


def gradients(way, net, x):
    parameters = [parameter for parameter in net.parameters() if parameter.requires_grad]
    f, n = way.value_and_grad_norm(net, x, **({"strict": True} if way is gnfast else {}))
    return f, torch.autograd.grad(f.sum() + 0 * n.sum(), parameters)


def test_every_use_adds_up_under_autocast():
    """Exactly: whole numbers are not rounded."""
    net, x = make()
    with torch.autocast("cpu", torch.bfloat16):
        f, actual = gradients(gnfast, net, x)
    wide = net.double()
    expected_f, expected = gradients(reference, wide, x.double())
    assert torch.equal(f.double(), expected_f)
    for grad, truth in zip(actual, expected, strict=True):
        assert grad.dtype == torch.float32 and torch.equal(grad.double(), truth)


def test_each_operand_is_made_once(fused, monkeypatch):
    made = []
    prepare = operands.prepare
    monkeypatch.setattr(operands, "prepare", lambda *given: made.extend(given[1]) or prepare(*given))
    net, x = make()
    with torch.autocast("cpu", torch.bfloat16):
        gradients(gnfast, net, x)
    # The weight in bfloat16, in its own dtype and order, and its fold, 2 · weight, the biases and the last weight; for
    # a GPU, x with them.
    assert len(made) == 7 + fused and len({form.fold for form in made}) == 2


def test_weights_may_change_after_the_backward_and_not_before_it():
    net, x = make()
    with torch.autocast("cpu", torch.bfloat16):
        f = gnfast.normalize_gradient(net, x, strict=True)
    with torch.no_grad():
        net.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        f.sum().backward()


def test_frozen_networks_in_inference_mode_and_after():
    with torch.inference_mode():
        inference, x = make()
        inference.requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16):
        expected = reference.value_and_input_grad(make()[0], x.clone())[1]
        found = gnfast.value_and_input_grad(inference, x.clone(), strict=True)[1]
        with torch.inference_mode():
            assert torch.equal(gnfast.value_and_input_grad(inference, x, strict=True)[1], found)
    assert relative_error(found, expected) < 2e-2


def test_gradients_of_biases_are_summed_in_float32():
    """A thousand equal terms, of which bfloat16 would lose most."""
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(2048, 1))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(1.0)
    x = torch.ones(3, 1, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        f = gnfast.value_and_grad_norm(net, x, strict=True)[0]
    grad = torch.autograd.grad((f * torch.tensor([[1.0], [1 / 256], [1.0]])).sum(), net[0].bias)[0]
    assert torch.equal(grad, torch.full((2,), 1024 * (2 + 1 / 256)))


def test_sums_before_activations_are_rounded_once():
    """Perceptrons whose biases matter: a bias that is added to a rounded product flips masks."""
    errors = torch.zeros(2)
    for seed in range(6):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(48, 64), nn.ReLU(), nn.Linear(64, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1))
        x = torch.randn(32, 48)
        exact = gradients(reference, net.double(), x.double())[1]
        net.float()
        for way, functions in enumerate((gnfast, reference)):
            with torch.autocast("cpu", torch.bfloat16):
                found = gradients(functions, net, x)[1]
            errors[way] += sum(relative_error(g.double(), t) ** 2 for g, t in zip(found, exact, strict=True))
    assert errors[0] <= 1.3**2 * errors[1]
