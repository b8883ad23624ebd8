"""StyleGAN's training of the critic: softplus losses, minibatch deviation, and R1 every few steps ("lazy").

    python examples/stylegan_r1.py
    python examples/stylegan_r1.py --by-hand

The line that changes is the call of `d_r1_loss`. That is E‖∇ₓf‖², and `penalties.r1` is half of it: γ/2 · d_r1_loss in
StyleGAN2's code is γ · r1. The minibatch deviation lets samples depend on each other: from there down to the image the
critic takes six passes, above it four. `print(gnfast.trace(critic, real))` shows that.
"""

import argparse
from itertools import cycle, islice

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader

from gnfast import penalties


class Deviation(nn.Module):
    """One more channel: the mean standard deviation over groups of four images (Karras et al., 2020)."""

    def forward(self, h):
        groups = h.unflatten(0, (4, -1))
        deviation = (groups.var(0, correction=0) + 1e-8).sqrt().mean((1, 2, 3))
        return torch.cat([h, deviation.repeat(4)[:, None, None, None].expand(-1, 1, *h.shape[2:])], dim=1)


def d_r1_loss(critic, real):
    real = real.detach().requires_grad_()
    (grad,) = torch.autograd.grad(critic(real).sum(), real, create_graph=True)
    return grad.square().flatten(1).sum(1).mean()


parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--steps", type=int, default=200)
parser.add_argument("--by-hand", action="store_true", help="the penalty by double backward")
parser.add_argument("--device", default="cpu")
options = parser.parse_args()
device, gamma, every = options.device, 1.0, 8

torch.manual_seed(0)
generator = nn.Sequential(
    *(nn.Linear(32, 32 * 2 * 2), nn.Unflatten(1, (32, 2, 2)), nn.LeakyReLU(0.2)),
    *(nn.ConvTranspose2d(32, 16, 4, 2, 1), nn.LeakyReLU(0.2), nn.ConvTranspose2d(16, 1, 4, 2, 1)),
).to(device)
critic = nn.Sequential(
    *(nn.Conv2d(1, 16, 3, padding=1), nn.LeakyReLU(0.2), nn.Conv2d(16, 32, 4, 2, 1), nn.LeakyReLU(0.2)),
    *(Deviation(), nn.Conv2d(33, 32, 3, padding=1), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(32 * 4 * 4, 1)),
).to(device)
optim_g = torch.optim.Adam(generator.parameters(), lr=1e-3, betas=(0.0, 0.99))
optim_d = torch.optim.Adam(critic.parameters(), lr=1e-3, betas=(0.0, 0.99))

images = torch.Tensor(load_digits().images)[:, None] / 8 - 1
loader = DataLoader(images, batch_size=64, drop_last=True)

for step, real in enumerate(islice(cycle(loader), options.steps)):
    real = real.to(device)
    fake = generator(torch.randn(len(real), 32, device=device))

    loss_d = F.softplus(-critic(real)).mean() + F.softplus(critic(fake.detach())).mean()
    if step % every == 0:
        r1 = d_r1_loss(critic, real) / 2 if options.by_hand else penalties.r1(critic, real)  # the line that changes
        loss_d = loss_d + every * gamma * r1
    optim_d.zero_grad()
    loss_d.backward()
    optim_d.step()

    loss_g = F.softplus(-critic(fake)).mean()
    optim_g.zero_grad()
    loss_g.backward()
    optim_g.step()

print(f"after {options.steps} steps: critic's loss {loss_d:.4f}, generator's loss {loss_g:.4f}, last R1 {r1:.4f}")
