"""Gradient penalties against double backward, on plain and on normalised critics."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gnfast
from gnfast import InputError, penalties, reference
from gnfast.kernels.join import plain
from tests.engine.test_engine import NETWORKS, Bessel, Called, ResNet, make_labelled
from tests.oracle import assert_same, relative_error


@pytest.fixture(params=["mlp", "cnn", "resnet", "spectral-norm"])
def net(request):
    return NETWORKS[request.param]().double()


@pytest.fixture
def images():
    return torch.randn(2, 4, 3, 5, 7, dtype=torch.float64)


def norm_by_double_backward(net, x, *args):
    return reference.value_and_grad_norm(net, x, *args)[1]


def between(real, fake):
    return real + torch.rand(len(real), 1, 1, 1, dtype=real.dtype) * (fake - real)


# name: gnfast's, and the same written out with autograd
PENALTIES = {
    "r1": (
        lambda net, real, fake, **o: penalties.r1(net, real, **o),
        lambda net, real, fake: 0.5 * norm_by_double_backward(net, real).square().mean(),
    ),
    "zero_centered": (
        lambda net, real, fake, **o: penalties.zero_centered(net, torch.cat([real, fake]), **o),
        lambda net, real, fake: norm_by_double_backward(net, torch.cat([real, fake])).square().mean(),
    ),
    "one_centered": (
        lambda net, real, fake, **o: penalties.one_centered(net, real, fake, **o),
        lambda net, real, fake: (norm_by_double_backward(net, between(real, fake)) - 1).square().mean(),
    ),
    "one_centered with target": (
        lambda net, real, fake, **o: penalties.one_centered(net, real, fake, target=0.2, **o),
        lambda net, real, fake: (norm_by_double_backward(net, between(real, fake)) - 0.2).square().mean(),
    ),
    "dragan": (
        lambda net, real, fake, **o: penalties.dragan(net, real, **o),
        lambda net, real, fake: (
            (norm_by_double_backward(net, between(real, real + 0.5 * real.std() * torch.rand_like(real))) - 1)
            .square()
            .mean()
        ),
    ),
}


def assert_both(fast, oracle, net, images):
    """The same penalty, and the same gradients of the weights."""
    seen = []
    for function in (fast, oracle):
        torch.manual_seed(7)
        penalty = function(net, *images)
        weights = list(net.parameters())
        seen.append([penalty, *torch.autograd.grad(penalty, weights, allow_unused=True, materialize_grads=True)])
    assert all(relative_error(a, e) <= 1e-10 for a, e in zip(*seen, strict=True))


@pytest.mark.parametrize("name", PENALTIES)
def test_value_and_gradients(name, net, images):
    fast, oracle = PENALTIES[name]
    assert_both(partial(fast, strict=True), oracle, net.eval(), images)


def test_labels_reach_the_critic():
    net, y = make_labelled(), torch.tensor([0, 3, 3, 1])
    real, fake = torch.randn(2, 4, 6, dtype=torch.float64)
    torch.manual_seed(0)
    actual = penalties.one_centered(net, real, fake, y, strict=True)
    torch.manual_seed(0)
    points = real + torch.rand(4, 1, dtype=torch.float64) * (fake - real)
    expected = (norm_by_double_backward(net, points, y) - 1).square().mean()
    assert relative_error(actual, expected) <= 1e-12


def test_images_get_no_gradient(images):
    real, fake = images[0].requires_grad_(), images[1].clone().requires_grad_()
    penalties.one_centered(ResNet().double(), real, fake).backward()
    assert real.grad is None and fake.grad is None


def test_penalties_of_what_the_passes_do_not_do(images):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), Bessel(), nn.Flatten(), nn.Linear(60, 1)).double()
    with pytest.warns(gnfast.FallbackWarning, match=r"torch\.i0"):
        assert_both(*PENALTIES["r1"], net, images)


ACTIVATIONS = {
    "relu": nn.ReLU(),
    "leaky_relu": nn.LeakyReLU(0.2),
    "prelu": lambda h: F.prelu(h, h.new_full((1,), 0.3)),
    "hardtanh": nn.Hardtanh(),
    "clamp": lambda h: h.clamp(-1, 1),
    "abs": torch.abs,
    "max_pool2d": nn.MaxPool2d(2),
    "maxout": lambda h: h.max(1, keepdim=True)[0],
    "sort": lambda h: h.sort(1)[0],
    "mean": lambda h: h.mean(1),
    "silu": nn.SiLU(),
    "over the batch": lambda h: h - h.mean(0),
    "constant": lambda h: h + h.relu().detach(),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("loss", [lambda n: n.square().mean(), lambda n: n.sum()], ids=["r1", "n"])
@pytest.mark.parametrize("fused", [False, True])
def test_weights_without_a_part_in_a_penalty_get_zeros_or_nothing_as_by_double_backward(
    name, loss, fused, images, monkeypatch
):
    """An optimiser with momentum, and every one's weight decay, passes over those that get nothing."""
    monkeypatch.setattr(plain, "FUSES", fused)

    def forward(net, x):
        h = ACTIVATIONS[name](net.first(x))
        return net.third(net.second(h.reshape(len(h), -1)).relu())

    layers = {"first": nn.Conv2d(3, 4, 3), "second": nn.LazyLinear(5), "third": nn.Linear(5, 1)}
    net = Called(forward, **layers).double()
    net(images[0])
    seen = []
    for way, options in ((gnfast, {"strict": True}), (reference, {})):
        x = images[0].clone().requires_grad_()
        net.zero_grad()
        loss(way.value_and_grad_norm(net, x, **options)[1]).backward()
        seen.append({"x": x.grad} | {name: p.grad for name, p in net.named_parameters()})
    assert_same(*seen)
    assert [k for k, grad in seen[0].items() if grad is None] == [k for k, grad in seen[1].items() if grad is None]


def test_images_of_different_shapes(images):
    with pytest.raises(InputError, match=r"fake \(the second images\): got shape"):
        penalties.one_centered(ResNet().double(), images[0], images[1][:3])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda net, x: penalties.one_centered(x, net, x), "real: got a ResNet, wanted a torch.Tensor"),
        (lambda net, x: penalties.one_centered(net, [x], x), "real: got a list, wanted a torch.Tensor"),
        (lambda net, x: penalties.one_centered(net, x, x.byte()), "fake: got dtype torch.uint8, wanted a floating"),
        (lambda net, x: penalties.dragan(x, net), "real: got a ResNet, wanted a torch.Tensor"),
        (lambda net, x: penalties.r1(x, net), "net: got a Tensor, wanted a torch.nn.Module"),
    ],
)
def test_what_is_no_batch_of_images(call, message, images):
    with pytest.raises(InputError, match=message):
        call(ResNet().double(), images[0])


@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_options_that_are_misspelt_are_said_to_have_gone_to_the_network(impl, images):
    with pytest.raises(TypeError, match="unexpected keyword argument 'strikt'") as raised:
        penalties.r1(ResNet().double(), images[0], impl=impl, strikt=True)
    assert raised.value.__notes__ == ["gnfast passes on to the network what is no option of its own: strikt"]
