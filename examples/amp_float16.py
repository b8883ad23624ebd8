"""Mixed precision in float16: autocast around the networks and the losses, a GradScaler around the backwards.

    python examples/amp_float16.py
    python examples/amp_float16.py --device cuda

The line that changes wraps the critic; autocast and GradScaler stay as they are. The scaled loss goes through gnfast's
passes as through any backward, and `scaler.step` unscales. What the scale does not reach is the input gradient in
the normaliser, which starts from 1: where it is below 6e-8 or above 65504 in float16, take bfloat16 (amp_bfloat16.py).
"""

import argparse
from itertools import cycle, islice

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader

import gnfast

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--steps", type=int, default=100)
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
critic = gnfast.GradientNorm(critic)  # the line that changes
optim_g = torch.optim.Adam(generator.parameters(), lr=2e-4, betas=(0.0, 0.9))
optim_d = torch.optim.Adam(critic.parameters(), lr=2e-4, betas=(0.0, 0.9))
# One for each network: a step that overflows in one does not change the scale of the other.
scaler_g, scaler_d = torch.amp.GradScaler(device), torch.amp.GradScaler(device)

images = torch.Tensor(load_digits().images)[:, None] / 8 - 1
loader = DataLoader(images, batch_size=64, drop_last=True)

for real in islice(cycle(loader), options.steps):
    real = real.to(device)
    with torch.autocast(device, torch.float16):
        fake = generator(torch.randn(len(real), 32, device=device))
        pred_real, pred_fake = critic(real), critic(fake.detach())
        loss_d = torch.relu(1 - pred_real).mean() + torch.relu(1 + pred_fake).mean()
    optim_d.zero_grad()
    scaler_d.scale(loss_d).backward()
    scaler_d.step(optim_d)
    scaler_d.update()

    critic.requires_grad_(False)
    with torch.autocast(device, torch.float16):
        loss_g = -critic(fake).mean()
    optim_g.zero_grad()
    scaler_g.scale(loss_g).backward()
    scaler_g.step(optim_g)
    scaler_g.update()
    critic.requires_grad_(True)

scales = f"scales {scaler_d.get_scale():.0f} and {scaler_g.get_scale():.0f}"
print(f"after {options.steps} steps: critic's loss {loss_d:.4f}, generator's loss {loss_g:.4f}, {scales}")
