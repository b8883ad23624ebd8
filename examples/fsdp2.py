"""FSDP2: `fully_shard` goes around the GradientNorm as one group; the critic's parts are not sharded on their own.

    python examples/fsdp2.py
    torchrun --nproc-per-node 2 examples/fsdp2.py
    torchrun --nproc-per-node 8 examples/fsdp2.py --device cuda

The line that changes is fully_shard(critic) -> fully_shard(GradientNorm(critic)). A gnfast call on a critic with a
sharded part inside is an error that says so. The generator may be sharded layer by layer, as nothing differentiates
inside of it. For checkpoints, PyTorch's `get_model_state_dict(critic)` has the keys of the plain critic. Any number of
processes gives the weights of one.
"""

import argparse
import os
from itertools import cycle, islice

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
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
mesh = init_device_mesh(options.device, (world,))
for layer in (generator[0], generator[3]):
    fully_shard(layer, mesh=mesh)
generator = fully_shard(generator, mesh=mesh)
critic = fully_shard(gnfast.GradientNorm(critic), mesh=mesh)  # the line that changes
optim_g = torch.optim.Adam(generator.parameters(), lr=2e-4, betas=(0.0, 0.9))
optim_d = torch.optim.Adam(critic.parameters(), lr=2e-4, betas=(0.0, 0.9))

images = torch.Tensor(load_digits().images)[:, None] / 8 - 1
sampler = DistributedSampler(images, shuffle=False)
loader = DataLoader(images, batch_size=64 // world, sampler=sampler, drop_last=True)

for real in islice(cycle(loader), options.steps):
    real = real.to(device)
    # All processes draw the same latents, and each takes its own.
    fake = generator(torch.randn(world, len(real), 32, device=device)[rank])

    # One call for both gathers the weights once.
    pred_real, pred_fake = critic(torch.cat([real, fake.detach()])).chunk(2)
    loss_d = torch.relu(1 - pred_real).mean() + torch.relu(1 + pred_fake).mean()
    optim_d.zero_grad()
    loss_d.backward()
    optim_d.step()

    # The critic's gradients of this loss are dropped by its next zero_grad.
    loss_g = -critic(fake).mean()
    optim_g.zero_grad()
    loss_g.backward()
    optim_g.step()

if rank == 0:
    print(f"{world} processes, {options.steps} steps: critic's loss {loss_d:.4f}, generator's loss {loss_g:.4f}")
dist.destroy_process_group()
