"""A class-conditional GAN with a projection critic: labels are passed on behind the images.

    python examples/conditional.py

The line that changes wraps the critic: critic(x, y) is then f̂(x, y), where the gradient is that with respect to x.
Whatever comes after x goes to the critic as it is, by position or by name: labels, embeddings, a noise level.
"""

import argparse
from itertools import cycle, islice

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import gnfast


class Critic(nn.Module):
    """⟨embedding(y), h(x)⟩ + linear(h(x)) (Miyato and Koyama, ICLR 2018)."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1), nn.LeakyReLU(0.1), nn.Conv2d(16, 32, 4, 2, 1), nn.LeakyReLU(0.1)),
        )
        self.linear, self.embedding = nn.Linear(32, 1), nn.Embedding(10, 32)

    def forward(self, x, y):
        h = self.layers(x).sum((2, 3))
        return self.linear(h) + (self.embedding(y) * h).sum(1, keepdim=True)


parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--steps", type=int, default=200)
parser.add_argument("--device", default="cpu")
options = parser.parse_args()
device = options.device

torch.manual_seed(0)
generator = nn.Sequential(
    *(nn.Linear(32 + 10, 32 * 2 * 2), nn.Unflatten(1, (32, 2, 2)), nn.ReLU()),
    *(nn.ConvTranspose2d(32, 16, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(16, 1, 4, 2, 1), nn.Tanh()),
).to(device)
critic = gnfast.GradientNorm(Critic().to(device))  # the line that changes
optim_g = torch.optim.Adam(generator.parameters(), lr=1e-3, betas=(0.0, 0.9))
optim_d = torch.optim.Adam(critic.parameters(), lr=1e-3, betas=(0.0, 0.9))

digits = load_digits()
dataset = TensorDataset(torch.Tensor(digits.images)[:, None] / 8 - 1, torch.tensor(digits.target))

for real, y in islice(cycle(DataLoader(dataset, batch_size=64, drop_last=True)), options.steps):
    real, y = real.to(device), y.to(device)
    fake = generator(torch.cat([torch.randn(len(real), 32, device=device), F.one_hot(y, 10)], dim=1))

    loss_d = torch.relu(1 - critic(real, y)).mean() + torch.relu(1 + critic(fake.detach(), y)).mean()
    optim_d.zero_grad()
    loss_d.backward()
    optim_d.step()

    critic.requires_grad_(False)
    loss_g = -critic(fake, y).mean()
    optim_g.zero_grad()
    loss_g.backward()
    optim_g.step()
    critic.requires_grad_(True)

wrong = critic(real, (y + 1) % 10).mean()
print(f"after {options.steps} steps: critic's loss {loss_d:.4f}, generator's loss {loss_g:.4f}")
print(f"f̂ of real digits with their labels {critic(real, y).mean():.3f}, with wrong ones {wrong:.3f}")
