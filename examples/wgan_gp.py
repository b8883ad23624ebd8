"""WGAN-GP: the gradient penalty of a hand-written loop, swapped for gnfast's, without double backward.

    python examples/wgan_gp.py
    python examples/wgan_gp.py --by-hand

The line that changes is the call of `gradient_penalty`. Both draw one random place for each pair of images, so that the
two runs are the same up to rounding. `penalties.r1`, `zero_centered` and `dragan` are called in the same way.
"""

import argparse
from itertools import cycle, islice

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader

from gnfast import penalties


def gradient_penalty(critic, real, fake):
    place = torch.rand(len(real), 1, 1, 1, device=real.device)
    x = (real + place * (fake - real)).requires_grad_()
    (grad,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
    return (grad.flatten(1).norm(dim=1) - 1).square().mean()


parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--steps", type=int, default=40, help="of the generator, with five of the critic each")
parser.add_argument("--by-hand", action="store_true", help="the penalty by double backward")
parser.add_argument("--device", default="cpu")
options = parser.parse_args()
device = options.device

torch.manual_seed(0)
generator = nn.Sequential(
    *(nn.Linear(32, 32 * 2 * 2), nn.Unflatten(1, (32, 2, 2)), nn.ReLU()),
    *(nn.ConvTranspose2d(32, 16, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(16, 1, 4, 2, 1), nn.Tanh()),
).to(device)
critic = nn.Sequential(
    *(nn.Conv2d(1, 16, 3, padding=1), nn.LeakyReLU(0.1), nn.Conv2d(16, 32, 4, 2, 1), nn.LeakyReLU(0.1)),
    *(nn.Flatten(), nn.Linear(32 * 4 * 4, 1)),
).to(device)
optim_g = torch.optim.Adam(generator.parameters(), lr=1e-4, betas=(0.0, 0.9))
optim_d = torch.optim.Adam(critic.parameters(), lr=1e-4, betas=(0.0, 0.9))

images = torch.Tensor(load_digits().images)[:, None] / 8 - 1
loader = cycle(DataLoader(images, batch_size=64, drop_last=True))
penalty = gradient_penalty if options.by_hand else penalties.one_centered  # the line that changes

for _ in range(options.steps):
    for real in islice(loader, 5):
        real = real.to(device)
        fake = generator(torch.randn(len(real), 32, device=device)).detach()
        loss_d = critic(fake).mean() - critic(real).mean() + 10 * penalty(critic, real, fake)
        optim_d.zero_grad()
        loss_d.backward()
        optim_d.step()

    critic.requires_grad_(False)
    loss_g = -critic(generator(torch.randn(64, 32, device=device))).mean()
    optim_g.zero_grad()
    loss_g.backward()
    optim_g.step()
    critic.requires_grad_(True)

print(f"after {options.steps} steps: critic's loss {loss_d:.4f}, generator's loss {loss_g:.4f}")
