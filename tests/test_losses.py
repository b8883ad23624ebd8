"""The losses against their published formulas, in double precision."""

import math

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits as bce

from gnfast.losses import LOSSES, domain_scaled, in_pytorch


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
    "soft-hinge": (
        lambda r, f: (1 + (1 - r).exp()).log().mean() + (1 + (1 + f).exp()).log().mean(),
        lambda f: -f.mean(),
    ),
    "minimax": (
        lambda r, f: bce(r, torch.ones_like(r)) + bce(f, torch.zeros_like(f)),
        lambda f: -bce(f, torch.zeros_like(f)),
    ),
    "wasserstein": (lambda r, f: f.mean() - r.mean(), lambda f: -f.mean()),
    "least-squares": (lambda r, f: ((r - 1) ** 2).mean() + (f**2).mean(), lambda f: ((f - 1) ** 2).mean()),
    "least-squares-centred": (
        lambda r, f: ((r - 1) ** 2).mean() + ((f + 1) ** 2).mean(),
        lambda f: ((f - 1) ** 2).mean(),
    ),
    "cosine": (lambda r, f: -(r - 1).cos().mean() - (f + 1).cos().mean(), lambda f: -(f - 1).cos().mean()),
    "exponential": (lambda r, f: (-r).exp().mean() + f.exp().mean(), lambda f: (-f).exp().mean()),
}


def test_every_loss_has_a_formula():
    assert FORMULAS.keys() == LOSSES.keys()


@pytest.mark.parametrize("name", FORMULAS)
def test_the_critic_is_high_on_real_images(name):
    """A step down the critic's loss from 0 raises real logits and lowers fake ones; the generator raises them."""
    real, fake, generated = (torch.zeros(1, requires_grad=True) for _ in range(3))
    (LOSSES[name].critic(real, fake) + LOSSES[name].generator(generated)).backward()
    assert real.grad < 0
    assert fake.grad > 0 or name == "least-squares"
    assert generated.grad < 0


@pytest.mark.parametrize("name", sorted(FORMULAS.keys() - {"exponential"}))
def test_extreme_logits_stay_finite(name):
    extreme = torch.tensor([-1e4, 1e4])
    assert LOSSES[name].critic(extreme, extreme).isfinite()
    assert LOSSES[name].generator(extreme).isfinite()


@pytest.mark.parametrize("alpha", [1e-3, 0.25, 1, 2, 30])
@pytest.mark.parametrize("name", FORMULAS)
def test_value_and_gradient_are_those_of_the_scaled_formula_less_a_constant(name, alpha, logits):
    """With α = 1 of the loss itself."""
    tolerance = 1e-12 if alpha == 1 else 1e-9
    loss, (critic, generator) = domain_scaled(LOSSES[name], alpha), FORMULAS[name]
    for ours, formula, arguments in ((loss.critic, critic, logits), (loss.generator, generator, logits[1:])):
        got_at, want_at = ([x.clone().requires_grad_() for x in arguments] for _ in range(2))
        got = ours(*got_at)
        want = formula(*(alpha * x for x in want_at)) / alpha
        constant = 0 if alpha == 1 else formula(*(torch.zeros_like(x) for x in arguments)) / alpha
        torch.testing.assert_close(got, want - constant, rtol=tolerance, atol=tolerance)
        got.backward()
        want.backward()
        for a, b in zip(got_at, want_at, strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=tolerance, atol=1e-12)


@pytest.mark.parametrize("alpha", [1, 0.5])
@pytest.mark.parametrize("name", FORMULAS)
def test_terms_of_one_batch_are_those_of_its_parts(name, alpha, logits):
    loss, (real, fake) = domain_scaled(LOSSES[name], alpha), (x.clone().requires_grad_() for x in logits)
    together = torch.cat(logits).requires_grad_()
    terms = loss.critic_terms(together, len(real))
    torch.testing.assert_close(terms, torch.stack([loss.critic_real(real), loss.critic_fake(fake)]), rtol=0, atol=0)
    terms.sum().backward()
    loss.critic(real, fake).backward()
    torch.testing.assert_close(together.grad, torch.cat([real.grad, fake.grad]), rtol=0, atol=0)


@pytest.mark.parametrize("real", [-1, 13])
def test_a_bad_number_of_real_logits_is_named(real, logits):
    with pytest.raises(ValueError, match=f"real: got {real}, wanted 0 to 12"):
        LOSSES["hinge"].critic_terms(torch.cat(logits), real)


def test_losses_in_pytorch_have_no_kernels_and_the_same_values(logits):
    for loss in LOSSES.values():
        plain = in_pytorch(loss)
        assert plain.critic_real.formula is plain.critic_fake.formula is plain.generator.formula is None
        assert plain.critic(*logits) == loss.critic(*logits)


@pytest.mark.parametrize("alpha", [1e-25, 1e-10, 1e-4, 1e11])
@pytest.mark.parametrize("name", FORMULAS)
def test_domain_scaling_is_finite_in_float32(name, alpha):
    """Towards α = 0 every loss becomes linear, with its slope at 0; towards ∞ all but the exponential stay finite."""
    if name == "exponential" and alpha > 1:
        pytest.skip("exp(1e11 x) is beyond every floating-point number")
    x = torch.tensor([-3.0, -0.1, 0.0, 0.2, 2.5], requires_grad=True)
    for part in ("critic_real", "critic_fake", "generator"):
        value = getattr(domain_scaled(LOSSES[name], alpha), part)(x)
        (grad,) = torch.autograd.grad(value, x)
        assert value.isfinite()
        assert grad.isfinite().all()
        if alpha < 1e-8:
            zero = torch.zeros(1, dtype=torch.float64, requires_grad=True)
            (slope,) = torch.autograd.grad(getattr(LOSSES[name], part)(zero), zero)
            torch.testing.assert_close(grad * len(x), slope.float().expand(5), rtol=1e-6, atol=1e-7)
            torch.testing.assert_close(value, slope.float().squeeze() * x.mean(), rtol=1e-5, atol=1e-6)


def test_scaling_twice_is_scaling_by_the_product(logits):
    for loss in LOSSES.values():
        twice = domain_scaled(domain_scaled(loss, 0.5), 0.25)
        torch.testing.assert_close(twice.critic(*logits), domain_scaled(loss, 0.125).critic(*logits))


@pytest.mark.parametrize("alpha", [0, -1, math.inf, math.nan])
def test_a_bad_alpha_is_named(alpha):
    with pytest.raises(ValueError, match=r"alpha: got .*, wanted a positive number"):
        domain_scaled(LOSSES["hinge"], alpha)
