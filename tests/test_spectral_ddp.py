"""A spectrally normalised critic in DistributedDataParallel: two processes give the gradients, u and v of one."""

import torch
import torch.distributed
import torch.multiprocessing
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import gnfast
from tests.oracle import relative_error


def make_critic():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(4 * 3 * 2, 1)
    return gnfast.spectral_norm_(nn.Sequential(*layers).double())


def make_images():
    return torch.randn(6, 3, 7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def train(critic, x):
    """Two steps with two forwards each; the last gradients and the state."""
    for _ in range(2):
        critic.zero_grad()
        ((1 + critic(x)).square().mean() - critic(x + 1).mean()).backward()
    return [p.grad for p in critic.parameters()], list(critic.state_dict().values())


def work(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    critic = make_critic()
    if rank == 1:
        for buffer in critic.buffers():
            buffer.neg_()
    # No DDP outlives its group: it could wait forever (tests/test_ddp.py).
    torch.save(train(DistributedDataParallel(critic), make_images().chunk(2)[rank]), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_give_the_gradients_of_one(tmp_path):
    torch.multiprocessing.spawn(work, args=(str(tmp_path),), nprocs=2)
    expected = train(make_critic(), make_images())
    for rank in range(2):
        for actual, wanted in zip(torch.load(tmp_path / f"{rank}.pt"), expected, strict=True):
            assert all(relative_error(a, b) < 1e-10 for a, b in zip(actual, wanted, strict=True))
