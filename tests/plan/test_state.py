"""A forward's own state advances once per call, whatever becomes of the recording."""

import collections
import itertools
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gnfast
import gnfast.models
from gnfast import UnsupportedError, reference
from gnfast.plan.stateless import is_stateless
from tests.oracle import relative_error

DTYPE = torch.float64


class Stateful(nn.Module):
    """Changes its state before the operation for which it is refused."""

    def __init__(self, refused=True):
        super().__init__()
        torch.manual_seed(3)
        self.linear = nn.Linear(6, 8, dtype=DTYPE)
        self.refused = refused
        self.prepare()

    def prepare(self):
        pass

    def advance(self):
        return 1.0

    def forward(self, x):
        h = self.linear(x) * self.advance()
        return (torch.special.i0e(h) if self.refused else F.relu(h)).sum(1)


class WrittenBuffer(Stateful):
    def prepare(self):
        self.register_buffer("u", torch.ones(8, dtype=DTYPE))

    def advance(self):
        self.u.mul_(1.5)
        return self.u.clone()


class ReassignedBuffer(WrittenBuffer):
    def advance(self):
        self.u = self.u * 1.5
        return self.u


class DataOfAParameter(Stateful):
    """As the widely copied spectral norm keeps its vectors."""

    def prepare(self):
        self.u = nn.Parameter(torch.ones(8, dtype=DTYPE), requires_grad=False)

    def advance(self):
        self.u.data = self.u.data * 1.5
        return self.u.detach()


class DataInPlace(DataOfAParameter):
    def advance(self):
        self.u.data.mul_(1.5)
        return self.u.detach().clone()


class TrainedParameter(DataOfAParameter):
    def prepare(self):
        self.u = nn.Parameter(torch.ones(8, dtype=DTYPE))

    def advance(self):
        with torch.no_grad():
            self.u.mul_(1.5)
        return self.u.detach().clone()


class Lazy(Stateful):
    """Makes what it needs in its first forward."""

    def advance(self):
        if "scale" not in self._parameters:
            self.scale, self.child = nn.Parameter(torch.rand(8, dtype=DTYPE)), nn.Linear(1, 8, dtype=DTYPE)
        return (self.scale + self.child.bias) * torch.rand(8, dtype=DTYPE)


class Counter(Stateful):
    def prepare(self):
        self.calls = 1

    def advance(self):
        self.calls += 1
        return self.calls


class Lists(Stateful):
    def prepare(self):
        self.seen, self.by_name, self.queue = [1.0], {"tensor": torch.ones(8, dtype=DTYPE)}, collections.deque([1, 2])

    def advance(self):
        self.seen.append(self.seen[-1] + 1)
        self.by_name["tensor"] *= 1.5
        self.queue.rotate()
        return self.by_name["tensor"] * sum(self.seen) * self.queue[0]


class Object(Stateful):
    class Box:
        value = 1.0

    def prepare(self):
        self.box = self.Box()

    def advance(self):
        self.box.value += 1
        return self.box.value


class Array(Stateful):
    def prepare(self):
        self.array = np.ones(3)

    def advance(self):
        self.array += 1
        return float(self.array[0])


class Dropout(Stateful):
    def advance(self):
        return torch.rand(8, dtype=DTYPE)


class OwnGenerators(Stateful):
    def prepare(self):
        self.generator, self.numpy, self.python = torch.Generator(), np.random.default_rng(0), random.Random(0)

    def advance(self):
        drawn = torch.rand(8, generator=self.generator, dtype=DTYPE)
        return drawn + self.numpy.random() + self.python.random()


class GlobalGenerators(Stateful):
    def advance(self):
        return random.random() + np.random.rand()  # noqa: NPY002


class Slots(Object):
    class Box:
        __slots__ = ("value",)

        def __init__(self):
            self.value = 1.0


class Count(Stateful):
    """Nobody can put back what an iterator has given: no recording is tried."""

    def prepare(self):
        self.count = itertools.count(1)

    def advance(self):
        return next(self.count)


class Deep(Stateful):
    def prepare(self):
        self.deep = {"a": {"b": {"c": {"d": [1]}}}}

    def advance(self):
        self.deep["a"]["b"]["c"]["d"][0] += 1
        return self.deep["a"]["b"]["c"]["d"][0]


class Many(Stateful):
    def prepare(self):
        self.bank = [torch.ones((), dtype=DTYPE) for _ in range(1500)]

    def advance(self):
        return self.bank[3].add_(1).clone()


class OfTheClass(Stateful):
    calls, log = 1, []

    def prepare(self):
        type(self).calls, type(self).log = 1, [1]

    def advance(self):
        type(self).calls += 1
        self.log.append(1)
        return self.calls + len(self.log)


class Hidden(Stateful):
    """A module in a plain list is none of the submodules."""

    def prepare(self):
        self.others = [nn.Sequential(nn.BatchNorm1d(8, dtype=DTYPE))]

    def advance(self):
        return self.others[0](torch.ones(3, 8, dtype=DTYPE)).sum() + self.others[0][0].num_batches_tracked


KINDS = [k for k in list(globals().values()) if isinstance(k, type) and issubclass(k, Stateful) and k is not Stateful]


def seed():
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002


def run(function, net, x, calls=4):
    seed()
    return [function(net, x)[1].detach() for _ in range(calls)]


@pytest.fixture
def x():
    return torch.randn(4, 6, dtype=DTYPE, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("refused", [True, False], ids=["refused", "accepted"])
@pytest.mark.filterwarnings("ignore::gnfast.FallbackWarning")
def test_state_advances_once_per_call(kind, refused, x):
    expected = run(reference.value_and_grad_norm, kind(refused), x)
    actual = run(gnfast.value_and_grad_norm, kind(refused), x)
    assert not torch.equal(expected[0], expected[1])
    for call, wanted in zip(actual, expected, strict=True):
        assert relative_error(call, wanted) < 1e-12


# What is deep inside, and what a forward writes into trained weights, is put back on a first refusal only.
@pytest.mark.parametrize("kind", [k for k in KINDS if k not in (TrainedParameter, Deep, Many, OfTheClass, Hidden)])
@pytest.mark.filterwarnings("ignore::gnfast.FallbackWarning")
def test_state_advances_once_on_a_refusal_after_acceptance(kind, x):
    def alternate(function):
        net, norms = kind(False), []
        seed()
        for call in range(6):
            net.refused = call % 3 == 2
            norms.append(function(net, x)[1].detach())
        return norms

    expected = alternate(reference.value_and_grad_norm)
    for call, wanted in zip(alternate(gnfast.value_and_grad_norm), expected, strict=True):
        assert relative_error(call, wanted) < 1e-12


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("refused", [True, False], ids=["refused", "accepted"])
def test_trace_and_strict_refusals_leave_no_trace(kind, refused, x):
    expected = run(reference.value_and_grad_norm, kind(refused), x, 1)[0]
    net = kind(refused)
    seed()
    gnfast.trace(net, x)
    if refused:
        for _ in range(3):
            with pytest.raises(UnsupportedError):
                gnfast.value_and_grad_norm(net, x, strict=True)
    assert relative_error(reference.value_and_grad_norm(net, x)[1], expected) < 1e-12


@pytest.mark.parametrize(
    "write",
    [
        lambda net: net.alpha.data.add_(0.1),
        lambda net: setattr(net.alpha, "data", net.alpha.data + 0.1),
        lambda net: net.alpha.numpy().__iadd__(0.1),
        lambda net: net.linear.weight.data.clamp_(-0.1, 0.1),
        lambda net: setattr(net.linear.weight, "data", torch.full((8, 6), torch.nan, dtype=DTYPE)),
    ],
)
def test_a_factor_that_is_written_after_its_use_unseen_by_autograd(write, x):
    net = WrittenBuffer(False)
    net.alpha = torch.full((8,), 0.5, dtype=DTYPE)
    net.advance = lambda: net.alpha
    net.register_forward_hook(lambda *_: (write(net), None)[1])
    assert "changes in place a tensor of shape" in str(gnfast.trace(net, x))
    with pytest.raises(UnsupportedError, match="changes in place a tensor of shape"):
        gnfast.value_and_grad_norm(net, x, strict=True)
    expected = (F.relu(net.linear(x) * net.alpha)).sum(1)
    with pytest.warns(gnfast.FallbackWarning):
        assert relative_error(gnfast.value_and_grad_norm(net, x)[0], expected) < 1e-12


def test_an_iterator_is_named(x):
    assert "a count among its attributes" in str(gnfast.trace(Count(False), x))
    with pytest.raises(UnsupportedError, match="a count among its attributes, which would be asked twice"):
        gnfast.normalize_gradient(Count(False), x, strict=True)


def test_lazy_modules(x):
    x = x.float()
    net = nn.Sequential(nn.LazyLinear(16), nn.ReLU(), nn.LazyLinear(1))
    f = gnfast.normalize_gradient(net, x, strict=True)
    assert relative_error(f, reference.normalize_gradient(net, x)) < 1e-5


class ActNorm(nn.Module):
    """Initialises by its first batch."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 1, dtype=DTYPE)
        self.shift = nn.Parameter(torch.zeros(6, dtype=DTYPE))
        self.register_buffer("ready", torch.tensor(False))

    def forward(self, x):
        if not self.ready:
            self.shift.data.copy_(-x.mean(0))
            self.ready.fill_(True)
        return self.linear(F.relu(x + self.shift))


def test_a_refusal_on_one_call_is_not_for_good(x):
    net, twin = ActNorm(), ActNorm()
    twin.load_state_dict(net.state_dict())
    with pytest.warns(gnfast.FallbackWarning):
        gnfast.value_and_grad_norm(net, x)
    reference.value_and_grad_norm(twin, x)
    assert relative_error(net.shift, twin.shift) < 1e-12
    # The 2nd call is recorded again; `strict` would raise if it were not.
    actual = gnfast.value_and_grad_norm(net, x, strict=True)[1]
    assert relative_error(actual, reference.value_and_grad_norm(twin, x)[1]) < 1e-12


def test_a_lasting_refusal_is_tried_ever_more_rarely(x):
    net, forwards = Stateful(), []
    net.register_forward_pre_hook(lambda *_: forwards.append(None))
    with pytest.warns(gnfast.FallbackWarning) as warned:
        for _ in range(40):
            gnfast.value_and_grad_norm(net, x)
    # 40 forwards of double backward, and the recordings of calls 1, 2, 3, 5, 9, 17, 33.
    assert len(forwards) == 47 and len(warned) == 1


def test_an_activation_that_was_kept_is_no_state(x):
    net = Stateful(False)
    net.register_forward_hook(lambda module, args, output: setattr(module, "kept", output))
    for _ in range(3):
        gnfast.normalize_gradient(net, x, strict=True)


def test_graphs_that_hold_the_state_stay_valid(x):
    """Putting back a buffer that a refused forward did not touch must not count as a change of it."""
    net = WrittenBuffer(False)
    net.advance = lambda: net.u
    first = gnfast.normalize_gradient(net, x, strict=True)
    net.refused = True
    with pytest.warns(gnfast.FallbackWarning):
        gnfast.normalize_gradient(net, x)
    first.sum().backward()
    assert net.linear.weight.grad is not None


@pytest.mark.parametrize("name", ["dcgan", "resnet", "sngan-resnet", "mimicry-resnet"])
def test_shipped_critics_are_known_to_have_no_state(name):
    assert is_stateless(gnfast.models.build(name, resolution=32, width=0.05)[1].modules())


class OwnForward(nn.Linear):
    def forward(self, x):
        return super().forward(x)


def with_forward(layer):
    layer.forward = lambda x: x
    return layer


def with_hook(layer):
    layer.register_forward_pre_hook(lambda *_: None)
    return layer


MAY_HAVE_STATE = {
    "a subclass": lambda: OwnForward(2, 2),
    "its own forward": lambda: with_forward(nn.ReLU()),
    "a hook": lambda: with_hook(nn.ReLU()),
    "batch norm": lambda: nn.BatchNorm1d(2),
    "an embedding, which may rescale its rows": lambda: nn.Embedding(2, 2, max_norm=1.0),
    "spectral norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(2, 2)),
    "gnfast's": lambda: gnfast.spectral_norm(nn.Linear(2, 2)),
    "the user's": lambda: Stateful(),
}


@pytest.mark.parametrize("make", MAY_HAVE_STATE.values(), ids=MAY_HAVE_STATE)
def test_others_may_have_state(make):
    assert is_stateless(nn.Sequential(nn.Linear(2, 2)).modules())
    assert not is_stateless(nn.Sequential(nn.Linear(2, 2), make()).modules())


def test_a_forward_of_pytorchs_that_was_replaced_may_have_state(monkeypatch):
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    monkeypatch.setattr(nn.ReLU, "forward", lambda self, h: h.relu())
    assert not is_stateless(net.modules())


def test_random_numbers_of_a_network_without_state_are_put_back(x):
    layers = nn.Linear(6, 8), nn.Dropout(0.5), nn.Unflatten(0, (4, -1)), nn.Flatten(), nn.Linear(8, 1)
    net = nn.Sequential(*layers).double()
    for _ in range(2):
        gnfast.normalize_gradient(net, x, strict=True)
    before = torch.get_rng_state()
    with pytest.raises(UnsupportedError, match="recording it raised RuntimeError"):
        gnfast.normalize_gradient(net, torch.cat([x, x]), strict=True)
    assert torch.equal(torch.get_rng_state(), before)
