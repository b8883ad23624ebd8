"""A whole training step as one CUDA graph, by gnfast.CapturedStep; on a CPU it just calls the step.

    python examples/cuda_graph.py
    python examples/cuda_graph.py --device cuda

The line that changes puts CapturedStep around the step, which is a function of its tensors. A graph replays what it
recorded: what changes from step to step comes in as a tensor, nothing waits for the device (no `.item()`), and
optimisers are `capturable`. Python runs for the first calls alone, gnfast's too.
"""

import argparse
from itertools import cycle, islice

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader

import gnfast

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--steps", type=int, default=200)
parser.add_argument("--device", default="cpu")
options = parser.parse_args()
device = torch.device(options.device)

torch.manual_seed(0)
generator = nn.Sequential(
    *(nn.Linear(32, 32 * 2 * 2), nn.Unflatten(1, (32, 2, 2)), nn.ReLU()),
    *(nn.ConvTranspose2d(32, 16, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(16, 1, 4, 2, 1), nn.Tanh()),
).to(device)
critic = nn.Sequential(
    *(nn.Conv2d(1, 16, 3, padding=1), nn.LeakyReLU(0.1), nn.Conv2d(16, 32, 4, 2, 1), nn.LeakyReLU(0.1)),
    *(nn.Flatten(), nn.Linear(32 * 4 * 4, 1)),
).to(device)
critic = gnfast.GradientNorm(critic)
capturable = device.type == "cuda"
optim_g = torch.optim.Adam(generator.parameters(), lr=2e-4, betas=(0.0, 0.9), capturable=capturable)
optim_d = torch.optim.Adam(critic.parameters(), lr=2e-4, betas=(0.0, 0.9), capturable=capturable)


def update(real, latents):
    fake = generator(latents)

    loss_d = torch.relu(1 - critic(real)).mean() + torch.relu(1 + critic(fake.detach())).mean()
    optim_d.zero_grad()
    loss_d.backward()
    optim_d.step()

    critic.requires_grad_(False)
    loss_g = -critic(fake).mean()
    optim_g.zero_grad()
    loss_g.backward()
    optim_g.step()
    critic.requires_grad_(True)
    return loss_d, loss_g


step = gnfast.CapturedStep(update, device)  # the line that changes

images = torch.Tensor(load_digits().images)[:, None] / 8 - 1
loader = DataLoader(images, batch_size=64, drop_last=True)

for real in islice(cycle(loader), options.steps):
    loss_d, loss_g = step(real, torch.randn(len(real), 32))

print(f"after {options.steps} steps: critic's loss {loss_d:.4f}, generator's loss {loss_g:.4f}, {step.captured=}")
