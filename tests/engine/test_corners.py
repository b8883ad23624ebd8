"""Where a formula has no derivative, or none that is not 0/0: double backward's numbers, or ones that are said here."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import gnfast
from gnfast import UnsupportedError, reference
from tests.engine.test_engine import Called
from tests.oracle import assert_same, outputs_and_gradients


def minibatch_stddev(h):
    """As in the official StyleGAN2."""
    y = h - h.mean(0)
    y = (y.square().mean(0) + 1e-8).sqrt().mean().reshape(1, 1, 1, 1).expand(len(h), 1, *h.shape[2:])
    return torch.cat([h, y], 1)


def per_sample(function):
    return lambda h: h * function(h).reshape(-1, 1, 1, 1)


# Functions of h = conv(x).
CORNERS = {
    "stddev of equal samples": minibatch_stddev,
    "std of equal entries": per_sample(lambda h: (h * 0).flatten(1).std(1)),
    "var of equal entries": per_sample(lambda h: (h * 0).flatten(1).var(1)),
    "norm of zeros": per_sample(lambda h: (h * 0).flatten(1).norm(dim=1)),
    "linalg norm of zeros": lambda h: h + torch.linalg.vector_norm(h * 0, dim=1, keepdim=True),
    "order 3 of zeros": lambda h: h + torch.linalg.vector_norm(h * 0, 3, dim=1, keepdim=True),
    "normalize of zeros": lambda h: F.normalize(h * 0, dim=1) + h,
    "sqrt of 0": lambda h: torch.sqrt(h * 0) + h,
    "sqrt of a relu": lambda h: torch.sqrt(h.relu()) + h,
    "log of 0": lambda h: torch.log(h.relu()) * 0.1 + h,
    "log of almost 0": lambda h: torch.log(h.relu() + 1e-8) * 0.01 + h,
    "power of 0": lambda h: (h * 0) ** 1.5 + h.relu() ** 2 + (h * 0) ** 2,
    "power 1 of 0": lambda h: (h * 0) ** 1 + (h * 0).pow(0) + h,
    "1 over 0": lambda h: (h.relu()).reciprocal().clamp(max=3) + h,
    "saturated sigmoid": lambda h: torch.sigmoid(60 * h) + h.sigmoid(),
    "saturated tanh": lambda h: torch.tanh(40 * h) + h,
    "softplus beyond its threshold": lambda h: F.softplus(30 * h),
    "large gelu": lambda h: F.gelu(50 * h) + F.gelu(50 * h, approximate="tanh"),
    "softmax of one": lambda h: torch.softmax(500 * h, 1),
    "logsumexp of large": lambda h: torch.logsumexp(1000 * h, 1, keepdim=True) * h,
    "layer norm of equal entries": lambda h: F.layer_norm(h * 0, h.shape[1:]) + h,
    "batch norm of equal entries": lambda h: F.batch_norm(h * 0 + 1, None, None, training=True) + h,
    "attention of equal keys": lambda h: h + F.scaled_dot_product_attention(h, h * 0, h),
}


def critic(corner):
    torch.manual_seed(0)
    channels = corner(torch.zeros(1, 3, 2, 2)).shape[1]
    conv, linear = nn.Conv2d(2, 3, 3), nn.Linear(channels, 1)
    return Called(lambda net, x: net.linear(corner(net.conv(x)).sum((2, 3))), conv=conv, linear=linear).double()


def inputs(name):
    torch.manual_seed(1)
    x = torch.randn(4, 2, 5, 6, dtype=torch.float64)
    return x[:1].repeat(4, 1, 1, 1) if name.startswith("stddev") else x


# Where PyTorch's derivatives are NaN or infinite.
WITHOUT = {"std of equal entries", "norm of zeros", "linalg norm of zeros", "order 3 of zeros", "normalize of zeros"}
WITHOUT |= {"sqrt of 0", "sqrt of a relu", "log of 0", "power of 0"}


@pytest.mark.parametrize("name", CORNERS)
def test_double_backwards_numbers(name):
    net, x = critic(CORNERS[name]), inputs(name)
    with sdpa_kernel(SDPBackend.MATH):
        expected = outputs_and_gradients(reference.value_and_input_grad, net, x)
        actual = outputs_and_gradients(gnfast.value_and_input_grad, net, x, strict=True)
    assert all(t.isfinite().all() for t in actual.values()) == (name not in WITHOUT)
    for key, value in expected.items():
        torch.testing.assert_close(actual[key], value, rtol=1e-10, atol=1e-10, equal_nan=True)


def test_a_penalty_at_equal_samples_is_finite():
    """R1 of a critic with minibatch stddev, whose root is of ε alone."""
    net, x = critic(minibatch_stddev), inputs("stddev")
    found = []
    for options in ({"strict": True}, {"impl": "reference"}):
        net.zero_grad()
        gnfast.penalties.r1(net, x, **options).backward()
        found.append({name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in net.named_parameters()})
    assert_same(*found)
    assert all(grad.isfinite().all() for grad in found[0].values())


@pytest.mark.parametrize("name", ["saturated sigmoid", "batch norm of equal entries", "attention of equal keys"])
def test_further_derivatives_are_refused_clearly(name):
    net, x = critic(CORNERS[name]), inputs(name).requires_grad_()
    f_hat = gnfast.normalize_gradient(net, x)
    (grad,) = torch.autograd.grad(f_hat.sum(), x, create_graph=True)
    with pytest.raises(UnsupportedError, match="impl='reference'"):
        grad.sum().backward()
