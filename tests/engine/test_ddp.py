"""Critics on two processes: the gradients and the state of one, or a refusal that says what gives them."""

import pytest
import torch
import torch.distributed
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor
from torch.multiprocessing import start_processes
from torch.nn.parallel import DistributedDataParallel

import gnfast
from gnfast import GradientNorm, penalties
from tests.oracle import Unseen, relative_error
from tests.processes import START


def make_net(activation=nn.ReLU):
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3, padding=1), activation(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(4 * 3 * 2, 1)
    return nn.Sequential(*layers).double()


def make_images():
    return torch.randn(6, 3, 7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


class Penalised(nn.Module):
    """A critic's value with a penalty, as a module: the way to give both to what goes around a module."""

    def __init__(self, **options):
        super().__init__()
        self.net, self.options = make_net(), options

    def forward(self, x):
        f, n = gnfast.value_and_grad_norm(self.net, x, **self.options)
        return f + n.square()[:, None]


CRITICS = {
    "four passes": lambda: GradientNorm(make_net(), strict=True),
    "static": lambda: GradientNorm(make_net(), static=True),
    "six passes": lambda: GradientNorm(make_net(nn.Softplus), strict=True),
    "fallback": lambda: GradientNorm(make_net(Unseen)),
    "value and penalty": Penalised,
    "spectral": lambda: gnfast.spectral_norm_(make_net()),
}
TRUTH = CRITICS | {
    "four passes": lambda: GradientNorm(make_net(), impl="reference"),
    "static": lambda: GradientNorm(make_net(), impl="reference"),
    "six passes": lambda: GradientNorm(make_net(nn.Softplus), impl="reference"),
    "fallback": lambda: GradientNorm(make_net(Unseen), impl="reference"),
    "value and penalty": lambda: Penalised(impl="reference"),
}


def shard(critic):
    return fully_shard(critic, mesh=init_device_mesh("cpu", (2,)))


def shard_flat(critic):
    return FullyShardedDataParallel(critic, device_id=torch.device("cpu"), use_orig_params=True)


WAYS = {
    "DistributedDataParallel": DistributedDataParallel,
    "FullyShardedDataParallel": shard_flat,
    "fully_shard": shard,
}
AROUND = [(way, name) for way in WAYS for name in CRITICS if name != "spectral" or way == "DistributedDataParallel"]
INSIDE = {
    "normalize_gradient": gnfast.normalize_gradient,
    "r1": penalties.r1,
    "GradientNorm": lambda net, x: GradientNorm(net, impl="reference")(x),
    "a part of the net": lambda net, x: GradientNorm(nn.Sequential(nn.Identity(), net))(x),
}


def train(critic, x):
    """Two steps with two forwards each, so that all that DDP waits for arrives; the last gradients, and the state."""
    for _ in range(2):
        critic.zero_grad()
        ((1 + critic(x)).square().mean() - critic(x + 1).mean()).backward()
    if isinstance(critic, FullyShardedDataParallel):
        with FullyShardedDataParallel.summon_full_params(critic, with_grads=True):
            return [p.grad.clone() for p in critic.parameters()], []
    return [whole(p.grad) for p in critic.parameters()], [whole(t) for t in critic.state_dict().values()]


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def refusal(call, net, x):
    try:
        call(net, x)
    except gnfast.InputError as error:
        return str(error)


def work(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    x = make_images().chunk(2)[rank]
    results = {}
    for way, name in AROUND:
        critic = CRITICS[name]()
        if rank == 1 and way == "DistributedDataParallel":
            for buffer in critic.buffers():
                buffer.neg_()
        results[way, name] = train(WAYS[way](critic), x)
    refusals = {way: [refusal(call, wrap(make_net()), x) for call in INSIDE.values()] for way, wrap in WAYS.items()}
    torch.save((results, refusals), f"{folder}/{rank}.pt")
    # A DDP that outlives its group can wait forever: it joins gloo's thread while it holds the interpreter's lock.
    del critic
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("processes")
    start_processes(work, args=(str(folder),), nprocs=2, start_method=START)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize(("way", "name"), AROUND, ids=map(" ".join, AROUND))
def test_two_processes_give_the_gradients_of_one(way, name, seen):
    expected = train(TRUTH[name](), make_images())
    for results, _ in seen:
        for actual, wanted in zip(results[way, name], expected, strict=True):
            assert way == "FullyShardedDataParallel" or len(actual) == len(wanted)
            assert all(relative_error(a, e) < 1e-10 for a, e in zip(actual, wanted, strict=False))


@pytest.mark.parametrize("way", WAYS)
def test_inside_a_call_they_are_refused_by_name(way, seen):
    for _, refusals in seen:
        for call, message in zip(INSIDE, refusals[way], strict=True):
            where = "submodule '1' is" if call == "a part of the net" else "it is"
            assert message.startswith(f"net: {where} wrapped by {way}, ")
            assert f"{way}(GradientNorm(net))" in message
