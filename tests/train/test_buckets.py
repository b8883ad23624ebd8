"""Gradients in buckets: several processes train as one, and most bytes leave before the tangent pass ends."""

import dataclasses
import weakref
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

import gnfast
from gnfast import models
from gnfast.bench.critics import shipped
from gnfast.bench.program import as_on_a_gpu
from gnfast.data import ImageDataset
from gnfast.engine import passes
from gnfast.engine.branch import InLine
from gnfast.engine.handout import Handout
from gnfast.kernels.join import plain
from gnfast.steps.captured import CapturedStep, CaptureError
from gnfast.train import buckets
from gnfast.train.buckets import averaged
from gnfast.train.draws import CriticDraw, Latents, move_all
from gnfast.train.parallel import ALONE, CapturedTogether, Group
from gnfast.train.state import State
from gnfast.train.step import critic_update
from tests.train.test_train_parallel import CONFIG, in_processes

# Adam's ε keeps it from enlarging gradients that are rounding alone: those of biases in front of batch norm.
PLAIN = dataclasses.replace(
    CONFIG, batch_d=6, batch_g=6, n_dis=1, penalty="none", consistency=0.0, orthonormal=0.0, adam_eps=1e-4
)
CONFIGS = {
    "CNN": PLAIN,
    "five critic updates": dataclasses.replace(PLAIN, n_dis=5),
    "ResNet": dataclasses.replace(PLAIN, model="resnet", resolution=32, width=0.02),
    "contiguous": dataclasses.replace(PLAIN, memory_format="contiguous"),
    "spectral norm": dataclasses.replace(PLAIN, spectral_norm=True, learn_scale=True),
    "spectral norm alone": dataclasses.replace(PLAIN, spectral_norm=True, method="none"),
    "rescaled": dataclasses.replace(PLAIN, rescale="initial"),
    "two calls and autograd": dataclasses.replace(PLAIN, penalty="r1", orthonormal=0.01),
    "penalty alone": dataclasses.replace(PLAIN, method="none", penalty="1-gp"),
    "double backward": dataclasses.replace(PLAIN, impl="reference"),
    "conditional": dataclasses.replace(PLAIN, model="sngan-projection", resolution=64, width=0.02, classes=3),
    "BigGAN": dataclasses.replace(PLAIN, model="biggan", resolution=32, width=0.02, classes=3),
    "classifier": dataclasses.replace(
        PLAIN, model="sngan-ac", resolution=32, width=0.02, classes=3, auxiliary=1.0, method="none"
    ),
}
SOME = "CNN", "spectral norm", "two calls and autograd"
STEPS = 2
LITTLE = 256


def dataset(config):
    generator = torch.Generator().manual_seed(3)
    shape = (40, 3, config.resolution, config.resolution)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return ImageDataset("noise", images, torch.arange(40) % 3, ("a", "b", "c"))


def train(group, config):
    state = State(config, dataset(config), torch.device("cpu"), group)
    for _ in range(STEPS):
        state.update()
    return group.mean(torch.stack(state.pending)), state.critic.state_dict(), state.generator.state_dict()


def accumulated(group):
    """The critic after an update on given images: one part in one process, two in each of several."""
    config = dataclasses.replace(PLAIN, batch_d=12, accumulate=2 if group.world > 1 else 1)
    state = State(config, dataset(config), torch.device("cpu"), group)
    generator = torch.Generator().manual_seed(1)
    real, fake = torch.rand(2, 12, 3, 16, 16, dtype=torch.float64, generator=generator).mul(2).sub(1)
    draw = CriticDraw(real, None, Latents(torch.zeros(12, config.z_dim), None), None, None, fake)
    losses = critic_update(state, move_all(draw, group.share))
    return group.mean(losses), state.critic.state_dict(), {}


def arranged(group):
    """A training whose steps draw themselves, for a graph."""
    with as_on_a_gpu():
        return train(group, dataclasses.replace(CONFIGS["five critic updates"], lr_decay="linear", steps=STEPS + 1))


def everything(group):
    """Three processes train with a few of the settings, and one in buckets of usual size."""
    usual = buckets.BUCKET_BYTES
    results = {name: work(group) for name, work in OTHERS.items()}
    buckets.BUCKET_BYTES = LITTLE
    chosen = CONFIGS if group.world == 2 else SOME
    results |= {name: train(group, CONFIGS[name]) for name in chosen}
    buckets.BUCKET_BYTES = usual
    return results


OTHERS = {
    "accumulated": accumulated,
    "usual buckets": lambda group: train(group, CONFIGS["CNN"]),
    "as on a GPU": arranged,
}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each of two and of three processes found."""
    return {world: in_processes(world, everything, tmp_path_factory.mktemp("processes")) for world in (2, 3)}


CASES = [(2, name) for name in [*OTHERS, *CONFIGS]] + [(3, name) for name in [*OTHERS, *SOME]]


@pytest.mark.parametrize(("world", "case"), CASES, ids=[f"{world} {case}" for world, case in CASES])
def test_processes_train_as_one(found, world, case):
    first, *others = (results[case] for results in found[world])
    expected = train(ALONE, CONFIGS[case]) if case in CONFIGS else OTHERS[case](ALONE)
    torch.testing.assert_close(first, expected, rtol=0, atol=1e-10)
    for other in others:
        assert all(torch.equal(*pair) for pair in zip(tree_leaves(first), tree_leaves(other), strict=True))


class Counted(InLine):
    """Counts the layers whose weight gradients are found."""

    found = 0

    def run(self, work, reads):
        Counted.found += not isinstance(work.func, Handout)
        return super().run(work, reads)


@pytest.fixture
def sent(monkeypatch):
    """Of each all-reduce, which adds nothing here: after how many layers' gradients it began, and its bytes."""
    sent = []

    def all_reduce(flat, async_op):
        assert async_op
        sent.append((Counted.found, flat.nbytes))
        return SimpleNamespace(wait=lambda: sent.append("waits"))

    monkeypatch.setattr(buckets.dist, "all_reduce", all_reduce)
    monkeypatch.setattr(Counted, "found", 0)
    monkeypatch.setattr(passes, "branch", Counted)
    return sent


WAYS = [("CNN 32", False, False), ("ResNet 32", False, False), ("ResNet 48", True, False), ("ResNet 32", True, True)]


@pytest.mark.parametrize(("name", "is_fused", "is_narrow"), WAYS, ids=str)
def test_most_bytes_are_on_their_way_before_the_last_layer(name, is_fused, is_narrow, sent, monkeypatch):
    """Of critics as they are, with operations fused as on a GPU, and in bfloat16 with gradients in float32."""
    monkeypatch.setattr(plain, "FUSES", is_fused)
    network = shipped(name)
    critic = network.critic(torch.float32, torch.channels_last)
    x = network.images(1, torch.float32, torch.channels_last)

    def backward():
        critic.zero_grad()
        Counted.found = 0
        with torch.autocast("cpu", torch.bfloat16, enabled=is_narrow):
            f_hat = gnfast.normalize_gradient(critic, x)
        f_hat.sum().backward()
        return [parameter.grad for parameter in critic.parameters()]

    expected = backward()
    layers = Counted.found
    with averaged(Group(0, 2), critic.parameters()):
        assert not any(gradient is not None for gradient in backward())
    for parameter, gradient in zip(critic.parameters(), expected, strict=True):
        assert torch.equal(2 * parameter.grad, gradient) and parameter.grad.stride() == parameter.stride()
    buckets_sent = sent[: sent.index("waits")]
    assert len(sent) == 2 * len(buckets_sent), "nothing waits before all is sent"
    before = sum(size for found, size in buckets_sent if found < layers)
    total = sum(size for _, size in buckets_sent)
    assert buckets_sent[0][0] < layers / 2 and before > 0.85 * total, f"{before / total:.0%} of {total}"


def test_a_generators_last_layers_are_sent_first(sent, monkeypatch):
    monkeypatch.setattr(buckets, "BUCKET_BYTES", 1)
    net = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    order = []
    net[0].register_full_backward_hook(lambda *_: order.append(len(sent)))
    with averaged(Group(0, 2), net.parameters()):
        net(torch.randn(4, 3, requires_grad=True)).sum().backward()
    sizes = [size for _, size in sent[:4]]
    assert sorted(sizes[:2]) == [16, 48] and sorted(sizes[2:]) == [32, 64]
    assert order == [2] or order == [4]


def test_a_backward_after_the_block_keeps_its_gradients(sent):
    critic = models.build("dcgan", resolution=32, width=0.05)[1]
    with averaged(Group(0, 2), critic.parameters()):
        f_hat = gnfast.normalize_gradient(critic, torch.randn(2, 3, 32, 32))
    f_hat.sum().backward()
    assert not sent and all(parameter.grad is not None for parameter in critic.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_parameters_with_gaps_or_overlaps_or_of_another_dtype_share_a_bucket_with_others(dtype, sent):
    """A user's networks may have such: slices, expanded ones, some in float64."""
    slices, expanded = torch.randn(5, 8)[:, ::2], torch.randn(1, 4, dtype=dtype).expand(3, 4)
    net = nn.ParameterList([slices, expanded, torch.randn(4, 6).t()])

    def backward():
        for parameter in net:
            parameter.grad = None
        sum(
            (parameter * torch.arange(1.0, 1 + parameter.numel()).view_as(parameter)).sum() for parameter in net
        ).backward()
        return [parameter.grad for parameter in net]

    expected = backward()
    with averaged(Group(0, 2), net):
        backward()
    for parameter, gradient in zip(net, expected, strict=True):
        assert torch.equal(2 * parameter.grad, gradient)
    assert net[2].grad.stride() == net[2].stride()


def test_gradients_that_another_stream_may_yet_have_to_read_are_kept(sent):
    parameter = nn.Parameter(torch.zeros(buckets.BUCKET_BYTES // 4))
    taker = buckets.Buckets(Group(0, 2), [parameter])
    gradient = torch.ones_like(parameter)
    kept = weakref.ref(gradient)
    taker.take([(parameter, gradient)])
    del gradient
    assert len(sent) == 1 and kept() is not None
    taker.finish()
    assert torch.equal(parameter.grad, torch.full_like(parameter, 0.5))


class Peer:
    """A process of two, of which the other could not capture its step."""

    def any(self, flag):
        self.told = flag
        return True


@pytest.mark.parametrize("fails", [False, True], ids=["the other failed", "both failed"])
def test_no_graph_is_replayed_where_another_process_has_none(fails, monkeypatch):
    def capture(step, args):
        step._graph = "a graph"
        if fails:
            raise CaptureError("a reason")

    monkeypatch.setattr(CapturedStep, "_capture", capture)
    peer = Peer()
    step = CapturedTogether(lambda: None, torch.device("cuda"), peer)
    with pytest.raises(CaptureError, match="a reason" if fails else "another process of the run"):
        step._capture(())
    assert peer.told == fails and not step.captured


@pytest.mark.gpu
@pytest.mark.parametrize("family", ["resnet", "dcgan"])
def test_buckets_are_part_of_a_captured_step(family, tmp_path):
    """All-reduces of one process, which add nothing, on the branch of a graph; the mean is that of two."""
    how = {"init_method": f"file://{tmp_path}/meeting", "rank": 0, "world_size": 1}
    torch.distributed.init_process_group("cpu:gloo,cuda:nccl", **how)
    try:
        torch.manual_seed(0)
        net = models.build(family, resolution=32, width=0.25)[1].double().cuda()
        images = [torch.randn(8, 3, 32, 32, dtype=torch.float64, device="cuda") for _ in range(8)]

        def step(x, world=2):
            net.zero_grad()
            with averaged(Group(0, world), net.parameters()):
                gnfast.normalize_gradient(net, x, strict=True).square().sum().backward()
            return [parameter.grad for parameter in net.parameters()]

        expected = [[gradient / 2 for gradient in step(x, world=1)] for x in images]
        captured = CapturedStep(step, "cuda")
        for x, gradients in zip(images, expected, strict=True):
            torch.testing.assert_close(captured(x), gradients)
        assert captured.captured
    finally:
        torch.distributed.destroy_process_group()
