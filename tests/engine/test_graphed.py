"""Passes that are replayed: by a stand-in that does again what was recorded, and on a GPU by CUDA graphs."""

import contextlib

import pytest
import torch
from torch import nn

import gnfast
from gnfast import FallbackWarning, UnsupportedError, reference
from gnfast.engine import graphed
from gnfast.engine import static as static_recordings
from tests.engine.test_static import DTYPE, FORWARDS, Critic, Standardised
from tests.oracle import PAIRS, assert_same, outputs_and_gradients

RECORDED, REPLAYED = [], []


class Graph:
    """Does again what was recorded, and puts the results where the first ones are."""

    def __init__(self, function, results):
        self.function, self.results, self.grad = function, results, torch.is_grad_enabled()

    def replay(self):
        REPLAYED.append(self)
        with torch.set_grad_enabled(self.grad):
            # A graph's memory stays; that of autograd is gone after one backward.
            if self.function.__name__ == "_pull":
                self.function.__self__._run()
            for old, new in zip(self.results, self.function(), strict=True):
                if old is not None:
                    old.copy_(new)


class Stream:
    cuda_stream = 0

    def __init__(self, device=None):
        pass

    def wait_stream(self, other):
        pass


def record(function, stream):
    results = function()
    RECORDED.append(Graph(function, results))
    return RECORDED[-1], results


def stand_in(monkeypatch):
    """On a CPU, recordings that are kept are replayed by `Graph`."""
    monkeypatch.setattr(static_recordings, "has_graphs", lambda device: True)
    monkeypatch.setattr(graphed, "record_graph", record)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", contextlib.nullcontext)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request, monkeypatch):
    RECORDED.clear()
    REPLAYED.clear()
    if request.param == "cpu":
        stand_in(monkeypatch)
    return request.param


@pytest.fixture
def net(device):
    return Critic().to(device)


@pytest.fixture
def x(device):
    return torch.randn(4, 3, 5, 7, dtype=DTYPE).to(device)


def static(net, x, *args, **kwargs):
    return gnfast.normalize_gradient(net, x, *args, static=True, strict=True, **kwargs)


def pairs_of(net):
    return [
        pair for kept in static_recordings._KNOWN[net].kept for pairs in kept.pairs.values() for pair in pairs._pairs
    ]


def check(net, x, *args, fast=static, oracle=reference.normalize_gradient):
    FORWARDS.clear()
    actual = outputs_and_gradients(fast, net, x, *args)
    count = len(FORWARDS)
    assert_same(actual, outputs_and_gradients(oracle, net, x, *args))
    return count


@pytest.mark.parametrize("name", PAIRS)
def test_replays_are_the_passes(name, net, x):
    def fast(net, x):
        return PAIRS[name][0](net, x, static=True, strict=True)

    optimizer = torch.optim.Adam(net.parameters(), 0.05)
    for call in range(4):
        assert check(net, torch.randn_like(x), fast=fast, oracle=PAIRS[name][1]) == (call == 0)
        optimizer.step()
    assert len(pairs_of(net)) == 1
    if x.device.type == "cpu":
        assert len(RECORDED) == 2 and len(REPLAYED) >= 8


def test_one_of_two_results(net, x):
    for _ in range(3):
        grads = []
        for function in PAIRS["value_and_input_grad"]:
            options = {} if function.__module__.endswith("reference") else {"static": True, "strict": True}
            _, g = function(net, x, **options)
            grads += [torch.autograd.grad(g.square().sum(), net.conv.weight, retain_graph=True)[0]]
        torch.testing.assert_close(*grads)


def test_real_and_generated_images_before_one_backward(net, x):
    for _ in range(4):
        grads = []
        for function in (static, reference.normalize_gradient):
            net.zero_grad()
            real, fake = (function(net, images) for images in (x, 2 * x + 1))
            (real.square().sum() - fake.sum()).backward()
            grads.append([p.grad.clone() for p in net.parameters() if p.grad is not None])
        torch.testing.assert_close(*grads)
        x = torch.randn_like(x)
    assert len(pairs_of(net)) == 2


def test_more_calls_at_once_than_pairs(net, x):
    images = [torch.randn_like(x) for _ in range(7)]
    for _ in range(2):
        results = [static(net, batch) for batch in images]
        expected = [reference.normalize_gradient(net, batch) for batch in images]
        torch.testing.assert_close(results, expected)
        sums = [torch.stack(f).square().sum() for f in (results, expected)]
        torch.testing.assert_close(*(torch.autograd.grad(total, net.conv.weight)[0] for total in sums))
    assert len(pairs_of(net)) == 4


def test_results_that_are_dropped_free_their_pair(net, x):
    for _ in range(9):
        static(net, x)
    assert len(pairs_of(net)) == 1


def test_results_and_gradients_are_nobody_elses(net, x):
    for _ in range(2):
        first = static(net, x)
        kept = first.detach().clone()
        (grad,) = torch.autograd.grad(first.sum(), net.conv.weight)
        copy = grad.clone()
        second = static(net, -x)
        torch.autograd.grad(second.square().sum(), net.conv.weight)
        assert torch.equal(first, kept) and torch.equal(grad, copy) and not torch.equal(first, second)


def test_labels_and_what_is_computed_without_x(x):
    net, labels = Critic(classes=5).to(x.device), torch.tensor([0, 4, 1, 2], device=x.device)
    for call in range(4):
        assert check(net, x, labels.roll(call)) == (call == 0)
    net = Standardised().to(x.device)
    for call in range(3):
        assert check(net, x) == (call == 0)
        with torch.no_grad():
            net.conv.weight.mul_(1.5)


def test_generator_steps_and_no_gradients_at_all(net, x):
    for _ in range(3):
        for frozen in (True, False):
            check(net.requires_grad_(not frozen), x)
        with torch.no_grad():
            torch.testing.assert_close(static(net, x), reference.normalize_gradient(net, x).detach())
    assert len(pairs_of(net)) == 3


def test_weights_in_other_memory(net, x):
    for _ in range(3):
        check(net, x)
        check(net, x)
        net.conv.weight.data = torch.randn_like(net.conv.weight)
        assert len(pairs_of(net)) == 1


def test_weights_turned_in_their_memory(device):
    net = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 1)).to(device, DTYPE)
    for _ in range(4):
        check(net, torch.randn(4, 6, dtype=DTYPE, device=device))
    before = pairs_of(net)
    net[0].weight.data = net[0].weight.data.t()
    check(net, torch.randn(4, 6, dtype=DTYPE, device=device))
    assert len(before) == 1 and pairs_of(net) != before


def test_a_write_before_the_backward_is_an_error(net, x):
    for _ in range(3):
        f_hat = static(net, x)
        with torch.no_grad():
            net.conv.weight.add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            f_hat.sum().backward()


def test_a_second_backward(net, x):
    static(net, x)
    f_hat = static(net, x)
    (first,) = torch.autograd.grad(f_hat.sum(), net.conv.weight, retain_graph=True)
    (second,) = torch.autograd.grad(f_hat.sum(), net.conv.weight, retain_graph=True)
    assert torch.equal(first, second)
    static(net, x)
    with pytest.raises(UnsupportedError, match="second backward"):
        f_hat.sum().backward()


def test_no_second_derivatives(net, x):
    static(net, x)
    (grad,) = torch.autograd.grad(static(net, x).sum(), net.conv.weight, create_graph=True)
    with pytest.raises(UnsupportedError, match="differentiable once"):
        grad.sum().backward()


def test_a_capture_that_fails(net, x, monkeypatch):
    def fails(function, stream):
        raise RuntimeError("no graph today")

    monkeypatch.setattr(graphed, "record_graph", fails)
    with pytest.warns(FallbackWarning, match="no graph today") as caught:
        for _ in range(3):
            check(net, x)
    assert len(caught) == 1
    assert caught[0].filename == __file__, "where the user calls"


def test_a_replay_that_is_not_what_was_recorded(net, x, monkeypatch):
    def wrong(function, stream):
        graph, results = record(function, stream)
        replay = graph.replay
        graph.replay = lambda: (replay(), results[0].mul_(1.1))
        return graph, results

    monkeypatch.setattr(graphed, "record_graph", wrong)
    check(net, x)
    with pytest.warns(FallbackWarning, match="its replay differs by"):
        check(net, x)


def test_normalisers_that_are_new_each_time_get_no_graphs(net, x):
    for _ in range(8):
        actual = static(net, x, method=lambda f, n: f / (n + 2))
        expected = gnfast.normalize_gradient(net, x, method=lambda f, n: f / (n + 2), impl="reference")
        torch.testing.assert_close(actual, expected)
    assert len(pairs_of(net)) <= 4


@pytest.mark.parametrize("with_norm", [False, True])
def test_a_normaliser_of_ones_own_runs_on_every_call(with_norm, net, x):
    shift, calls = [1.0], []

    def method(f, n):
        calls.append(1)
        return f / (n + shift[0])

    for shift[0] in (1.0, 2.0, 3.0):
        calls.clear()
        options = {"method": method, "return_grad_norm": with_norm}
        actual = static(net, x, **options)
        assert calls
        torch.testing.assert_close(actual, gnfast.normalize_gradient(net, x, impl="reference", **options))


def test_precisions_set_the_new_way(net, x):
    """PyTorch's older questions raise then."""
    matmul = torch.backends.cuda.matmul
    before, matmul.fp32_precision = matmul.fp32_precision, "tf32"
    try:
        for _ in range(3):
            check(net, x)
    finally:
        matmul.fp32_precision = before
    assert len(pairs_of(net)) == 1


def test_memory_is_bounded(net, x):
    for size in range(1, 9):
        batch = torch.cat([x, x])[:size]
        for _ in range(2):
            torch.testing.assert_close(static(net, batch), reference.normalize_gradient(net, batch))
    assert len(pairs_of(net)) == 4


def test_hooks_on_weights_act_once(net, x):
    net.conv.weight.register_hook(lambda grad: 3 * grad)
    net.linear.weight.register_post_accumulate_grad_hook(lambda weight: (weight.grad.mul_(5), None)[1])
    for _ in range(3):
        check(net, x)
