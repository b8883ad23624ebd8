"""A GN-GAN loop in plain PyTorch, before and after: by the function of the papers' code, and by gnfast's.

    python examples/gn_gan_before.py
    python examples/gn_gan_after.py
    diff examples/gn_gan_before.py examples/gn_gan_after.py

The line that changes is the marked import. The other loops here (Lightning, accelerate, DDP, …) train this same GAN:
digits of 8×8 pixels, a generator and a critic of three layers each, the hinge loss.
"""

import argparse
from itertools import cycle, islice

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader

from gnfast import normalize_gradient  # the line that changes

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--steps", type=int, default=200)
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
optim_g = torch.optim.Adam(generator.parameters(), lr=2e-4, betas=(0.0, 0.9))
optim_d = torch.optim.Adam(critic.parameters(), lr=2e-4, betas=(0.0, 0.9))

images = torch.Tensor(load_digits().images)[:, None] / 8 - 1  # (1797, 1, 8, 8), from -1 to 1
loader = DataLoader(images, batch_size=64, drop_last=True)

for real in islice(cycle(loader), options.steps):
    real = real.to(device)
    fake = generator(torch.randn(len(real), 32, device=device))

    pred_real = normalize_gradient(critic, real)
    pred_fake = normalize_gradient(critic, fake.detach())
    loss_d = torch.relu(1 - pred_real).mean() + torch.relu(1 + pred_fake).mean()
    optim_d.zero_grad()
    loss_d.backward()
    optim_d.step()

    critic.requires_grad_(False)
    loss_g = -normalize_gradient(critic, fake).mean()
    optim_g.zero_grad()
    loss_g.backward()
    optim_g.step()
    critic.requires_grad_(True)

print(f"after {options.steps} steps: critic's loss {loss_d:.4f}, generator's loss {loss_g:.4f}")
