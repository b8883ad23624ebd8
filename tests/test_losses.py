"""The losses against their published formulas, in double precision."""

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits as bce

from gnfast.losses import LOSSES


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(0)
    return tuple(2 * torch.randn(n, 1, dtype=torch.float64, generator=generator) for n in (7, 5))


FORMULAS = {
    "hinge": (
        lambda r, f: (1 - r).clamp(min=0).mean() + (1 + f).clamp(min=0).mean(),
        lambda f: -f.mean(),
    ),
    "non-saturating": (
        lambda r, f: bce(r, torch.ones_like(r)) + bce(f, torch.zeros_like(f)),
        lambda f: bce(f, torch.ones_like(f)),
    ),
    "wasserstein": (lambda r, f: f.mean() - r.mean(), lambda f: -f.mean()),
}


def test_every_loss_has_a_formula():
    assert FORMULAS.keys() == LOSSES.keys()


@pytest.mark.parametrize("name", FORMULAS)
def test_value_and_gradient(name, logits):
    loss, (critic, generator) = LOSSES[name], FORMULAS[name]
    for ours, theirs, arguments in (
        (loss.critic, critic, logits),
        (loss.generator, generator, logits[1:]),
    ):
        got_at, want_at = ([x.clone().requires_grad_() for x in arguments] for _ in range(2))
        got, want = ours(*got_at), theirs(*want_at)
        torch.testing.assert_close(got, want, rtol=1e-12, atol=0)
        got.backward()
        want.backward()
        for a, b in zip(got_at, want_at, strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", FORMULAS)
def test_extreme_logits_stay_finite(name):
    extreme = torch.tensor([-1e4, 1e4])
    assert LOSSES[name].critic(extreme, extreme).isfinite()
    assert LOSSES[name].generator(extreme).isfinite()
