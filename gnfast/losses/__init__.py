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
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import relu, softplus

from gnfast.kernels.loss import Formula
from gnfast.losses import fused


@dataclass(frozen=True)
class Curve:
    """What terms are made of: a function h, elementwise.

    Attributes:
        value: h(y).
        scaled: (h(αx + c) − h(c)) / α, from x, α > 0 and c, without the cancellation of the formula as it stands.
        kind: the kernels' name for it (`gnfast.kernels.loss.Formula`); None if they do not know it: PyTorch then
            computes the terms that are made of it, on GPUs too.
    """

    value: Callable[[Tensor], Tensor]
    scaled: Callable[[Tensor, float, float], Tensor]
    kind: str | None = None


@dataclass(frozen=True)
class Term:
    """One term of a loss, ±h(±x + shift): calling it with logits x of any shape gives the mean of `value`, a scalar.

    Attributes:
        curve: h.
        shift: c.
        mirrored: whether it is of −x.
        negated: whether it is −h.
        alpha: α > 0 of the domain scaling ℓ(αx) / α less its value at 0; with 1 it is the term itself.
    """

    curve: Curve
    shift: float = 0.0
    mirrored: bool = False
    negated: bool = False
    alpha: float = 1.0

    def value(self, x: Tensor) -> Tensor:
        """ℓ(x), elementwise, by PyTorch's operations."""
        x = -x if self.mirrored else x
        if self.alpha != 1:
            h = self.curve.scaled(x, self.alpha, self.shift)
        else:
            h = self.curve.value(x + self.shift if self.shift else x)
        return -h if self.negated else h

    @property
    def formula(self) -> Formula | None:
        """What the kernels know it by, where they do."""
        if self.curve.kind is None or self.alpha != 1:
            return None
        return Formula(self.curve.kind, self.shift, self.mirrored, self.negated)

    def __call__(self, logits: Tensor) -> Tensor:
        mean = fused.means([self], [logits])
        return self.value(logits).mean() if mean is None else mean.reshape(())


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
        means = fused.means([self.critic_real, self.critic_fake], [real, fake])
        return self.critic_real(real) + self.critic_fake(fake) if means is None else means.sum()

    def critic_terms(self, logits: Tensor, real: int) -> Tensor:
        """The critic's two terms, (2,), on one batch, which need not be taken apart, nor its gradient put together.

        Args:
            logits: (N, ...) of real and of generated images.
            real: how many of them are of real images; they come first.

        Raises:
            ValueError: there are not so many.
        """
        if not 0 <= real <= len(logits):
            raise ValueError(f"real: got {real}, wanted 0 to {len(logits)}, which is all logits")
        means = fused.means([self.critic_real, self.critic_fake], [logits], real)
        if means is not None:
            return means
        of_real, of_fake = logits.split_with_sizes([real, len(logits) - real])
        return torch.stack([self.critic_real(of_real), self.critic_fake(of_fake)])


def domain_scaled(loss: Loss, alpha: float) -> Loss:
    """L_α(x) = L(αx) / α less the constant L(0) / α, which no gradient sees (Qin et al., ECCV 2020, eq. 8).

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
    return _changed(loss, lambda term: {"alpha": term.alpha * alpha})


def in_pytorch(loss: Loss) -> Loss:
    """The same loss by PyTorch's operations, where kernels would compute it."""
    return _changed(loss, lambda term: {"curve": dataclasses.replace(term.curve, kind=None)})


def _changed(loss: Loss, changes: Callable[[Term], dict[str, Any]]) -> Loss:
    terms = (loss.critic_real, loss.critic_fake, loss.generator)
    return Loss(*(dataclasses.replace(term, **changes(term)) for term in terms))


def _scaled_softplus(x: Tensor, a: float, c: float) -> Tensor:
    weight, constant = 1 / (1 + math.exp(-c)), math.log1p(math.exp(c))
    # Near 0 the difference of two equal numbers would be left; far from 0 expm1 would overflow.
    near = (a * x).clamp(-1, 1)
    change = torch.log1p(weight * torch.expm1(near))
    return torch.where(near == a * x, change, softplus(a * x + c) - constant) / a


_IDENTITY = Curve(lambda y: y, lambda x, a, c: x, "identity")
# For c ≥ 0: −c/α is where the scaled one ends.
_RELU = Curve(relu, lambda x, a, c: x.clamp(min=-c / a), "relu")
# With c = 0 the binary cross-entropy with logits for the target 0.
_SOFTPLUS = Curve(softplus, _scaled_softplus, "softplus")
_SQUARE = Curve(torch.square, lambda x, a, c: x * (a * x + 2 * c), "square")
_COS = Curve(torch.cos, lambda x, a, c: -2 * torch.sin(a * x / 2 + c) * torch.sin(a * x / 2) / a, "cos")
_EXP = Curve(torch.exp, lambda x, a, c: math.exp(c) * torch.expm1(a * x) / a, "exp")

_DOWN = Term(_IDENTITY, negated=True)

LOSSES: dict[str, Loss] = {
    "hinge": Loss(Term(_RELU, 1, mirrored=True), Term(_RELU, 1), _DOWN),
    "soft-hinge": Loss(Term(_SOFTPLUS, 1, mirrored=True), Term(_SOFTPLUS, 1), _DOWN),
    "non-saturating": Loss(Term(_SOFTPLUS, mirrored=True), Term(_SOFTPLUS), Term(_SOFTPLUS, mirrored=True)),
    "minimax": Loss(Term(_SOFTPLUS, mirrored=True), Term(_SOFTPLUS), Term(_SOFTPLUS, negated=True)),
    "wasserstein": Loss(_DOWN, Term(_IDENTITY), _DOWN),
    "least-squares": Loss(Term(_SQUARE, -1), Term(_SQUARE), Term(_SQUARE, -1)),
    "least-squares-centred": Loss(Term(_SQUARE, -1), Term(_SQUARE, 1), Term(_SQUARE, -1)),
    "cosine": Loss(Term(_COS, -1, negated=True), Term(_COS, 1, negated=True), Term(_COS, -1, negated=True)),
    "exponential": Loss(Term(_EXP, mirrored=True), Term(_EXP), Term(_EXP, mirrored=True)),
}
"""By name, as `gnfast train --loss` takes them. The critic is high on real images."""
