"""One forward of several batches against as many forwards: images, gradients and every buffer."""

import copy

import pytest
import torch
from torch import nn

import gnfast
from gnfast import InputError, models
from gnfast.kernels.batch_norm import plain
from gnfast.steps.grouped import grouped_batch_norm

GROUPS, BATCH = 3, 4


class Norms(nn.Module):
    """A norm on vectors, one with a plain mean over all batches, one without running statistics, one per sample."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(5, 12)
        self.vectors = nn.BatchNorm1d(12)
        self.mean = nn.BatchNorm1d(12, momentum=None)
        self.batch_only = nn.BatchNorm2d(3, track_running_stats=False, affine=False)
        self.instance = nn.InstanceNorm2d(3)

    def forward(self, z):
        h = self.mean(self.vectors(self.linear(z)).relu()).unflatten(1, (3, 2, 2))
        return self.instance(self.batch_only(h) + 0.1)


GENERATORS = {
    "dcgan": lambda: models.build("dcgan", resolution=16, z_dim=5, width=0.05)[0],
    "resnet": lambda: models.build("resnet", resolution=32, z_dim=5, width=0.02)[0],
    "norms": Norms,
}


@pytest.mark.parametrize("rewritten", [False, True], ids=["plain", "rewritten"])
@pytest.mark.parametrize("name", GENERATORS)
def test_equals_separate_forwards(name, rewritten):
    alone = GENERATORS[name]().double()
    together = copy.deepcopy(alone)
    z = torch.randn(GROUPS * BATCH, 5, dtype=torch.float64)
    run = gnfast.rewrite(together) if rewritten else together
    for step in range(2):
        expected = torch.cat([alone(part) for part in z.chunk(GROUPS)])
        with grouped_batch_norm(run, GROUPS):
            actual = run(z)
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12, msg=f"step {step}")
    actual.square().sum().backward()
    expected.square().sum().backward()
    for (key, left), (_, right) in zip(together.state_dict().items(), alone.state_dict().items(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12, msg=key)
    for (key, left), right in zip(together.named_parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(left.grad, right.grad, rtol=1e-9, atol=1e-9, msg=key)


@pytest.mark.parametrize("fused", [False, True])
def test_buffers_that_a_functional_call_brings(fused, monkeypatch):
    """Are counted, and averaged over all batches, as the module's own are."""
    net = Norms().double()
    z = torch.randn(GROUPS * BATCH, 5, dtype=torch.float64)
    alone, together = ({key: t.clone() for key, t in net.state_dict().items()} for _ in range(2))
    expected = torch.cat([torch.func.functional_call(net, alone, (part,)) for part in z.chunk(GROUPS)])
    monkeypatch.setattr(plain, "FUSES", fused)
    with grouped_batch_norm(net, GROUPS):
        actual = torch.func.functional_call(net, together, (z,))
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)
    assert not net.mean.num_batches_tracked


def test_eval_mode_and_one_group_are_left_alone():
    net = GENERATORS["dcgan"]()
    z = torch.randn(6, 5)
    twin = copy.deepcopy(net)
    with grouped_batch_norm(net, 1):
        assert torch.equal(net(z), twin(z))
    net.eval(), twin.eval()
    with grouped_batch_norm(net, 4):
        assert torch.equal(net(z), twin(z))


def test_what_it_cannot_do_is_refused():
    net = GENERATORS["dcgan"]()
    with pytest.raises(InputError, match="batch of 7, wanted a multiple of 2"), grouped_batch_norm(net, 2):
        net(torch.randn(7, 5))
    with pytest.raises(InputError, match="groups: got 0"), grouped_batch_norm(net, 0):
        pass
    for normalize in (gnfast.spectral_norm, nn.utils.spectral_norm, nn.utils.parametrizations.spectral_norm):
        net = nn.Sequential(normalize(nn.Linear(5, 3)), nn.BatchNorm1d(3))
        with pytest.raises(InputError, match="iterates once per forward"), grouped_batch_norm(net, 2):
            pass
        with grouped_batch_norm(net.eval(), 2):
            net(torch.randn(4, 5))
    with pytest.raises(InputError, match="over processes"), grouped_batch_norm(nn.SyncBatchNorm(3), 2):
        pass
