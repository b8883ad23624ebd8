"""Weight gradients on a branch of a captured graph: what it may still have to read stays as it is, and streams wait."""

import itertools
from collections import deque

import pytest
import torch
from torch.utils._pytree import tree_leaves

import gnfast
from gnfast import models
from gnfast.engine import branch, passes
from gnfast.kernels.join import plain
from gnfast.steps.captured import CapturedStep
from tests.engine.test_random_networks import compare, draw
from tests.oracle import assert_matches_double_backward, loss_of
from tests.random_networks import FAMILIES


class Late(branch.InLine):
    """Does all work once more as late as a branch may do it, when everything that it reads must still be there."""

    pieces = 0

    def __init__(self):
        self.waiting = deque()

    def run(self, work, reads):
        if len(self.waiting) == branch.MOST_WAITING:
            self.wait()
        result = work()
        self.waiting.append((work, self.tensors(result)))
        Late.pieces += 1
        return result

    def join(self):
        while self.waiting:
            self.wait()

    def wait(self):
        work, before = self.waiting.popleft()
        for a, b in zip(self.tensors(work()), before, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)

    @staticmethod
    def tensors(result):
        return [leaf.clone() for leaf in tree_leaves(tuple(result)) if isinstance(leaf, torch.Tensor)]


@pytest.fixture
def late(monkeypatch):
    monkeypatch.setattr(passes, "branch", Late)
    monkeypatch.setattr(Late, "pieces", 0)


@pytest.mark.usefixtures("late")
@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "casts"])
def test_random_networks(family):
    for case in itertools.islice(draw(family, strict=True), 10):
        compare(case)
    assert Late.pieces


@pytest.mark.usefixtures("late")
@pytest.mark.parametrize("is_fused", [False, True], ids=["apart", "fused"])
@pytest.mark.parametrize("family", ["resnet", "dcgan"])
def test_critics(family, is_fused, monkeypatch):
    monkeypatch.setattr(plain, "FUSES", is_fused)
    torch.manual_seed(0)
    net = models.build(family, resolution=32, width=0.05)[1].double()
    assert_matches_double_backward(net, torch.randn(2, 3, 32, 32, dtype=torch.float64))
    assert Late.pieces


@pytest.mark.usefixtures("late")
def test_a_write_to_what_a_branch_reads_is_noticed():
    t = torch.ones(3)
    aside = passes.branch()
    aside.run(lambda: [t * 2], (t,))
    t.add_(1)
    with pytest.raises(AssertionError):
        aside.join()


class Log:
    """Stands in for PyTorch's streams and events, and writes down what waits for what."""

    def __init__(self, name, lines):
        self.name, self.lines = name, lines

    def wait_stream(self, other):
        self.lines.append(f"{self.name} waits for {other.name}")

    def wait_event(self, event):
        self.lines.append(f"{self.name} waits for {event}")

    def record_event(self):
        return f"{self.name} at {self.lines.count('work')}"

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass


def test_streams_wait_where_they_must(monkeypatch):
    lines = []
    main, streams = Log("main", lines), [Log("branch", lines)]
    # Only once: each new one of PyTorch's 32 could be that of another thread, which must not be captured.
    monkeypatch.setattr(torch.cuda, "Stream", streams.pop)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: main)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    branch.Branch()
    aside = branch.Branch()
    for _ in range(branch.MOST_WAITING + 1):
        aside.run(lambda: lines.append("work"), ())
    aside.join()
    fork = ["branch waits for main", "work"]
    first, *rest = [f"main waits for branch at {n + 1}" for n in range(branch.MOST_WAITING + 1)]
    assert lines == [*fork * branch.MOST_WAITING, first, *fork, *rest]


@pytest.mark.gpu
@pytest.mark.parametrize("family", ["resnet", "dcgan"])
def test_captured_gradients_are_those_of_eager_steps(family, monkeypatch):
    torch.manual_seed(0)
    net = models.build(family, resolution=32, width=0.25)[1].double().cuda()
    images = [torch.randn(8, 3, 32, 32, dtype=torch.float64, device="cuda") for _ in range(8)]

    def step(x):
        net.zero_grad()
        loss_of(gnfast.normalize_gradient(net, x, strict=True)).backward()
        return [p.grad for p in net.parameters()]

    expected = [[g.clone() for g in step(x)] for x in images]
    captured = CapturedStep(step, "cuda")
    made = []
    monkeypatch.setattr(passes, "branch", lambda: made.append(branch.branch()) or made[-1])
    for x, grads in zip(images, expected, strict=True):
        torch.testing.assert_close(captured(x), grads)
    assert captured.captured and isinstance(made[-1], branch.Branch)
