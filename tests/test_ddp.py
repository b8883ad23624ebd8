"""DistributedDataParallel around a GradientNorm: two processes give the gradients of one."""

import torch
import torch.distributed
import torch.multiprocessing
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from gnfast import GradientNorm
from tests.oracle import relative_error


def make_critic():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(4 * 3 * 2, 1)
    ).double()


def make_images():
    return torch.randn(6, 3, 7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def gradients(critic, x):
    (1 + critic(x)).square().mean().backward()
    return [p.grad for p in critic.parameters()]


def work(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    critic = DistributedDataParallel(GradientNorm(make_critic(), strict=True))
    # Twice, so that DDP's check for unfinished reductions sees the engine's gradients arrive.
    for _ in range(2):
        critic.zero_grad()
        grads = gradients(critic, make_images().chunk(2)[rank])
    torch.save(grads, f"{folder}/{rank}.pt")
    # A DDP that outlives its group can wait forever: it joins gloo's thread while it holds the interpreter's lock.
    del critic, grads
    torch.distributed.destroy_process_group()


def test_two_processes_give_the_gradients_of_one(tmp_path):
    torch.multiprocessing.spawn(work, args=(str(tmp_path),), nprocs=2)
    expected = gradients(GradientNorm(make_critic(), impl="reference"), make_images())
    for rank in range(2):
        for actual, wanted in zip(torch.load(tmp_path / f"{rank}.pt"), expected, strict=True):
            assert relative_error(actual, wanted) < 1e-10
