"""The papers' theorems on random and on trained critics, in float64 unless float32 is the point.

Gradients of normalised critics come from double backward here, never from the closed form that a theorem is about.
"""

import functools
import itertools
import math

import pytest
import torch
from torch import nn

import gnfast
from gnfast import measure
from gnfast.data import load, to_float
from gnfast.losses import LOSSES
from gnfast.models import build

STEPS = 40
COUNT = 32


def cnn():
    return build("small", resolution=8, channels=1, width=0.25)[1]


def mlp(depth=4):
    layers = [nn.Flatten()]
    for index in range(depth):
        layers += [nn.Linear(64 if index == 0 else 24, 24), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(24, 1))


@functools.cache
def digits():
    return to_float(load("digits", progress=False).images)


def images(dtype=torch.float64):
    """Digits, noise and points between them."""
    torch.manual_seed(1)
    real = digits()[:COUNT]
    return torch.cat(list(measure.distributions(real, torch.rand_like(real) * 2 - 1).values())).to(dtype)


def trained(net, method=None, loss="hinge", **options):
    """A critic after some steps that tell digits from noise."""
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    for step in range(STEPS):
        real = digits()[step * 32 % 1024 :][:32]
        batch = torch.cat([real, torch.rand_like(real) * 2 - 1])
        score = net(batch) if method is None else gnfast.normalize_gradient(net, batch, method=method, **options)
        optimizer.zero_grad()
        LOSSES[loss].critic(*score.split(32)).backward()
        optimizer.step()
    return net


def critic(make, method=None, training=False, **options):
    torch.manual_seed(2)
    net = make()
    return (trained(net, method, **options) if training else net).double()


def slopes(net, x, **options):
    """f, n and ‖∇f̂‖ by double backward."""
    x = x.clone().requires_grad_()
    f, g = gnfast.reference.value_and_input_grad(net, x)
    f_hat = gnfast.normalize_gradient(net, x, impl="reference", **options)
    (slope,) = torch.autograd.grad(f_hat.sum(), x)
    return f.detach().flatten(), g.detach().flatten(1).norm(dim=1), slope.flatten(1).norm(dim=1)


both = pytest.mark.parametrize("training", [False, True], ids=["random", "trained"])
nets = pytest.mark.parametrize("make", [cnn, mlp])


def gran(f, n, tau, eps):
    return n**2 / (n**2 + eps) / tau


# Normaliser, its options, and what ‖∇f̂‖ is exactly. It is at most 1 for GN-GAN (Theorem 6) and for PGN-GAN's Table I,
# which is GN of 1 − f, and at most K = 1/τ for both of GraN-GAN's.
BOUNDED = [
    ("gn", {}, lambda f, n: (n / (n + f.abs())) ** 2),
    ("pgn-table", {}, lambda f, n: (n / (n + (1 - f).abs())) ** 2),
    *(("gran", {"tau": tau, "eps": eps}, gran) for tau, eps in ((1.0, 0.1), (1 / 0.83, 0.1), (4.0, 1e-4))),
    ("gran-shift", {"tau": 1 / 0.83, "eps": 0.1}, lambda f, n, tau, eps: n / (n + eps) / tau),
]


@both
@nets
@pytest.mark.parametrize(("method", "options", "exact"), BOUNDED)
def test_normalised_critics_have_bounded_gradients(make, training, method, options, exact):
    f, n, norm = slopes(critic(make, method, training, **options), images(), method=method, **options)
    assert bool((norm <= (1 + 1e-12) / options.get("tau", 1)).all())
    torch.testing.assert_close(norm, exact(f, n, **options), rtol=1e-10, atol=1e-12)


def test_pgn_of_the_code_has_no_such_bound():
    """Its denominator ‖1 − ∇f‖ + |1 − f| vanishes at f = 1 where the gradient is all ones."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 1)).double()
    nn.init.constant_(net[1].weight, 1.001)
    nn.init.constant_(net[1].bias, 1.0)
    _, _, norm = slopes(net, torch.zeros(1, 1, 8, 8, dtype=torch.float64), method="pgn")
    assert norm.item() > 100


@both
@nets
def test_gran_lies_within_1e_5_of_k_where_eps_is_small_beside_the_gradient(make, training):
    """K − ‖∇f̂‖ is K ε / (n² + ε): in float32 less than 1e-5 K as soon as n² exceeds 1e5 ε, and not before."""
    net, tau = critic(make, "gran", training).float(), 1 / 0.83
    _, n, _ = slopes(net, images(torch.float32), method="gran")
    eps = n.min().item() ** 2 * 1e-6
    assert eps > 0
    _, _, norm = slopes(net, images(torch.float32), method="gran", tau=tau, eps=eps)
    assert (norm * tau - 1).abs().max().item() < 1e-5
    # What the analysis reports, without double backward, is as close.
    measured = measure.gradient_norms(net, images(torch.float32), method="gran", tau=tau, eps=eps)
    assert (measured.normalized_norm * tau - 1).abs().max().item() < 1e-5
    _, n, norm = slopes(net, images(torch.float32), method="gran", tau=tau, eps=0.1)
    torch.testing.assert_close(1 - norm * tau, 0.1 / (n**2 + 0.1), rtol=1e-3, atol=1e-6)


def lipschitz_bound(net, shape):
    """The product of the layers' norms as operators; the activations have slopes of at most 1."""
    return math.prod(spectrum.operator for spectrum in measure.layer_spectra(net, torch.zeros(1, *shape).double()))


@both
@nets
@pytest.mark.parametrize("k", [0.5, 1.0, 3.0])
def test_the_range_of_a_lipschitz_critic_is_bounded(make, training, k):
    """Qin et al., Theorem 1: on images in [-1, 1] a k-Lipschitz critic's values span at most k √(12 m n) (colour)."""

    def normalised():
        return gnfast.spectral_norm_(make(), coeff=k)

    net = critic(normalised, training=training).eval()
    shape = (1, 8, 8)
    bound = measure.range_bound(lipschitz_bound(net, shape), shape)
    # The images furthest apart: where the gradient points, and the opposite corner.
    x = images()
    _, g = gnfast.value_and_input_grad(net, x)
    values = net(torch.cat([x, g.sign(), -g.sign()])).detach()
    assert 0 < (values.max() - values.min()).item() <= bound


@both
@pytest.mark.parametrize("method", ["gn", "pgn-table"])
def test_the_range_of_a_normalised_critic_is_smaller_still(training, method):
    """GN and PGN are in [-1, 1] by construction, which is below √(12 m n)."""
    net = critic(cnn, method, training)
    values = measure.gradient_norms(net, images(), method=method).normalized
    assert values.abs().max().item() <= 1 < measure.range_bound(1.0, (1, 8, 8)) / 2


def settled(net, shape=(1, 8, 8)):
    """The network once its power iterations have converged, in evaluation mode."""
    for norm in (module for module in net.modules() if hasattr(module, "n_power_iterations")):
        norm.n_power_iterations = 50
    with torch.no_grad():
        for _ in range(10):
            net(torch.zeros(1, *shape, dtype=torch.float64))
    return net.eval()


@both
@pytest.mark.parametrize("depth", [2, 5, 8])
def test_the_constants_of_deeper_parts_fall_under_spectral_normalisation(training, depth):
    """GN-GAN, Theorem 5: a layer of Lipschitz constant 1 cannot raise that of what is before it."""
    net = settled(critic(lambda: gnfast.spectral_norm_(mlp(depth)), training=training, loss="wasserstein"))
    constants = list(measure.prefix_lipschitz(net, images()[::8], iterations=200).values())
    assert len(constants) == depth + 1
    assert constants[0] == pytest.approx(1, abs=1e-6)
    for before, after in itertools.pairwise(constants):
        assert after <= before * (1 + 1e-9)


@both
def test_the_constants_of_convolutions_rise_at_most_by_their_operators(training):
    """The same for convolutions, whose Lipschitz constant is that of the operator, not of the reshaped weight."""
    net = settled(critic(lambda: gnfast.spectral_norm_(cnn()), training=training, loss="wasserstein"))
    constants = list(measure.prefix_lipschitz(net, images()[::8], iterations=200).values())
    operators = [spectrum.operator for spectrum in measure.layer_spectra(net, images()[:1])]
    assert constants[0] == pytest.approx(operators[0], rel=1e-3)
    for before, after, operator in zip(constants, constants[1:], operators[1:], strict=False):
        assert after <= operator * before * (1 + 1e-9)


def test_theorem_5_needs_the_operator_for_convolutions():
    """A kernel of equal entries has a reshaped norm of 1 after spectral normalisation, and acts with almost 3."""
    net = nn.Sequential(nn.Conv2d(1, 1, 3, 1, 1, bias=False), nn.Conv2d(1, 1, 3, 1, 1, bias=False)).double()
    for layer in net:
        nn.init.ones_(layer.weight)
    net = settled(gnfast.spectral_norm_(net))
    first, second = measure.prefix_lipschitz(net, images()[:4], iterations=200).values()
    assert 2.5 < first < 3
    assert second > 2.5 * first
