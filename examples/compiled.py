"""torch.compile: the generator and the code around gnfast are compiled; the critic is given to gnfast as it is.

    python examples/compiled.py
    python examples/compiled.py --backend aot_eager

The line that changes wraps the critic. A call of gnfast is one graph break: it runs the critic's own Python, and
compiles nothing of it. So `torch.compile(critic)` gains nothing here (it does no harm either), and `fullgraph=True` is
an error that says so. On a GPU take the whole step as one CUDA graph instead (cuda_graph.py).
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
parser.add_argument("--backend", default="inductor")
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


@torch.compile(backend=options.backend)
def critic_loss(real, fake):
    pred_real, pred_fake = critic(torch.cat([real, fake])).chunk(2)
    return torch.relu(1 - pred_real).mean() + torch.relu(1 + pred_fake).mean()


generate = torch.compile(generator, backend=options.backend)

images = torch.Tensor(load_digits().images)[:, None] / 8 - 1  # (1797, 1, 8, 8), from -1 to 1
loader = DataLoader(images, batch_size=64, drop_last=True)

for real in islice(cycle(loader), options.steps):
    real = real.to(device)
    fake = generate(torch.randn(len(real), 32, device=device))

    loss_d = critic_loss(real, fake.detach())
    optim_d.zero_grad()
    loss_d.backward()
    optim_d.step()

    critic.requires_grad_(False)
    loss_g = -critic(fake).mean()
    optim_g.zero_grad()
    loss_g.backward()
    optim_g.step()
    critic.requires_grad_(True)

print(f"after {options.steps} steps: critic's loss {loss_d:.4f}, generator's loss {loss_g:.4f}")
