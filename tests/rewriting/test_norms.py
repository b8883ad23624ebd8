"""Batch norms that gnfast.rewrite and grouped_batch_norm fuse with what follows them, against the modules as stated."""

import contextlib
import copy
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gnfast
from gnfast import UnsupportedError, models
from gnfast.kernels import backend, operands
from gnfast.kernels.batch_norm import plain
from gnfast.models.biggan import ConditionalBatchNorm
from gnfast.rewriting import folding
from gnfast.rewriting.folding import fold_kernel
from gnfast.steps import batch_norm
from gnfast.steps.grouped import grouped_batch_norm

LABELS = 4


@pytest.fixture
def calls(monkeypatch):
    """Norms are fused although that is several operations; whether each had a ReLU, in order."""
    found, original = [], batch_norm.normalise
    monkeypatch.setattr(plain, "FUSES", True)
    monkeypatch.setattr(batch_norm, "normalise", lambda *args: found.append(args[-1]) or original(*args))
    return found


@pytest.fixture
def sums(monkeypatch):
    """Those that a norm has taken in."""
    found, original = [], batch_norm._Sum.apply
    monkeypatch.setattr(batch_norm._Sum, "apply", lambda *args: found.append(args) or original(*args))
    return found


def stated(monkeypatch, net, groups, *inputs):
    """What the module itself makes of its inputs, one batch after the other."""
    with monkeypatch.context() as patch:
        patch.setattr(plain, "FUSES", False)
        parts = zip(*(t.chunk(groups) for t in inputs), strict=True)
        return torch.cat([net(*part) for part in parts])


def grouping(net, groups):
    """Spectral norm, which is in some networks, cannot be asked for several batches."""
    return grouped_batch_norm(net, groups) if groups > 1 else contextlib.nullcontext()


GENERATORS = {
    "dcgan": (32, 4, 0, 3),
    "resnet": (32, 7, 3, 3),
    "mimicry-resnet": (32, 7, 3, 2),
    "sngan-projection": (64, 9, 4, 2),
    "biggan": (32, 7, 3, 1),
    "biggan-faster": (64, 9, 3, 1),
}
"""Name: resolution, norms, how many of them take in a sum, groups. A sum that attention reads is one before it."""


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("name", GENERATORS)
def test_generators(name, layout, calls, sums, monkeypatch):
    resolution, norms, with_sum, groups = GENERATORS[name]
    conditional = models.REGISTRY[name].conditional
    classes = {"classes": LABELS} if conditional else {}
    alone = models.build(name, resolution=resolution, channels=3, z_dim=12, width=0.04, **classes)[0]
    alone = alone.double().to(memory_format=layout)
    for parameter in alone.parameters():
        if parameter.dim() == 1:
            # Gains and offsets that are neither 1 nor 0.
            nn.init.normal_(parameter, 0.5)
    together = copy.deepcopy(alone)
    fused = gnfast.rewrite(together)
    for step in range(2):
        inputs = [torch.randn(groups * 4, 12, dtype=torch.float64)]
        inputs += [torch.randint(LABELS, (groups * 4,))] if conditional else []
        expected = stated(monkeypatch, alone, groups, *inputs)
        calls.clear(), sums.clear()
        with grouping(fused, groups):
            actual = fused(*inputs)
        assert type(actual) is torch.Tensor and calls == [True] * norms and len(sums) == with_sum
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10, msg=f"step {step}")
    weight = torch.randn_like(expected)
    (actual * weight).sum().backward()
    (expected * weight).sum().backward()
    for (key, left), (_, right) in zip(together.state_dict().items(), alone.state_dict().items(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-10, msg=key)
    for (key, left), right in zip(together.named_parameters(), alone.parameters(), strict=True):
        scale = max(1.0, right.grad.abs().max().item())
        torch.testing.assert_close(left.grad, right.grad, rtol=1e-10, atol=1e-10 * scale, msg=key)


class Kinds(nn.Module):
    """Norms of all kinds, and what may follow one."""

    def __init__(self, inplace=False):
        super().__init__()
        self.linear = nn.Linear(5, 12)
        self.vectors = nn.BatchNorm1d(12)
        self.cumulative = nn.BatchNorm1d(12, momentum=None)
        self.batch_only = nn.BatchNorm2d(3, track_running_stats=False, affine=False)
        conditional = (ConditionalBatchNorm(3, lambda width: nn.Linear(5, width)) for _ in range(3))
        self.first, self.second, self.last = conditional
        self.frozen = nn.BatchNorm2d(3).eval()
        self.relu = nn.ReLU(inplace)

    def forward(self, z):
        h = self.relu(self.vectors(self.linear(z)))
        h = F.leaky_relu(self.cumulative(h), 0.1).unflatten(1, (3, 2, 2))
        h = self.relu(self.first(self.batch_only(h) * 0.9 + 0.1, z))
        return torch.relu(self.frozen(h) - 0.3), self.second(h, z).relu(), self.last(h, z)

    def train(self, mode=True):
        super().train(mode)
        self.frozen.eval()
        return self


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("groups", [1, 3])
def test_kinds_of_norms(groups, inplace, calls, monkeypatch):
    alone = Kinds(inplace).double()
    together = copy.deepcopy(alone)
    z = torch.randn(groups * 4, 5, dtype=torch.float64, requires_grad=True)
    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(plain, "FUSES", False)
            expected = [torch.cat(parts) for parts in zip(*map(alone, z.chunk(groups)), strict=True)]
        calls.clear()
        with grouping(together, groups):
            actual = gnfast.rewrite(together)(z)
    assert sorted(calls) == [False] * 3 + [True] * 3
    torch.testing.assert_close(list(actual), expected, rtol=1e-12, atol=1e-12)
    for (key, left), right in zip(together.state_dict().items(), alone.state_dict().values(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12, msg=key)
    weights = [torch.randn_like(t) for t in expected]
    grads = [
        torch.autograd.grad(outputs, [z, *net.parameters()], weights, allow_unused=True)
        for outputs, net in ((actual, together), (expected, alone))
    ]
    torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-10)


def test_second_derivatives_go_through_pytorch(calls, monkeypatch):
    """Of the same numbers, with a group's samples coupled, and gradients of gains for each sample."""
    net = Kinds().double()
    z = torch.randn(8, 5, dtype=torch.float64, requires_grad=True)

    def penalty(run, groups):
        out = run(z)
        (grad,) = torch.autograd.grad([t.square().sum() for t in out], z, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), [z, *net.parameters()], allow_unused=True)

    with grouping(net, 2):
        actual = penalty(gnfast.rewrite(net), 2)
        assert calls
        monkeypatch.setattr(plain, "FUSES", False)
        expected = penalty(net, 2)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_second_derivatives_of_half_widths(dtype, calls, monkeypatch):
    net = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU())
    x, y = torch.randn(6, 3, 4, 5), torch.randn(6, 3, 4, 5)

    def second(run, dtype):
        leaf = x.to(dtype).requires_grad_()
        (grad,) = torch.autograd.grad((run(leaf) * y.to(dtype)).float().sum(), leaf, create_graph=True)
        assert grad.dtype == dtype
        return torch.autograd.grad(grad.float().square().sum(), [leaf, net[0].weight])

    with monkeypatch.context() as patch:
        patch.setattr(plain, "FUSES", False)
        expected = second(net, torch.float32)
    actual = second(gnfast.rewrite(net), dtype)
    assert calls
    for left, right in zip(actual, expected, strict=True):
        assert (left.float() - right).norm() <= 16 * torch.finfo(dtype).eps * right.norm()


def test_a_batch_of_gradients(calls):
    net = gnfast.rewrite(nn.Sequential(nn.BatchNorm1d(3), nn.ReLU()).double())
    x = torch.randn(4, 3, dtype=torch.float64)
    together = torch.autograd.functional.jacobian(net, x, vectorize=True)
    torch.testing.assert_close(together, torch.autograd.functional.jacobian(net, x), rtol=1e-12, atol=1e-12)
    assert calls


class Sums(nn.Module):
    """Sums of all kinds before a norm, which others read as well: in both orders, of no upsampling and of two."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(4))

    def forward(self, x):
        up = nn.Upsample(scale_factor=(2, 3))
        whole = F.interpolate(x, size=(10, 21), mode="bilinear")
        total = up(self.second(x)) + self.first(whole)
        h = self.norms[0](total).relu() + total
        h = h + self.norms[1](self.first(whole) + self.second(whole)).relu()
        h = h + self.norms[2](up(self.second(x)) + up(self.first(x))).relu()
        return self.norms[3](self.second(up(x)) + self.first(whole)) * total + h


def test_sums_before_a_norm(calls, sums, monkeypatch):
    alone = Sums().double()
    together = copy.deepcopy(alone)
    x = torch.randn(6, 3, 5, 7, dtype=torch.float64, requires_grad=True)
    expected, actual = stated(monkeypatch, alone, 1, x), gnfast.rewrite(together)(x)
    assert calls == [True] * 3 + [False] and [args[2] for args in sums] == [(2, 3), (1, 1), (2, 3)]
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-11)
    weight = torch.randn_like(expected)
    actual, expected = (
        torch.autograd.grad(y, [x, *net.parameters()], weight, create_graph=True)
        for y, net in ((actual, together), (expected, alone))
    )
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)
    squares = (sum(g.square().sum() for g in grads) for grads in (actual, expected))
    nets = together, alone
    again = [torch.autograd.grad(s, [x, *net.parameters()]) for s, net in zip(squares, nets, strict=True)]
    torch.testing.assert_close(*again, rtol=1e-7, atol=1e-7)


def test_others_that_ask_a_sum_for_its_dimensions_get_its_values(calls, sums):
    class Asks(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)

        def forward(self, x):
            total = self.conv(x) + self.conv(x)
            return torch.vmap(lambda t: t * 2)(total) + self.norm(total)

    net, x = Asks().double(), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    actual = gnfast.rewrite(net)(x)
    total = 2 * net.conv(x)
    torch.testing.assert_close(actual, 2 * total + F.batch_norm(total, None, None, training=True))
    assert calls and not sums


class InPlace(nn.Module):
    """What was written in place goes on under two names."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(6)

    def forward(self, x):
        h = self.norm(x)
        y = torch.relu_(h)
        y.mul_(2)
        return h + 0, h, y


def test_a_relu_in_place_is_seen_under_both_names(calls):
    net, x = InPlace().double(), torch.randn(5, 6, dtype=torch.float64)
    for actual in gnfast.rewrite(net)(x):
        assert type(actual) is torch.Tensor
        torch.testing.assert_close(actual, 2 * F.batch_norm(x, None, None, training=True).relu())
        actual.sum().backward(retain_graph=True)
    assert calls == [True]


def test_memory_set_after_a_relu_in_place_is_that_of_both_names(calls):
    class Set(InPlace):
        def forward(self, x):
            h = self.norm(x)
            y = torch.relu_(h)
            h.set_(torch.ones(5, 6))
            return h, y

    with torch.no_grad():
        h, y = gnfast.rewrite(Set())(torch.randn(5, 6))
    assert calls == [True] and torch.equal(h, torch.ones(5, 6)) and torch.equal(y, h)


def test_what_is_asked_of_a_norm_computes_it(calls):
    class Asked(nn.Sequential):
        def forward(self, x):
            h = self[0](x)
            h.retain_grad()
            self.kept = h
            return self[1](h)

    net = Asked(nn.BatchNorm1d(3), nn.ReLU()).double()
    gnfast.rewrite(net)(torch.randn(4, 3, dtype=torch.float64)).sum().backward()
    assert calls == [False] and type(net.kept) is torch.Tensor
    torch.testing.assert_close(net.kept.grad, (net.kept > 0).double())


def test_a_change_that_nobody_shows_is_refused(calls):
    class Hidden(nn.Module):
        def forward(self, x):
            h = F.batch_norm(x, None, None, training=True)
            with torch._C.DisableTorchFunction():
                x.zero_()
            return h.relu()

    with pytest.raises(UnsupportedError, match="changed in place"):
        gnfast.rewrite(Hidden())(torch.randn(4, 3))
    assert not calls


@pytest.mark.parametrize("wrong", [{"eps": 0.0}, {"eps": -1.0}, {"momentum": None}], ids=str)
@pytest.mark.parametrize("groups", [1, 2])
def test_what_pytorch_refuses_is_refused_by_it(wrong, groups, calls, monkeypatch):
    class Wrong(nn.Module):
        def forward(self, x):
            return F.batch_norm(x, None, None, training=True, **wrong).relu()

    net, x = Wrong(), torch.randn(4, 3)
    try:
        expected = stated(monkeypatch, net, groups, x)
    except (TypeError, ValueError) as refusal:
        with grouping(net, groups), pytest.raises(type(refusal), match=re.escape(str(refusal))):
            gnfast.rewrite(net)(x)
    else:
        # Older versions of PyTorch compute with every eps.
        with grouping(net, groups):
            torch.testing.assert_close(gnfast.rewrite(net)(x), expected, equal_nan=True)
    assert not calls


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("conditional", [False, True])
def test_half_widths_are_as_exact_as_pytorch(dtype, conditional, relu, calls, monkeypatch):
    """At most twice its error, of outputs and gradients, all against float64; the same dtypes."""
    norm = ConditionalBatchNorm(7, lambda width: nn.Linear(5, width)) if conditional else nn.BatchNorm2d(7)
    x, z, weight = torch.randn(6, 7, 9, 11) * 2 + 1, torch.randn(6, 5), torch.randn(6, 7, 9, 11)
    x = x.to(dtype)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = norm

        def forward(self, x, z):
            y = self.norm(x, z) if conditional else self.norm(x)
            return y.relu() if relu else y

    def results(net, dtype):
        leaf = x.detach().to(dtype).clone().requires_grad_()
        inputs = leaf, z.double() if dtype == torch.float64 else z
        y = net(*inputs)
        (y * weight.to(y.dtype)).sum().backward()
        return [y, leaf.grad, *(p.grad for p in net.parameters())]

    nets = [copy.deepcopy(Net()) for _ in range(2)]
    fused = results(gnfast.rewrite(nets[0]), dtype)
    assert calls == [relu]
    monkeypatch.setattr(plain, "FUSES", False)
    theirs, exact = results(nets[1], dtype), results(Net().double(), torch.float64)
    for index, (ours, plainly, true) in enumerate(zip(fused, theirs, exact, strict=True)):
        assert ours.dtype == plainly.dtype
        errors = [(t.double() - true).norm().item() for t in (ours, plainly)]
        assert errors[0] <= 2 * errors[1] + 1e-6 * true.norm().item(), f"result {index}: {errors}"


@pytest.mark.parametrize("transposed", [0, 2])
def test_folds_by_one_kernel(transposed, monkeypatch):
    """As often differentiable as by PyTorch's operations, and in autocast's dtype."""
    monkeypatch.setattr(folding, "choices", lambda *_: ("triton",))
    weight = torch.randn(4, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    fold = operands.Fold((2, 3), mean=not transposed, transposed=transposed)
    assert torch.autograd.gradcheck(lambda w: fold_kernel(w, fold), weight)
    assert torch.autograd.gradgradcheck(lambda w: fold_kernel(w, fold).square(), weight)
    assert torch.equal(fold_kernel(weight, fold), operands.plain.folded(weight, fold))
    last = weight.detach().float().contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        low = fold_kernel(last, fold)
    assert torch.equal(low, operands.plain.folded(last, fold).bfloat16())
    assert low.is_contiguous(memory_format=torch.channels_last)


def test_cpus_go_on_as_they_did(monkeypatch):
    net = models.build("resnet", resolution=32, z_dim=5, width=0.02)[0]
    with monkeypatch.context() as patch:
        patch.setattr(batch_norm, "normalise", None)
        gnfast.rewrite(net)(torch.randn(6, 5))
    monkeypatch.setattr(plain, "FUSES", True)
    monkeypatch.setattr(batch_norm, "normalise", None)
    with pytest.raises(TypeError, match="NoneType"):
        gnfast.rewrite(net)(torch.randn(6, 5))


@pytest.mark.interpreted
@pytest.mark.parametrize("name", ["dcgan", "resnet", "biggan"])
def test_generators_by_interpreted_kernels(name, monkeypatch):
    conditional = models.REGISTRY[name].conditional
    classes, groups = ({"classes": LABELS}, 1) if conditional else ({}, 2)
    alone = models.build(name, resolution=32, channels=3, z_dim=5, width=0.02, **classes)[0].double()
    together = copy.deepcopy(alone).to(memory_format=torch.channels_last)
    inputs = [torch.randn(groups * 2, 5, dtype=torch.float64), *([torch.randint(LABELS, (2,))] if conditional else [])]
    expected = torch.cat([alone(*part) for part in zip(*(t.chunk(groups) for t in inputs), strict=True)])
    for operation in ("batch_norm", "operands"):
        monkeypatch.setitem(backend.CHOSEN, (operation, "cpu"), ("triton",))
    with grouping(together, groups):
        actual = gnfast.rewrite(together)(*inputs)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
    weight = torch.randn_like(expected)
    (actual * weight).sum().backward()
    (expected * weight).sum().backward()
    for (key, left), right in zip(together.state_dict().items(), alone.state_dict().values(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-10, msg=key)
    for (key, left), right in zip(together.named_parameters(), alone.parameters(), strict=True):
        scale = max(1.0, right.grad.abs().max().item())
        torch.testing.assert_close(left.grad, right.grad, rtol=1e-10, atol=1e-9 * scale, msg=key)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["dcgan", "resnet"])
def test_generators_on_a_gpu(name, precision, monkeypatch):
    """Against the same modules by PyTorch's kernels there, at the precision's own error."""
    from gnfast.kernels.batch_norm import triton

    alone = models.build(name, resolution=32, channels=3, z_dim=12, width=0.25)[0].cuda()
    alone = (alone.double() if precision == torch.float64 else alone).to(memory_format=torch.channels_last)
    together, exact = copy.deepcopy(alone), copy.deepcopy(alone).double()
    z = torch.randn(24, 12, device="cuda", dtype=torch.float64)
    cast = torch.autocast("cuda", precision, enabled=precision == torch.bfloat16)
    found = []
    for net, fuses, dtype in ((together, True, alone.linear.weight.dtype), (alone, False, None), (exact, False, None)):
        monkeypatch.setattr(triton, "FUSES", fuses)
        dtype = dtype or net.linear.weight.dtype
        with cast if net is not exact else contextlib.nullcontext(), grouped_batch_norm(net, 3):
            images = gnfast.rewrite(net)(z.to(dtype))
        images.double().square().sum().backward()
        found.append([images, *(p.grad for p in net.parameters()), *net.buffers()])
    for index, (ours, theirs, true) in enumerate(zip(*found, strict=True)):
        ours, theirs = ((t.double() - true.double()).norm().item() for t in (ours, theirs))
        rounding = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 1e-2}[precision]
        assert ours <= 2 * theirs + rounding * true.double().norm().item() + 1e-12, f"result {index}"
