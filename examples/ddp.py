"""DistributedDataParallel: it goes around the GradientNorm, never inside.

    python examples/ddp.py
    torchrun --nproc-per-node 2 examples/ddp.py
    torchrun --nproc-per-node 8 examples/ddp.py --device cuda

The line that changes is DDP(critic) -> DDP(GradientNorm(critic)): DDP shares the gradients of what it is around, and a
gnfast call on a DDP critic is an error that says so. The generator's step takes the critic out of DDP (`.module`) and
freezes it: there is nothing to share then, and two passes do. For checkpoints, `critic.module.state_dict()` has the
keys of the plain critic. Any number of processes gives the weights of one.
"""

import argparse
import os
from itertools import cycle, islice

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

import gnfast

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--steps", type=int, default=200)
parser.add_argument("--device", default="cpu")
options = parser.parse_args()

if "RANK" in os.environ:  # started by torchrun
    dist.init_process_group()
else:
    dist.init_process_group(store=dist.HashStore(), rank=0, world_size=1)
rank, world = dist.get_rank(), dist.get_world_size()
device = torch.device(options.device if options.device == "cpu" else f"cuda:{os.environ.get('LOCAL_RANK', 0)}")

torch.manual_seed(0)
generator = nn.Sequential(
    *(nn.Linear(32, 32 * 2 * 2), nn.Unflatten(1, (32, 2, 2)), nn.ReLU()),
    *(nn.ConvTranspose2d(32, 16, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(16, 1, 4, 2, 1), nn.Tanh()),
).to(device)
critic = nn.Sequential(
    *(nn.Conv2d(1, 16, 3, padding=1), nn.LeakyReLU(0.1), nn.Conv2d(16, 32, 4, 2, 1), nn.LeakyReLU(0.1)),
    *(nn.Flatten(), nn.Linear(32 * 4 * 4, 1)),
).to(device)
generator = DistributedDataParallel(generator)
critic = DistributedDataParallel(gnfast.GradientNorm(critic))  # the line that changes
optim_g = torch.optim.Adam(generator.parameters(), lr=2e-4, betas=(0.0, 0.9))
optim_d = torch.optim.Adam(critic.parameters(), lr=2e-4, betas=(0.0, 0.9))

images = torch.Tensor(load_digits().images)[:, None] / 8 - 1
sampler = DistributedSampler(images, shuffle=False)
loader = DataLoader(images, batch_size=64 // world, sampler=sampler, drop_last=True)

for real in islice(cycle(loader), options.steps):
    real = real.to(device)
    # All processes draw the same latents, and each takes its own.
    fake = generator(torch.randn(world, len(real), 32, device=device)[rank])

    # One call for both: DDP sees one forward for each backward.
    pred_real, pred_fake = critic(torch.cat([real, fake.detach()])).chunk(2)
    loss_d = torch.relu(1 - pred_real).mean() + torch.relu(1 + pred_fake).mean()
    optim_d.zero_grad()
    loss_d.backward()
    optim_d.step()

    critic.requires_grad_(False)
    loss_g = -critic.module(fake).mean()
    optim_g.zero_grad()
    loss_g.backward()
    optim_g.step()
    critic.requires_grad_(True)

if rank == 0:
    print(f"{world} processes, {options.steps} steps: critic's loss {loss_d:.4f}, generator's loss {loss_g:.4f}")
# A DDP that outlives its group may wait forever.
del generator, critic
dist.destroy_process_group()
