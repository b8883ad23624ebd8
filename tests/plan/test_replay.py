"""Recordings that follow the last one: every call is what it would be without it, whatever came before."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gnfast
from gnfast import UnsupportedError, reference
from gnfast.engine import recording
from gnfast.plan.replay import Replay
from tests.oracle import assert_same, outputs_and_gradients

DTYPE = torch.float64


class Net(nn.Module):
    """Does what it is told, by what no key shows."""

    def __init__(self):
        super().__init__()
        self.first, self.second = (nn.Parameter(torch.randn(6, 6, dtype=DTYPE)) for _ in range(2))
        self.bias, self.frozen = nn.Parameter(torch.randn(6, dtype=DTYPE)), torch.randn(6, dtype=DTYPE)
        self.act = lambda net, h: h

    def forward(self, x):
        h = self.act(self, F.relu(F.linear(x, self.first, self.bias)))
        return F.linear(h, self.second).abs().sum(1)


class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h):
        return h.view_as(h)

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad


def without_grad(net, h):
    with torch.no_grad():
        constant = h * 2 + 1
    return h + constant


def detached_branch(net, h):
    return h + F.relu(h.detach() - 1)


def in_place(net, h):
    return F.leaky_relu(h - 0.5, 0.2, inplace=True)


def in_float32(net, h):
    return F.linear(h.float(), net.second.float()).double()


VARIANTS = {
    "nothing": lambda net, h: h,
    "relu": lambda net, h: F.relu(h - 0.5),
    "slope": lambda net, h: F.leaky_relu(h - 0.5, 0.3),
    "another slope": lambda net, h: F.leaky_relu(h - 0.5, 0.4),
    "in place": in_place,
    "a number": lambda net, h: h * 2,
    "the same as a float": lambda net, h: h * 2.0,
    "a truth value": lambda net, h: h * True,
    "first weight": lambda net, h: F.linear(h, net.first),
    "second weight": lambda net, h: F.linear(h, net.second),
    "another bias": lambda net, h: F.linear(h, net.first, net.frozen),
    "the bias": lambda net, h: F.linear(h, net.first, net.bias),
    "a new weight": lambda net, h: F.linear(h, net.first * 2, net.bias),
    "a frozen copy": lambda net, h: F.linear(h, net.first.detach(), net.bias),
    "a factor": lambda net, h: h * net.frozen,
    "an addend": lambda net, h: h + net.frozen,
    "the sum with itself": lambda net, h: h + h,
    "the difference": lambda net, h: h - F.relu(h - 0.5),
    "the other difference": lambda net, h: F.relu(h - 0.5) - h,
    "no_grad": without_grad,
    "detached": detached_branch,
    "float32": in_float32,
    "flipped": lambda net, h: h.flip(1),
    "an index": lambda net, h: h[:, torch.tensor([3, 1, 0, 2, 5, 5])],
    "another index": lambda net, h: h[:, torch.tensor([3, 1, 0, 2, 5, 4])],
    "by tuples": lambda net, h: h.reshape(4, 2, 3).permute((0, 2, 1)).flatten(1),
    "by lists": lambda net, h: h.reshape([4, 3, 2]).permute([0, 2, 1]).flatten(1),
}
REFUSED = {
    "unknown": lambda net, h: torch.i0(h),
    "custom Function": lambda net, h: Twice.apply(h),
    "a value of x": lambda net, h: h * float(h.mean()),
}


@pytest.fixture
def x():
    return torch.randn(4, 6, dtype=DTYPE)


def check(net, x, expected=None):
    """The same numbers; float32 in between comes out the same on both ways, up to its rounding."""
    tolerance = 1e-6 if net.act is in_float32 else 1e-10
    actual = outputs_and_gradients(gnfast.normalize_gradient, net, x, strict=True)
    assert_same(actual, expected or outputs_and_gradients(reference.normalize_gradient, net, x), tolerance)


@pytest.mark.parametrize("first", VARIANTS)
def test_another_forward_than_the_last_time(first, x):
    net, expected = Net(), {}
    for name, net.act in VARIANTS.items():
        expected[name] = outputs_and_gradients(reference.normalize_gradient, net, x)
    for second in VARIANTS:
        for name in (first, second, second):
            net.act = VARIANTS[name]
            check(net, x, expected[name])


@pytest.mark.parametrize("refused", REFUSED)
def test_what_is_refused_is_refused_after_anything(refused, x):
    for name in VARIANTS:
        net = Net()
        for _ in range(2):
            net.act = VARIANTS[name]
            check(net, x)
        net.act = REFUSED[refused]
        with pytest.raises(UnsupportedError):
            gnfast.normalize_gradient(net, x, strict=True)
        net.act = VARIANTS[name]
        check(net, x)


@pytest.mark.parametrize("of", [torch.tensor, np.array])
def test_numbers_that_are_written_in_place(of, x):
    """In a tuple that is the same one on every call."""
    net, number = Net(), of(0)
    for key in [(slice(None), number)] + [(slice(None), slice(number, 3))] * (of is torch.tensor):
        net.act = lambda net, h, key=key: h + h[key].reshape(4, -1).sum(1, True)
        for _ in range(3):
            number[...] = 0
            check(net, x)
            number[...] = 2
            check(net, x)


@pytest.mark.filterwarnings("ignore::gnfast.FallbackWarning")
def test_zeros_have_signs(x):
    net = Net()
    net.act = lambda net, h: ((h + 1) / net.zero).clamp(0, 1)
    for net.zero in (0.0, 0.0, -0.0, -0.0, 0.0):
        f, _ = gnfast.value_and_input_grad(net, x)
        assert torch.equal(f, net(x))


def test_reshapes_by_numbers_know_the_batch(x):
    net = Net()
    net.act = lambda net, h: h.reshape(4, -1).reshape(len(h), -1)
    for batch in (x, x, torch.cat([x, x]), x):
        plan = gnfast.trace(net, batch)
        assert plan.takes_six == (len(batch) > 4)
    check(net, x)


def test_other_shapes_and_dtypes_of_the_same_weights(x):
    net = Net()
    net.act = VARIANTS["the bias"]
    for _ in range(2):
        check(net, x)
    net.first.data, net.bias.data = torch.randn(5, 6, dtype=DTYPE), torch.randn(5, dtype=DTYPE)
    net.act, net.second.data = VARIANTS["nothing"], torch.randn(3, 5, dtype=DTYPE)
    check(net, x)
    net.float()
    gnfast.normalize_gradient(net, x.float(), strict=True)
    check(net.double(), x)


def test_contexts_that_come_and_go(x):
    """Autocast, gradients and hooks inside a forward decide what the same call is recorded as."""
    net = Net().float()
    x = x.float()

    def under(context):
        def act(net, h):
            with context():
                y = F.linear(h, net.first, net.bias)
            return h + y.float()

        return act

    contexts = {
        "none": torch.enable_grad,
        "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
        "no gradients": torch.no_grad,
    }
    expected = {}
    for name, context in contexts.items():
        net.act = under(context)
        recording._VERDICTS.clear()
        expected[name] = outputs_and_gradients(gnfast.normalize_gradient, net, x, strict=True)
    for names in itertools.product(contexts, repeat=3):
        for name in names:
            net.act = under(contexts[name])
            assert_same(outputs_and_gradients(gnfast.normalize_gradient, net, x, strict=True), expected[name], 0)
    net.act = VARIANTS["nothing"]
    outside = gnfast.normalize_gradient(net, x, strict=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
        assert torch.equal(gnfast.normalize_gradient(net, x, strict=True), outside)


def test_a_steady_network_is_followed_to_its_end(x, monkeypatch):
    """Else nothing here would be tested."""
    found = []
    again = Replay.again

    def counted(self, *args):
        found.append(result := again(self, *args))
        return result

    monkeypatch.setattr(Replay, "again", counted)

    class Own(nn.Sequential):
        """Code of the user's, so that no recording is kept."""

    net = Own(
        *(nn.Conv2d(3, 4, 3, padding=1), nn.LeakyReLU(0.1), nn.AvgPool2d(2), nn.Conv2d(4, 4, 1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1)),
    )
    x = torch.randn(2, 3, 6, 6)
    for requires_grad in (True, False):
        net.requires_grad_(requires_grad)
        for _ in range(3):
            found.clear()
            gnfast.normalize_gradient(net, x, strict=True)
        assert len(found) == 8 and None not in found


def test_a_frozen_addend_may_be_written_before_the_backward(x):
    """As in PyTorch, which does not keep it; what is trained is kept by itself, and guarded."""
    net = Net()
    net.addend = nn.Parameter(torch.randn(6, dtype=DTYPE))
    net.act = lambda net, h: h + net.addend
    for frozen in (False, False, True, False, True, True):
        net.requires_grad_(not frozen)
        images = x.clone().requires_grad_()
        f_hat, expected = (
            function(net, images) for function in (gnfast.normalize_gradient, reference.normalize_gradient)
        )
        (wanted,) = torch.autograd.grad(expected.sum(), images)
        if frozen:
            with torch.no_grad():
                net.addend.add_(1)
        (actual,) = torch.autograd.grad(f_hat.sum(), images)
        torch.testing.assert_close(actual, wanted)
