"""A GAN in the plane, in seconds: what the domain of the loss does to spectrally normalised training.

Source: "How does Lipschitz regularization influence GAN training?" (Qin et al., ECCV 2020, fig. 1), which does not say
what its data, networks and optimiser are; those here are ours.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from gnfast import spectral_norm_
from gnfast.losses import LOSSES, domain_scaled

MODES, SPREAD, Z_DIM, HIDDEN, BATCH, RATE = 8, 0.05, 4, 32, 64, 3e-3


@dataclass(frozen=True)
class Plane:
    """A GAN that was trained in the plane.

    Attributes:
        real, fake: (N, 2) points of the data and of the generator.
        omega: (2,) the range of the critic's values at both.
        on_data: the share of generated points within four deviations of the centre of a cluster.
    """

    real: Tensor
    fake: Tensor
    omega: Tensor
    on_data: float


def trained(alpha: float, *, k_sn: float = 1.0, steps: int = 1500, seed: int = 0, points: int = 512) -> Plane:
    """Trains on eight clusters on the unit circle, with the non-saturating loss L(αx) / α.

    Args:
        alpha: α of the domain scaling.
        k_sn: the spectral norm of each of the critic's four layers.
        steps: of Adam, for each of the two networks.
        seed: of weights, data and latents; global random state is kept.
        points: N of what is returned.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        generator = _perceptron(Z_DIM, 2)
        critic = spectral_norm_(_perceptron(2, 1), coeff=k_sn)
        loss = domain_scaled(LOSSES["non-saturating"], alpha)
        optim_d, optim_g = (torch.optim.Adam(net.parameters(), RATE, (0.0, 0.9)) for net in (critic, generator))
        for _ in range(steps):
            fake = generator(torch.randn(BATCH, Z_DIM))
            optim_d.zero_grad()
            loss.critic(critic(_data(BATCH)), critic(fake.detach())).backward()
            optim_d.step()
            optim_g.zero_grad()
            loss.generator(critic(fake)).backward()
            optim_g.step()
        with torch.no_grad():
            real, fake = _data(points), generator(torch.randn(points, Z_DIM))
            values = critic.eval()(torch.cat([real, fake]))
    away = torch.cdist(fake, _centres()).min(1).values
    return Plane(real, fake, torch.stack([values.min(), values.max()]), float((away < 4 * SPREAD).double().mean()))


def _perceptron(inputs: int, outputs: int) -> nn.Sequential:
    sizes = [inputs, HIDDEN, HIDDEN, HIDDEN]
    layers = [layer for i, o in pairwise(sizes) for layer in (nn.Linear(i, o), nn.LeakyReLU(0.1))]
    return nn.Sequential(*layers, nn.Linear(HIDDEN, outputs))


def _centres() -> Tensor:
    angle = torch.arange(MODES) * 2 * math.pi / MODES
    return torch.stack([angle.cos(), angle.sin()], 1)


def _data(count: int) -> Tensor:
    return _centres()[torch.randint(MODES, (count,))] + SPREAD * torch.randn(count, 2)
