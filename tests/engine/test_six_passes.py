"""Critics that are curved, or have several logits per sample: six passes, and double backward's numbers."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import gnfast
from gnfast import UnsupportedError, penalties, reference
from gnfast.engine.handout import handing_out
from gnfast.kernels.join import plain
from tests.engine.test_engine import Called
from tests.oracle import (
    assert_agree,
    assert_matches_double_backward,
    assert_same,
    assert_same_state,
    outputs_and_gradients,
    relative_error,
)


class Gated(nn.Module):
    """A gate, a value that is read by what is curved and by what is not, and a tensor times itself."""

    def __init__(self):
        super().__init__()
        self.value, self.gate = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
        self.deep, self.last = nn.Conv2d(4, 5, 3, padding=1), nn.Linear(5, 1)

    def forward(self, x):
        h = F.relu(self.value(x)) * self.gate(x).sigmoid()
        h = self.deep(h) + F.pad(h * h, (0, 0, 0, 0, 0, 1))
        return self.last((h / (1 + h.exp())).mean((2, 3)) + F.leaky_relu(h, 0.2).amax((2, 3)))


def detached(net, x):
    """A constant that is curved in x, above and below what is curved."""
    h = net.conv(x)
    h = F.silu(h + 0.3 * h.tanh().detach())
    return net.linear((h * h.detach().sigmoid()).flatten(1)) + h.detach().square().mean((1, 2, 3))[:, None]


def residual(net, x):
    """What is curved lies on one branch, at the end; the other branch is read by both kinds."""
    h = F.relu(net.conv(x))
    return net.linear((F.avg_pool2d(net.other(h), 2) + F.silu(net.other(F.avg_pool2d(h, 2)))).flatten(1))


def smooth(activation, **options):
    return lambda: nn.Sequential(
        *(nn.Conv2d(3, 5, 3, padding=1), activation(**options), nn.AvgPool2d((2, 1)), nn.Conv2d(5, 4, 3, padding=1)),
        *(activation(**options), nn.Conv2d(4, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(63, 1)),
    )


def to_one(*last):
    """One number per sample, and modules, made anew, on top of it."""
    return lambda: nn.Sequential(
        *(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(100, 1), *(make() for make in last))
    )


def map_of(*last):
    return lambda: nn.Sequential(
        *(nn.Conv2d(3, 5, 3, padding=1), nn.LeakyReLU(0.2), nn.Conv2d(5, 2, 3), *(make() for make in last))
    )


NETWORKS = {
    "silu": smooth(nn.SiLU),
    "softplus": smooth(nn.Softplus, beta=2.0, threshold=3.0),
    "elu": smooth(nn.ELU, alpha=0.7),
    "gelu": smooth(nn.GELU, approximate="tanh"),
    "tanh": smooth(nn.Tanh),
    "gated": Gated,
    "detached": lambda: Called(detached, conv=nn.Conv2d(3, 4, 3), linear=nn.Linear(80, 1)),
    "residual": lambda: Called(
        residual, conv=nn.Conv2d(3, 4, 3, padding=1), other=nn.Conv2d(4, 4, 3, padding=1), linear=nn.Linear(36, 1)
    ),
    "sigmoid at the end": to_one(nn.Sigmoid),
    "functions of the logit": to_one(nn.Tanh, lambda: nn.Linear(1, 1), nn.Softplus),
    "map": map_of(),
    "curved map": map_of(nn.Tanh),
    "weighted curved map": map_of(nn.Sigmoid, nn.Flatten, lambda: nn.Linear(40, 1)),
    "curved first": lambda: nn.Sequential(nn.SiLU(), *to_one()()),
}


@pytest.fixture(params=NETWORKS)
def net(request):
    return NETWORKS[request.param]().double()


@pytest.fixture
def x():
    return torch.randn(4, 3, 6, 7, dtype=torch.float64)


@pytest.mark.parametrize("fused", [False, True], ids=["as on a CPU", "fused as on a GPU"])
def test_every_gradient_is_double_backwards(net, x, fused, monkeypatch):
    monkeypatch.setattr(plain, "FUSES", fused)
    assert_matches_double_backward(net, x)
    assert_matches_double_backward(net, x[:1])


@pytest.mark.parametrize("frozen", ["the first", "all but the first", "all"])
def test_frozen_weights(net, x, frozen):
    parameters = [*net.parameters()]
    half = 2 if len(parameters) > 2 else 1
    for p in {"the first": parameters[:half], "all but the first": parameters[half:], "all": parameters}[frozen]:
        p.requires_grad_(False)
    assert_matches_double_backward(net, x)


def test_without_a_gradient_of_x(net, x):
    """A critic's step: other values are kept than where x needs a gradient."""
    found = []
    for function in (gnfast.normalize_gradient, reference.normalize_gradient):
        net.zero_grad()
        function(net, x).square().sum().backward()
        found.append({name: p.grad for name, p in net.named_parameters()})
    assert_same(*found)


def test_penalties(net, x):
    """V alone, without a gradient of f."""
    found = []
    for options in ({"strict": True}, {"impl": "reference"}):
        net.zero_grad()
        penalties.r1(net, x, **options).backward()
        found.append({name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in net.named_parameters()})
    assert_same(*found)


def test_two_calls_before_one_backward_and_a_second_backward(net, x):
    def run(module):
        leaf = x.clone().requires_grad_()
        total = module.normalize_gradient(net, leaf).sin().sum() + module.normalize_gradient(net, leaf * 2).cos().sum()
        wanted = [leaf, *net.parameters()]
        once = torch.autograd.grad(total, wanted, retain_graph=True)
        return *once, *torch.autograd.grad(total, wanted)

    assert_agree(run)


@pytest.mark.parametrize("quiet", [torch.no_grad, torch.inference_mode])
def test_values_without_gradients(net, x, quiet):
    with quiet():
        actual = gnfast.normalize_gradient(net, x, strict=True)
    assert relative_error(actual, reference.normalize_gradient(net, x).detach()) < 1e-12


def test_a_kept_recording(net, x):
    expected = outputs_and_gradients(reference.normalize_gradient, net, x)
    for _ in range(3):
        assert_same(outputs_and_gradients(gnfast.normalize_gradient, net, x, static=True), expected)


def test_second_derivatives_of_the_result_raise(net, x):
    f_hat = gnfast.normalize_gradient(net, x.requires_grad_())
    (grad,) = torch.autograd.grad(f_hat.sum(), x, create_graph=True)
    with pytest.raises(UnsupportedError, match="impl='reference'"):
        grad.sum().backward()


def test_the_norm_of_the_normalised_gradient(x):
    """By the passes without a graph; else it has third derivatives."""
    net = NETWORKS["silu"]().double()
    with pytest.raises(UnsupportedError, match="return_grad_norm"):
        gnfast.normalize_gradient(net, x, return_grad_norm=True, strict=True)
    with pytest.warns(gnfast.FallbackWarning, match="return_grad_norm"):
        f_hat, norm = gnfast.normalize_gradient(net, x, return_grad_norm=True)
    with torch.no_grad():
        alone = gnfast.normalize_gradient(net, x, return_grad_norm=True, strict=True)
        own = gnfast.normalize_gradient(
            net, x, method=lambda f, n: f / (n + f.abs()), static=True, return_grad_norm=True, strict=True
        )
    assert relative_error(own[1], norm) < 1e-10
    assert relative_error(alone[0], f_hat) < 1e-12 and relative_error(alone[1], norm) < 1e-10


@pytest.mark.parametrize("method", gnfast.heads.METHODS)
@pytest.mark.parametrize("name", ["silu", "sigmoid at the end", "map"])
def test_every_method(name, method, x):
    net = NETWORKS[name]().double()
    expected = outputs_and_gradients(reference.normalize_gradient, net, x, method=method)
    assert_same(outputs_and_gradients(gnfast.normalize_gradient, net, x, method=method, strict=True), expected)


class Receiver:
    """Takes all gradients of leaves as they are handed out."""

    bucket_bytes = 1

    def __init__(self):
        self.taken = {}

    def takes(self, operand):
        return operand.is_leaf

    def take(self, gradients):
        for operand, grad in gradients:
            self.taken[operand] = self.taken.get(operand, 0) + grad


def test_gradients_that_are_handed_out(net, x):
    parameters = dict(net.named_parameters())
    reference.normalize_gradient(net, x).sin().sum().backward()
    expected, receiver = {name: p.grad for name, p in parameters.items()}, Receiver()
    net.zero_grad()
    with handing_out(receiver):
        gnfast.normalize_gradient(net, x, strict=True).sin().sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in parameters.values())
    assert_same({name: receiver.taken.get(p) for name, p in parameters.items()}, expected)


def test_in_place(x):
    net = nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.SiLU(inplace=True), nn.Conv2d(5, 4, 3), nn.ELU(0.5, True), nn.Flatten(),
        nn.Linear(24, 1),
    ).double()  # fmt: skip
    assert_matches_double_backward(net, x)


def test_what_a_step_costs(x):
    """Six forwards below what is curved, four above, and four for a function of one number per sample."""
    plans = {name: gnfast.trace(NETWORKS[name]().double(), x, rewrite=False) for name in NETWORKS}
    forwards = {name: sum(plan.flops(True).values()) / plan.flops()["forward"] for name, plan in plans.items()}
    assert forwards["sigmoid at the end"] <= 4 and forwards["functions of the logit"] <= 4
    assert all(forwards[name] <= 6.05 for name in plans)
    assert "second" not in str(plans["sigmoid at the end"]) and "four passes up to %4" in str(
        plans["sigmoid at the end"]
    )
    assert "six passes from %5 down, four above" in str(plans["silu"]) and "second" in str(plans["silu"])
    net, x = NETWORKS["silu"]().double(), x.requires_grad_()
    with FlopCounterMode(display=False) as counter:
        gnfast.normalize_gradient(net, x, rewrite=False).sum().backward()
    assert counter.get_total_flops() == pytest.approx(len(x) * sum(plans["silu"].flops(True).values()), rel=1e-2)


def test_low_precision(net):
    """Errors within twice those of plain double backward at the same precision, both against float64."""
    low, x = copy.deepcopy(net).bfloat16(), torch.randn(16, 3, 6, 7).bfloat16()
    truth = outputs_and_gradients(reference.value_and_input_grad, copy.deepcopy(low).double(), x.double())
    errors = []
    for function in (gnfast.value_and_input_grad, reference.value_and_input_grad):
        seen = outputs_and_gradients(function, low, x)
        errors.append({name: relative_error(value.double(), truth[name]) for name, value in seen.items()})
    for name, error in errors[0].items():
        assert error <= 2 * errors[1][name] + 8 * torch.finfo(torch.bfloat16).eps, name


@pytest.mark.parametrize("static", [False, True])
def test_a_refused_norm_leaves_no_trace(static, x):
    """What was recorded before is run again by double backward: running statistics and random numbers move on once."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(80, 1)).double()
    twin = copy.deepcopy(net)
    for _ in range(3):
        torch.manual_seed(0)
        with pytest.raises(UnsupportedError, match="return_grad_norm"):
            gnfast.normalize_gradient(net, x, return_grad_norm=True, static=static, strict=True)
        f_hat, _ = gnfast.normalize_gradient(net, x, return_grad_norm=True, static=static)
        place = torch.get_rng_state()
        torch.manual_seed(0)
        assert relative_error(f_hat, reference.normalize_gradient(twin, x)) < 1e-12
        assert torch.equal(place, torch.get_rng_state())
        assert_same_state(net, twin)
