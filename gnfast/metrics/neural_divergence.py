"""Neural divergence: how well a critic that is trained afresh tells real images from generated ones.

Where the real images are held out, a generator that memorises its training images gains nothing.

Source: Gulrajani, Raffel and Metz, "Towards GAN benchmarks which require generalization" (ICLR 2019), as one of the
metrics of Qin et al. (ECCV 2020). Their networks and schedules were not available; those here are gnfast's, so that
values compare with each other, not with published ones.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from gnfast import models, rewrite
from gnfast.data import to_float
from gnfast.engine import penalties
from gnfast.errors import require_int

PENALTY, RATE = 10.0, 2e-4
# Real images that the trained critic is measured at.
MOST = 10_000


def neural_divergence(
    real: Tensor,
    draw: Callable[[int], Tensor],
    *,
    steps: int = 2000,
    batch_size: int = 64,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> float:
    """E f(real) - E f(fake) - 10 E(‖∇f‖ - 1)² of a critic f that was trained to make it large; 0 if it sees nothing.

    That is the WGAN-GP objective (Gulrajani et al., 2017, eq. 3). The critic is GN-GAN's CNN where it takes the images'
    size, otherwise the small one; Adam at 2e-4 with β = (0, 0.9), its rate falling to 0. Global random state is kept.

    Args:
        real: (N, C, S, S) uint8, those that `draw`'s images are told from; N >= 2.
        draw: count to (count, C, S, S) generated images in [-1, 1] on `device`, new ones every time.
        steps: updates of the critic.
        batch_size: images of each kind in an update; what `draw` is asked for at most.
        seed: of the critic, of the choice of real images, and of where the penalty is taken.
        device: where the critic is trained.

    Raises:
        ValueError: other real images, steps or batch sizes, or a size that no critic takes.
    """
    require_int("steps", steps, 1, ValueError)
    require_int("batch_size", batch_size, 2, ValueError)
    if real.dtype != torch.uint8 or real.dim() != 4 or len(real) < 2 or real.shape[2] != real.shape[3]:
        raise ValueError(f"real: got {tuple(real.shape)} of {real.dtype}, wanted (N, C, S, S) of uint8, N at least 2")
    device = torch.device(device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        channels, side = real.shape[1], real.shape[3]
        name = "dcgan" if side >= 16 and side % 8 == 0 else "small"
        critic = rewrite(models.build(name, resolution=side, channels=channels)[1]).to(device)
        adam = torch.optim.Adam(critic.parameters(), RATE, (0.0, 0.9))
        for step in range(steps):
            adam.param_groups[0]["lr"] = RATE * (1 - step / steps)
            chosen = to_float(real[torch.randint(len(real), (batch_size,))], device)
            adam.zero_grad()
            (-_objective(critic, chosen, draw(batch_size))).backward()
            adam.step()
        critic.requires_grad_(False)
        found = []
        for part in torch.randperm(len(real))[:MOST].split(batch_size):
            value = _objective(critic, to_float(real[part], device), draw(len(part)))
            found.append(value.double() * len(part))
    return float(torch.stack(found).sum()) / min(len(real), MOST)


def _objective(critic: torch.nn.Module, real: Tensor, fake: Tensor) -> Tensor:
    f_real, f_fake = critic(torch.cat([real, fake])).split(len(real))
    return f_real.mean() - f_fake.mean() - PENALTY * penalties.one_centered(critic, real, fake)
