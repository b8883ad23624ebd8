"""Critics in the manner of the published ones: the engine's verdict on each, and its exactness."""

import copy
import re

import pytest
import torch

import gnfast
from gnfast import reference
from tests.oracle import (
    assert_falls_back,
    assert_matches_double_backward,
    assert_same,
    assert_same_state,
    outputs_and_gradients,
    relative_error,
)
from tests.public_critics import CRITICS, EXACT

FALLBACKS = [name for name, critic in CRITICS.items() if critic.verdict != EXACT]


@pytest.mark.parametrize("name", CRITICS)
def test_every_part_of_a_critic_takes_part(name):
    net, x, args = CRITICS[name].make()
    seen = outputs_and_gradients(reference.normalize_gradient, net, x, *args)
    assert all(value is not None and value.isfinite().all() for value in seen.values())
    idle = [key for key, value in seen.items() if value.norm() < 1e-9]
    assert not idle, "a gradient that is zero tests nothing"
    f, n = reference.value_and_grad_norm(net, x, *args)
    assert n.min() > 1e-4 and f.std() > 1e-4, "samples must differ"


@pytest.mark.parametrize("name", CRITICS)
def test_verdict_is_what_the_mathematics_says(name):
    """Four passes need one logit per sample, without curvature in x and without the other samples of the batch."""
    net, x, args = CRITICS[name].make()
    f, g = reference.value_and_input_grad(net, x.requires_grad_(), *args)
    one_logit = f.numel() == len(x)
    (curvature,) = torch.autograd.grad((g * torch.randn_like(g)).sum(), x, allow_unused=True)
    straight = curvature is None or curvature.norm() < 1e-12
    alone = net(x[:1], *(argument[:1] for argument in args))
    independent = relative_error(alone, f[:1]) < 1e-12
    assert (one_logit and straight and independent) == (CRITICS[name].verdict == EXACT)


@pytest.mark.parametrize("name", CRITICS)
def test_verdict(name):
    net, x, args = CRITICS[name].make()
    plan = gnfast.trace(net, x, *args)
    if CRITICS[name].verdict == EXACT:
        assert "Exact in four passes" in str(plan)
    else:
        assert "Falls back" in str(plan)
        assert re.search(CRITICS[name].verdict, str(plan.refusals[0])), plan.refusals[0]
        assert str(plan.refusals[0]) in str(plan)


@pytest.mark.parametrize("name", [name for name in CRITICS if name not in FALLBACKS])
def test_exact_critics_match_double_backward(name):
    net, x, args = CRITICS[name].make()
    assert_matches_double_backward(net, x, *args)


@pytest.mark.parametrize("name", FALLBACKS)
def test_fallbacks_are_double_backward_with_one_warning(name):
    net, x, args = CRITICS[name].make()
    assert_falls_back(net, x, *args, match=CRITICS[name].verdict)


@pytest.mark.parametrize("name", ["sngan", "biggan", "unet-bilinear"])
def test_spectral_norm_in_training_mode(name):
    net, x, args = CRITICS[name].make()
    net.train()
    twin = copy.deepcopy(net)
    for _ in range(2):
        actual = outputs_and_gradients(gnfast.normalize_gradient, net, x, *args, strict=True)
        assert_same(actual, outputs_and_gradients(reference.normalize_gradient, twin, x, *args))
        assert_same_state(net, twin)


def test_everything_refused_is_named():
    net, x, args = CRITICS["biggan-attention"].make()
    refused = [(refusal.operation, refusal.submodule) for refusal in gnfast.trace(net, x, *args).refusals]
    assert refused == [(operation, "model.1") for operation in ("torch.bmm", "F.softmax", "torch.bmm")]
    net, x, args = CRITICS["dcgan-train"].make()
    refused = [(refusal.operation, refusal.submodule) for refusal in gnfast.trace(net, x, *args).refusals]
    assert refused == [("F.batch_norm", "3"), ("F.batch_norm", "6")]
