"""accelerate: GradientNorm goes around the critic before `prepare`, so that DDP comes around both.

    python examples/accelerate_loop.py
    accelerate launch --num_processes 2 examples/accelerate_loop.py                       (two GPUs)
    ACCELERATE_USE_CPU=1 torchrun --nproc-per-node 2 examples/accelerate_loop.py          (two processes on a CPU)

The line that changes wraps the critic. For the generator's step take the critic out of DDP by `unwrap_model` (it stays
a GradientNorm) and freeze it: its own gradients are not wanted there, so there is nothing to share, and two passes do.
"""

import argparse
from itertools import cycle, islice

import torch
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader

import gnfast

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--steps", type=int, default=200)
options = parser.parse_args()

accelerator = Accelerator()
torch.manual_seed(0)
generator = nn.Sequential(
    *(nn.Linear(32, 32 * 2 * 2), nn.Unflatten(1, (32, 2, 2)), nn.ReLU()),
    *(nn.ConvTranspose2d(32, 16, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(16, 1, 4, 2, 1), nn.Tanh()),
)
critic = nn.Sequential(
    *(nn.Conv2d(1, 16, 3, padding=1), nn.LeakyReLU(0.1), nn.Conv2d(16, 32, 4, 2, 1), nn.LeakyReLU(0.1)),
    *(nn.Flatten(), nn.Linear(32 * 4 * 4, 1)),
)
critic = gnfast.GradientNorm(critic)  # the line that changes
optim_g = torch.optim.Adam(generator.parameters(), lr=2e-4, betas=(0.0, 0.9))
optim_d = torch.optim.Adam(critic.parameters(), lr=2e-4, betas=(0.0, 0.9))
images = torch.Tensor(load_digits().images)[:, None] / 8 - 1
loader = DataLoader(images, batch_size=64, drop_last=True)
generator, critic, optim_g, optim_d, loader = accelerator.prepare(generator, critic, optim_g, optim_d, loader)

for real in islice(cycle(loader), options.steps):
    # All processes draw the same latents, and each takes its own.
    latents = torch.randn(accelerator.num_processes, len(real), 32, device=accelerator.device)
    fake = generator(latents[accelerator.process_index])

    # One call for both: DDP sees one forward for each backward.
    pred_real, pred_fake = critic(torch.cat([real, fake.detach()])).chunk(2)
    loss_d = torch.relu(1 - pred_real).mean() + torch.relu(1 + pred_fake).mean()
    optim_d.zero_grad()
    accelerator.backward(loss_d)
    optim_d.step()

    critic.requires_grad_(False)
    loss_g = -accelerator.unwrap_model(critic)(fake).mean()
    optim_g.zero_grad()
    accelerator.backward(loss_g)
    optim_g.step()
    critic.requires_grad_(True)

accelerator.print(f"after {options.steps} steps: critic's loss {loss_d:.4f}, generator's loss {loss_g:.4f}")
# In this order: a DDP that outlives its processes' group may wait forever.
generator, critic = accelerator.free_memory(generator, critic)
accelerator.end_training()
