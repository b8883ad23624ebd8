"""Critics whose samples depend on each other, or whose batch lies elsewhere than in axis 0: against double backward."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gnfast
from gnfast import reference
from gnfast.kernels.join import plain
from tests.engine.test_engine import Called, normal
from tests.oracle import assert_matches_double_backward, assert_same_state

B = 4


def critic(function, last=False):
    """h = x · w, then what `function` makes of h, of any shape: bent, weighted, and added up for every sample."""

    def forward(net, x):
        h = F.leaky_relu(x * net.w, 0.2)
        y = function(net, h)
        if last:
            return y
        y = F.leaky_relu(y, 0.3) * net.out[: y.numel()].reshape(y.shape)
        own = (h * net.w).flatten(1).sum(1)
        return own + (y.reshape(len(y), -1).sum(1) if y.shape[:1] == own.shape else y.sum() * net.each[: len(x)])

    parts = {"w": normal(7), "v": normal(3, 1, 1), "u": normal(7), "each": normal(12), "out": normal(5000)}
    return Called(forward, **parts, _k=normal(5, 7), _m=normal(B, 6), conv=nn.Conv2d(3, 3, 3, padding=1).double())


def stddev(h, groups, features=1):
    """StyleGAN2's, by absolute values."""
    _, c, height, width = h.shape
    y = h.view(groups, -1, features, c // features, height, width)
    y = (y - y.mean(dim=0)).abs().mean(dim=0).mean(dim=[2, 3, 4], keepdim=True).squeeze(2)
    return torch.cat([h, y.repeat(groups, 1, height, width)], dim=1)


def upfirdn(h):
    """StyleGAN2's blur: channels become samples, and samples again."""
    b, c, height, width = h.shape
    kernel = torch.outer(torch.arange(1.0, 4), torch.arange(1.0, 4)).to(h.dtype)[None, None]
    return F.conv2d(F.pad(h.reshape(-1, 1, height, width), (1, 1, 1, 1)), kernel).view(b, c, height, width)


def phase_shuffle(h, shifts=(0, 2, -1, 2)):
    """WaveGAN's, as its PyTorch versions write it."""
    y = h.clone()
    for shift in set(shifts[: len(h)]):
        chosen = [i for i, s in enumerate(shifts[: len(h)]) if s == shift]
        if shift > 0:
            y[chosen] = F.pad(h[chosen][..., :-shift], (shift, 0, 0, 0), mode="reflect")
        else:
            y[chosen] = F.pad(h[chosen][..., -shift:], (0, -shift, 0, 0), mode="reflect")
    return y


MIXING = {
    "sum over the batch": lambda net, h: h.sum(0),
    "mean over the batch, kept": lambda net, h: h - h.mean(0, keepdim=True),
    "mean of all": lambda net, h: h - h.mean(),
    "sum over some axes": lambda net, h: h.sum((0, 2)),
    "amax over the batch": lambda net, h: h.amax(0),
    "amin of all": lambda net, h: h.amin() + h,
    "max of all, median of all": lambda net, h: h.max() * 2 + h.median() - h.min(),
    "max over the batch": lambda net, h: h.max(0)[0] - h.min(dim=0, keepdim=True).values,
    "median over the batch": lambda net, h: h.median(0)[0],
    "sort over the batch": lambda net, h: h.sort(0, descending=True)[0],
    "topk over the batch": lambda net, h: h.topk(min(2, len(h)), 0)[0],
    "kthvalue over the batch": lambda net, h: h.kthvalue(1, 0)[0],
    "L1 norm of all": lambda net, h: h / 9 - h.norm(1),
    "flip": lambda net, h: h.flip(0) + h,
    "roll": lambda net, h: h.roll(1, 0) - h,
    "roll of all": lambda net, h: h.roll(5),
    "half of the batch": lambda net, h: h[: len(h) // 2 + 1] * 2,
    "every other one": lambda net, h: h[::2],
    "a sample": lambda net, h: h - h[-1],
    "an index": lambda net, h: h[torch.arange(len(h) - 1, -1, -1)],
    "an index along two axes": lambda net, h: h[torch.arange(len(h)).flip(0), torch.zeros(len(h), dtype=torch.int64)],
    "an index that moves the batch": lambda net, h: h[:, [0, 1], :, [3, 3]],
    "index_select": lambda net, h: h.index_select(0, torch.zeros(3, dtype=torch.int64)),
    "gather": lambda net, h: h.flatten(1).gather(0, torch.zeros(2, 5, dtype=torch.int64)),
    "take_along_dim of all": lambda net, h: torch.take_along_dim(h, torch.tensor([3, 1, 90]))[:, None],
    "take": lambda net, h: torch.take(h, torch.tensor([[3], [1], [90]])),
    "view of all": lambda net, h: h.view(-1).relu(),
    "flatten": lambda net, h: h.flatten() - 0.1,
    "flatten two": lambda net, h: net.u * h.flatten(0, 1),
    "views that begin alike": lambda net, h: h.flatten(1).reshape(105, -1).reshape(len(h), -1) ** 2,
    "transpose": lambda net, h: h.transpose(0, 1),
    "permute": lambda net, h: h.permute(2, 3, 0, 1).relu().abs(),
    "sequences first": lambda net, h: F.linear(h.flatten(2).permute(2, 0, 1), net.v[:, 0].t()).relu().permute(1, 2, 0),
    "matrix transposed": lambda net, h: h.flatten(1).t().relu() + h.flatten(1).T,
    "cat": lambda net, h: torch.cat([h, net.conv(h)]),
    "cat of halves": lambda net, h: torch.cat([h[1:], h[:1]]),
    "cat with constants": lambda net, h: torch.cat([net._k.expand(2, 3, 5, 7), h]),
    "stack": lambda net, h: net.u * torch.stack([h, h.abs()]),
    "stack and view": lambda net, h: torch.stack([h, h.abs()]).transpose(0, 1).flatten(1, 2),
    "stack and a slice": lambda net, h: torch.stack([h, h.abs(), -h])[1:].amax(0),
    "stack and mean of all": lambda net, h: h * torch.stack([h, h.abs()]).mean(),
    "vstack": lambda net, h: torch.vstack([h, net._k.expand(1, 3, 5, 7)]),
    "hstack, dstack": lambda net, h: torch.hstack([h.flatten(), torch.dstack([h.sum((1, 2, 3))]).flatten()]),
    "expand": lambda net, h: h[None].expand(2, -1, -1, -1, -1),
    "expand of a sample": lambda net, h: h[:1].expand(3, -1, -1, -1) * net.v,
    "repeat": lambda net, h: h.repeat(2, 1, 1, 1),
    "repeat_interleave": lambda net, h: h.repeat_interleave(2, 0),
    "tile": lambda net, h: torch.tile(h, (2, 1, 1, 2)),
    "unfold along the batch": lambda net, h: h.unfold(0, min(2, len(h)), 1),
    "cumsum": lambda net, h: h.cumsum(0),
    "cumsum within": lambda net, h: torch.cumsum(h, dim=-1),
    "diff": lambda net, h: torch.diff(h, dim=0).sum(0) if len(h) > 1 else h,
    "diff within": lambda net, h: h.diff(n=2),
    "trace": lambda net, h: torch.trace(h.flatten(1)) + h,
    "tril": lambda net, h: h.flatten(1).tril(),
    "triu within": lambda net, h: h.triu(1),
    "diagonal": lambda net, h: h.diagonal(0, 0, 1),
    "diagonal within": lambda net, h: torch.diagonal(h, 1, 2, 3),
    "diag_embed": lambda net, h: torch.diag_embed(h[:, 0, 0]),
    "chunk, unbind": lambda net, h: h.chunk(2)[0].sum(0) + h.unbind(0)[-1] + sum(h),
    "einsum over the batch": lambda net, h: torch.einsum("bchw,w->chw", h, net.u),
    "einsum that moves the batch": lambda net, h: torch.einsum("bchw,kw->kbc", h, net._k),
    "einsum of none": lambda net, h: torch.einsum("bchw->", h) * h,
    "matmul over the batch": lambda net, h: net.each[: 3 * len(h)].view(3, -1) @ h.flatten(1),
    "matmul by columns": lambda net, h: h.flatten(1).t() @ net._m[: len(h)],
    "vector times matrix": lambda net, h: net.each[: len(h)] @ h.flatten(1) - h.flatten(1).t().mv(net._m[: len(h), 0]),
    "layers over the batch": lambda net, h: F.linear(h.sum((1, 2, 3)), net.each[: 2 * len(h)].view(2, -1), net.u[:2]),
    "tensors of fewer axes": lambda net, h: h + h[0, 0] - 0.3 * h.sum((0, 1)).abs(),
    "products of fewer axes": lambda net, h: h * h[0, 0] / (1 + h[1 % len(h), 2].abs()),
    "maximum of fewer axes": lambda net, h: torch.maximum(h, h[0, 0]) + torch.minimum(net._k.expand(2, 1, 1, 5, 7), h),
    "where of fewer axes": lambda net, h: torch.where(net._k > 0, h[0], h.abs()),
    "constants of more axes": lambda net, h: h * net._k.expand(2, 1, 1, 5, 7) - net.u.view(1, 1, 1, 1, 7),
    "sums against the batch": lambda net, h: h.sum((1, 2, 3)) - h.mean((2, 3), keepdim=True).transpose(0, 1),
    "padding": lambda net, h: F.pad(h, (0, 1, 0, 0, 0, 0, 1, 2)),
    "padding with a value": lambda net, h: F.pad(h, (0, 0, 0, 0, 0, 0, 1, 0), value=0.7),
    "single samples": lambda net, h: torch.stack([net.conv(sample) for sample in h]),
    "pools of one sample": lambda net, h: (
        F.max_pool2d(h[0], 2) + F.avg_pool2d(h[0], 2) - F.adaptive_avg_pool2d(h[0], (2, 3)) - h[0].amax()
    ),
    "shuffled pixels of one sample": lambda net, h: F.pixel_shuffle(torch.cat([h[0], h[-1, :1]]), 2),
    "layers of what has no batch": lambda net, h: net.conv(h.mean(0)).relu() * 0.5,
    "a linear layer of a vector": lambda net, h: F.linear(h.mean((0, 1, 2)), net._k, net.u[:5]).relu(),
    "a linear layer of a vector to a number": lambda net, h: F.linear(h.mean((0, 1, 2)), net.u) + h,
    "a number, scaled and shifted": lambda net, h: h + (h.sum().relu() * net.u[0] + net.u[1]).abs().clamp(-9, 9),
    "a number's maximum": lambda net, h: torch.maximum(h.mean(), net.u[2]) * h,
    "minibatch statistics": lambda net, h: stddev(h, 2 - len(h) % 2),
    "minibatch statistics by features": lambda net, h: stddev(h, len(h), 3),
    "blur": lambda net, h: upfirdn(h),
    "pairs": lambda net, h: net.conv(h.view(max(len(h) // 2, 1), -1, 5, 7)[:, :3]),
    "phase shuffle": lambda net, h: phase_shuffle(h),
    "written samples": lambda net, h: written(h, 0, h[-1] * 0.5),
}  # fmt: skip


def written(h, key, value):
    y = h * 1.0
    y[key] = value
    return y


class MinibatchStddev(nn.Module):
    """As the official StyleGAN2 writes it."""

    def forward(self, x):
        n, c, height, width = x.shape
        group = torch.min(torch.as_tensor(4), torch.as_tensor(n))
        y = x.reshape(group, -1, 1, c, height, width)
        y = (y - y.mean(dim=0)).square().mean(dim=0)
        y = (y + 1e-8).sqrt().mean(dim=[2, 3, 4]).reshape(-1, 1, 1, 1).repeat(group, 1, height, width)
        return torch.cat([x, y], dim=1)


@pytest.mark.parametrize("fused", [False, True])
def test_minibatch_standard_deviation(fused, monkeypatch):
    monkeypatch.setattr(plain, "FUSES", fused)
    layers = nn.Conv2d(3, 4, 3), nn.LeakyReLU(0.2), MinibatchStddev(), nn.Conv2d(5, 2, 1), nn.LeakyReLU(0.2)
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(30, 1)).double()
    for size in (4, 8, 1):
        assert_matches_double_backward(net, normal(size, 3, 5, 7))


def test_a_sum_over_the_batch_before_an_activation_as_kernels_have_it(monkeypatch, x):
    """Which are for tensors of one shape."""
    monkeypatch.setattr(plain, "FUSES", True)
    net = critic(lambda net, h: F.leaky_relu(net.conv(h) + h.mean(0, keepdim=True), 0.1))
    assert_matches_double_backward(net, x)


@pytest.mark.parametrize(
    "function",
    [
        lambda net, h: h.sum().reshape(1),
        lambda net, h: h.sum(),
        lambda net, h: F.linear(h.sum((2, 3)), net.v[None, :, 0, 0], net.u[:1]).squeeze(),
    ],
)
def test_one_logit_of_a_batch_of_one(function):
    net, x = critic(function, last=True), normal(1, 3, 5, 7)
    assert_matches_double_backward(net, x)
    assert not gnfast.trace(net, x).takes_six


def test_running_statistics_of_a_head_that_is_not_used(x):
    def unused(net, x):
        net.norm(x.tanh())
        return x.abs().sum((1, 2, 3))

    net, twin = (Called(unused, norm=nn.BatchNorm2d(3)).double() for _ in range(2))
    for _ in range(2):
        gnfast.normalize_gradient(net, x, strict=True)
        reference.normalize_gradient(twin, x)
    assert_same_state(net, twin)


@pytest.mark.parametrize("size", [B, 3, 1])
@pytest.mark.parametrize("name", MIXING)
def test_samples_that_depend_on_each_other(name, size):
    torch.manual_seed(3)
    assert_matches_double_backward(critic(MIXING[name]), normal(size, 3, 5, 7))


ROWS = torch.arange(B)
LABELS = torch.tensor([2, 0, 1, 1])

PER_SAMPLE = {
    "the logit of a class": lambda net, h: h.sum((2, 3))[ROWS, LABELS],
    "the logit of a class, by a range": lambda net, h: h.sum((2, 3))[range(B), LABELS],
    "a column of each sample": lambda net, h: h[ROWS, LABELS, :, LABELS],
    "samples as they are": lambda net, h: h[ROWS],
    "gather": lambda net, h: h.sum((2, 3)).gather(1, LABELS[:, None]),
    "a product with a class": lambda net, h: (h.sum((2, 3)) * F.one_hot(LABELS, 3)).sum(1),
    "channels": lambda net, h: h[:, [0, 1]],
    "stack and mean": lambda net, h: torch.stack([h, h.abs()]).mean(0) + torch.stack([h, net.u.expand_as(h)]).amax(0),
    "stack and take apart": lambda net, h: sum(torch.stack([h, h.abs()])) - torch.stack([h, h.abs()])[-1],
    "masked_fill": lambda net, h: h.masked_fill(net._k > 0, 0.3),
    "masked_fill by x": lambda net, h: h.masked_fill(h < 0.1, -0.3) + h.masked_fill_(h > 3, 2.0),
    "where x": lambda net, h: torch.where(h > 0, h, 0.2 * h) - torch.where(h.mean(1, keepdim=True) > 0, net.u, h),
    "where x, of numbers": lambda net, h: h * torch.where(h > 0, 1.0, 0.3) + torch.where(h > 0, h, 0.0).where(h < 2, 2),
    "a gate": lambda net, h: h * (h > 0) + (h < -0.2).double() * h + (h > 0.1) * net.v - 0.1 * (h > 0).to(h),
    "gates of gates": lambda net, h: h * ((h > 0) & ~(h > 1) | (h < -1)) * (h.sum(1, keepdim=True) > 0),
    "counts": lambda net, h: h / (1 + (h > 0).sum((1, 2, 3), keepdim=True)) + (h > 0).double().mean(1, keepdim=True),
    "signs": lambda net, h: h * h.sign() + h.round() + h.floor() * net.u,
    "the largest channel": lambda net, h: h.gather(1, h.argmax(1, keepdim=True)),
    "divided by a constant of x": lambda net, h: h / h.detach().abs().mean((1, 2, 3), keepdim=True),
    "times a constant of the batch": lambda net, h: h * h.detach().abs().mean(),
    "a curved head that is not used": lambda net, h: (net.conv(h).tanh().mean(), h)[1],
    "a mixing head that is not used": lambda net, h: (F.linear(h.mean((0, 2, 3)), net._k[:2, :3]), h)[1],
    "looked at": lambda net, h: (h.detach().mean(), h)[1],
    "diff within": lambda net, h: h.diff(dim=1) + h.cumsum(3)[:, 1:],
    "written channels": lambda net, h: written(h, (slice(None), 1), h[:, 0] * 0.5),
    "a written constant": lambda net, h: written(h, (..., [0, 3]), net.u[:2]),
    "a written number": lambda net, h: written(h, (ROWS, LABELS), 0.3),
    "written channels of each sample": lambda net, h: written(h, (ROWS, LABELS), h.mean(1)),
    "written by a mask of x": lambda net, h: written(h, h > 0.5, 0.25),
    "written by a mask": lambda net, h: written(h, (slice(None), slice(None), net._k > 0), 0.0),
}  # fmt: skip


@pytest.mark.parametrize("name", PER_SAMPLE)
def test_what_is_of_each_sample_alone_takes_four_passes(name, x):
    net = critic(PER_SAMPLE[name])
    assert_matches_double_backward(net, x)
    plan = gnfast.trace(net, x)
    assert not plan.refusals and not plan.takes_six, plan
