"""The GAN losses, on the critic's normalised output; a loss is real part plus fake part, without a factor ½.

Source: GN-GAN (Wu et al., ICCV 2021, Table 1) and its code; hinge after Miyato et al. (ICLR 2018), non-saturating after
Goodfellow et al. (2014), Wasserstein after Arjovsky et al. (2017).
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import relu, softplus


@dataclass(frozen=True)
class Loss:
    """The three scalar parts of one GAN loss; each takes logits of any shape and returns their mean term.

    Attributes:
        critic_real: the critic's term on real images.
        critic_fake: the critic's term on generated images.
        generator: the generator's loss on the critic's output for its images.
    """

    critic_real: Callable[[Tensor], Tensor]
    critic_fake: Callable[[Tensor], Tensor]
    generator: Callable[[Tensor], Tensor]

    def critic(self, real: Tensor, fake: Tensor) -> Tensor:
        """The critic's loss, a scalar: `critic_real(real) + critic_fake(fake)`."""
        return self.critic_real(real) + self.critic_fake(fake)


LOSSES: dict[str, Loss] = {
    "hinge": Loss(
        critic_real=lambda real: relu(1 - real).mean(),
        critic_fake=lambda fake: relu(1 + fake).mean(),
        generator=lambda fake: -fake.mean(),
    ),
    # softplus(-f) and softplus(f) are binary cross-entropy with logits for the targets 1 and 0.
    "non-saturating": Loss(
        critic_real=lambda real: softplus(-real).mean(),
        critic_fake=lambda fake: softplus(fake).mean(),
        generator=lambda fake: softplus(-fake).mean(),
    ),
    "wasserstein": Loss(
        critic_real=lambda real: -real.mean(),
        critic_fake=lambda fake: fake.mean(),
        generator=lambda fake: -fake.mean(),
    ),
}
