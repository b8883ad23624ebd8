"""The GAN losses on the critic's output, and their domain scaling; a loss is real part plus fake part, without a ½.

Everywhere the critic is high on real images and low on generated ones.

Sources: non-saturating and minimax, Goodfellow et al. (2014); hinge, Miyato et al. (ICLR 2018); soft hinge, Bhaskara et
al. (GraN-GAN, WACV 2022); Wasserstein, Arjovsky et al. (2017); least squares, Mao et al. (2017); its zero-centred form,
cosine and exponential, Qin et al. (ECCV 2020, Table 1), who write the Wasserstein and the exponential loss with real
images low.
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import relu, softplus


@dataclass(frozen=True)
class Term:
    """One term of a loss: calling it with logits of any shape gives the mean of `value`, a scalar.

    Attributes:
        value: ℓ(x), elementwise.
        scaled: (ℓ(αx) − ℓ(0)) / α, elementwise, from x and α > 0, without the cancellation of the formula as it stands.
    """

    value: Callable[[Tensor], Tensor]
    scaled: Callable[[Tensor, float], Tensor]

    def __call__(self, logits: Tensor) -> Tensor:
        return self.value(logits).mean()


@dataclass(frozen=True)
class Loss:
    """The three terms of one GAN loss.

    Attributes:
        critic_real: the critic's term on real images.
        critic_fake: the critic's term on generated images.
        generator: the generator's loss on the critic's output for its images.
    """

    critic_real: Term
    critic_fake: Term
    generator: Term

    def critic(self, real: Tensor, fake: Tensor) -> Tensor:
        """The critic's loss, a scalar: `critic_real(real) + critic_fake(fake)`."""
        return self.critic_real(real) + self.critic_fake(fake)


def domain_scaled(loss: Loss, alpha: float) -> Loss:
    """L_α(x) = L(αx) / α less the constant L(0) / α, which no gradient sees (Qin et al., ECCV 2020, eq. 6).

    The constant is what overflows: without it value and gradient are finite in float32 for α from 1e-25 up, as long as
    L(αx) itself is (exponentials are not for every α).

    Args:
        loss: the loss to scale.
        alpha: positive; 1 gives the loss itself, constant included.

    Raises:
        ValueError: `alpha` is not a positive number.
    """
    if not (alpha > 0 and math.isfinite(alpha)):
        raise ValueError(f"alpha: got {alpha}, wanted a positive number")
    if alpha == 1:
        return loss

    def scale(term: Term) -> Term:
        return Term(lambda x: term.scaled(x, alpha), lambda x, further: term.scaled(further * x, alpha) / further)

    return Loss(*(scale(getattr(loss, field.name)) for field in dataclasses.fields(Loss)))


def _mirrored(term: Term) -> Term:
    """ℓ(−x)."""
    return Term(lambda x: term.value(-x), lambda x, a: term.scaled(-x, a))


def _negated(term: Term) -> Term:
    """−ℓ(x)."""
    return Term(lambda x: -term.value(x), lambda x, a: -term.scaled(x, a))


def _softplus(offset: float) -> Term:
    """log(1 + exp(x + offset)): with offset 0 the binary cross-entropy with logits for the target 0."""
    weight, constant = 1 / (1 + math.exp(-offset)), math.log1p(math.exp(offset))

    def scaled(x: Tensor, a: float) -> Tensor:
        # Near 0 the difference of two equal numbers would be left; far from 0 expm1 would overflow.
        near = (a * x).clamp(-1, 1)
        change = torch.log1p(weight * torch.expm1(near))
        return torch.where(near == a * x, change, softplus(a * x + offset) - constant) / a

    return Term(lambda x: softplus(x + offset), scaled)


def _square(target: float) -> Term:
    return Term(lambda x: (x - target).square(), lambda x, a: x * (a * x - 2 * target))


def _cosine(target: float) -> Term:
    return Term(
        lambda x: -torch.cos(x - target),
        lambda x, a: 2 * torch.sin(a * x / 2 - target) * torch.sin(a * x / 2) / a,
    )


_IDENTITY = Term(lambda x: x, lambda x, a: x)
# relu(1 + x): 1/α is where the scaled one ends.
_HINGE = Term(lambda x: relu(1 + x), lambda x, a: x.clamp(min=-1 / a))
_EXPONENTIAL = Term(torch.exp, lambda x, a: torch.expm1(a * x) / a)
_CROSS_ENTROPY, _SOFT_HINGE = _softplus(0.0), _softplus(1.0)
_DOWN = _negated(_IDENTITY)

LOSSES: dict[str, Loss] = {
    "hinge": Loss(_mirrored(_HINGE), _HINGE, _DOWN),
    "soft-hinge": Loss(_mirrored(_SOFT_HINGE), _SOFT_HINGE, _DOWN),
    "non-saturating": Loss(_mirrored(_CROSS_ENTROPY), _CROSS_ENTROPY, _mirrored(_CROSS_ENTROPY)),
    "minimax": Loss(_mirrored(_CROSS_ENTROPY), _CROSS_ENTROPY, _negated(_CROSS_ENTROPY)),
    "wasserstein": Loss(_DOWN, _IDENTITY, _DOWN),
    "least-squares": Loss(_square(1.0), _square(0.0), _square(1.0)),
    "least-squares-centred": Loss(_square(1.0), _square(-1.0), _square(1.0)),
    "cosine": Loss(_cosine(1.0), _cosine(-1.0), _cosine(1.0)),
    "exponential": Loss(_mirrored(_EXPONENTIAL), _EXPONENTIAL, _mirrored(_EXPONENTIAL)),
}
