"""Where a loss works: the interval Ω of values that a critic attains, and the interval of the loss's slopes on it.

Source: "How does Lipschitz regularization influence GAN training?" (Qin et al., ECCV 2020, fig. 4, tables 2-5).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gnfast.losses import Loss

POINTS = 1001
PARTS = ("critic_real", "critic_fake", "generator")


@dataclass(frozen=True)
class LossDomain:
    """Intervals as (least, largest).

    Attributes:
        omega: (2,) Ω, the range of the critic's values on real and generated images together.
        slopes: name of the loss's part ("critic_real", "critic_fake", "generator") to (2,), the range of its derivative
            over Ω.
    """

    omega: Tensor
    slopes: dict[str, Tensor]

    @property
    def width(self) -> float:
        """The length of Ω."""
        return float(self.omega[1] - self.omega[0])

    def row(self) -> dict[str, float]:
        """The ends as `omega_min`, `omega_max`, and `slope_PART_min`, `slope_PART_max` for each part of the loss."""
        ends = {"omega": self.omega} | {f"slope_{part}": slopes for part, slopes in self.slopes.items()}
        return {
            f"{name}_{end}": value
            for name, pair in ends.items()
            for end, value in zip(("min", "max"), pair.tolist(), strict=True)
        }


def loss_domain(loss: Loss, real: Tensor, fake: Tensor, points: int = POINTS) -> LossDomain:
    """Ω and the slopes of a loss on it.

    Args:
        loss: its three parts are functions of logits that average over them.
        real, fake: (N,) logits, floating point; those that the loss is applied to, after any normaliser.
        points: evenly spaced over Ω, at which slopes are taken besides the logits.

    Raises:
        ValueError: no logits, or one that is not finite.
    """
    values = torch.cat([real.detach().flatten(), fake.detach().flatten()]).double().cpu()
    if not len(values) or not torch.isfinite(values).all():
        raise ValueError(f"real, fake: got {len(values)} logits, wanted at least one, and all finite")
    omega = torch.stack([values.min(), values.max()])
    places = torch.cat([values, omega[0] + (omega[1] - omega[0]) * torch.linspace(0, 1, points, dtype=torch.float64)])
    found = {name: slopes(getattr(loss, name), places) for name in PARTS}
    return LossDomain(omega, {name: torch.stack([s.min(), s.max()]) for name, s in found.items()})


def slopes(part: Callable[[Tensor], Tensor], logits: Tensor) -> Tensor:
    """The derivative of one part of a loss at each logit, (N,): without the 1/N of its mean."""
    with torch.enable_grad():
        at = logits.detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(part(at), at)
    return gradient * logits.numel()
