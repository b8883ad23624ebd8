"""Recordings that are kept: right for as long as the promise holds, and made anew wherever a change can be seen."""

import copy
import gc
import math
import pickle
import random
import warnings
import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

import gnfast
from gnfast import FallbackWarning, UnsupportedError, reference
from tests.engine.test_engine import Bessel
from tests.oracle import PAIRS, assert_same, outputs_and_gradients

DTYPE = torch.float64
FORWARDS = []
"""An entry per forward of a `Critic`, recorded or not."""


class Critic(nn.Module):
    def __init__(self, classes=0):
        super().__init__()
        torch.manual_seed(1)
        self.conv, self.norm, self.activation = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.LeakyReLU(0.1)
        self.features = nn.Sequential(self.conv, self.activation, nn.Dropout(0.5), nn.AvgPool2d(2), nn.Flatten())
        self.linear = nn.Linear(8 * 2 * 3, 1)
        self.embedding = nn.Embedding(classes, 8 * 2 * 3) if classes else None
        self.norm.running_mean.uniform_(-1, 1)
        self.shift = 0.5
        self.double().eval()

    def forward(self, x, labels=None, scale=1.0):
        FORWARDS.append(self)
        h = self.features(x + self.shift) * scale
        f = self.linear(h)
        return f if labels is None else f + (h * self.embedding(labels)).sum(1, keepdim=True)


def static(net, x, *args, **kwargs):
    return gnfast.normalize_gradient(net, x, *args, static=True, **kwargs)


def recordings(net, x, *args, **kwargs):
    """How many forwards a static call takes, whose result and gradients are those of double backward."""
    expected = outputs_and_gradients(reference.normalize_gradient, net, x, *args)
    FORWARDS.clear()
    actual = outputs_and_gradients(static, net, x, *args, **kwargs)
    count = len(FORWARDS)
    assert_same(actual, expected)
    return count


@pytest.fixture
def net():
    return Critic()


@pytest.fixture
def x():
    return torch.randn(4, 3, 5, 7, dtype=DTYPE)


@pytest.mark.parametrize("name", PAIRS)
def test_one_recording_serves_every_call(name, net, x):
    fast, oracle = PAIRS[name]
    for times in (1, 0, 0):
        FORWARDS.clear()
        actual = outputs_and_gradients(fast, net, x, strict=True, static=True)
        assert len(FORWARDS) == times
        assert_same(actual, outputs_and_gradients(oracle, net, x))
        x = torch.randn_like(x)


def replaced_parameter(net):
    net.conv.weight = nn.Parameter(torch.randn(8, 3, 3, 3, dtype=DTYPE))


def replaced_module(net):
    net.features[1] = nn.ReLU()


def patched_forward(net):
    net.activation.forward = lambda h: h.abs()


def parametrized(net):
    parametrizations.spectral_norm(net.linear).eval()


class Doubled(nn.LeakyReLU):
    def forward(self, h):
        return 2 * super().forward(h)


def another_class(net):
    net.activation = Doubled(0.1)


def assigned_class(net):
    net.activation.__class__ = Doubled


CHANGES = {
    "another class": another_class,
    "an assigned class": assigned_class,
    "memory format of all": lambda net: net.to(memory_format=torch.channels_last),
    "a replaced parameter": replaced_parameter,
    "a replaced module": replaced_module,
    "a module taken out": lambda net: net.features.pop(1),
    "a patched forward": patched_forward,
    "a parametrization": parametrized,
    "an attribute": lambda net: setattr(net, "shift", 0.25),
    "a layer's attribute": lambda net: setattr(net.activation, "negative_slope", 0.3),
    "requires_grad of one": lambda net: net.conv.weight.requires_grad_(False),
    "requires_grad of all": lambda net: net.requires_grad_(False),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_is_seen_to_change_is_recorded_anew(change, net, x):
    assert recordings(net, x, strict=True) == 1 and recordings(net, x, strict=True) == 0
    change(net)
    assert recordings(net, x, strict=True) == 1 and recordings(net, x, strict=True) == 0


def test_a_class_that_gets_another_forward(net, x, monkeypatch):
    another_class(net)
    net.features[1] = net.activation
    assert recordings(net, x, strict=True) == 1
    monkeypatch.setattr(Doubled, "forward", lambda self, h: h.abs())
    assert recordings(net, x, strict=True) == 1


class Optional(Critic):
    """Depends on which attributes there are, on one of its class and on a method that is not `forward`."""

    offset = 0.5

    def prepared(self, x):
        return x + self.offset

    def forward(self, x):
        return super().forward(self.prepared(x) * (2 if hasattr(self, "doubles") else 3))


def test_names_of_attributes(x):
    net = Optional()
    net.doubles = None
    assert recordings(net, x, strict=True) == 1
    del net.doubles
    net.triples = None
    assert recordings(net, x, strict=True) == 1 and recordings(net, x, strict=True) == 0


@pytest.mark.parametrize(("name", "value"), [("offset", 0.25), ("prepared", lambda self, x: x.abs())])
def test_attributes_of_classes(name, value, x, monkeypatch):
    net = Optional()
    assert recordings(net, x, strict=True) == 1
    monkeypatch.setattr(Optional, name, value)
    assert recordings(net, x, strict=True) == 1 and recordings(net, x, strict=True) == 0
    net.__class__ = Critic
    assert recordings(net, x, strict=True) == 1


class Scaled(nn.Module):
    scale = 1.0

    def forward(self, h):
        return self.scale * h.relu()


class Around(nn.Module):
    """Calls two parts of which one is no submodule."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.linear = Scaled(), Scaled(), nn.Linear(6, 1)
        self.unused, self.__dict__["hidden"] = torch.zeros(()), Scaled()
        self.double()

    def forward(self, x):
        FORWARDS.append(self)
        h = self.hidden(1 + self.second(x.flip(1) - self.first(x)))
        return self.linear(h if isinstance(self.unused, torch.Tensor) else 2 * h)


def test_an_attribute_that_goes_to_the_neighbour():
    net, x = Around(), torch.randn(4, 6, dtype=DTYPE)
    net.first.scale = 3.0
    assert [recordings(net, x) for _ in range(2)] == [1, 0]
    net.second.scale = net.first.__dict__.pop("scale")
    assert recordings(net, x) == 1


def test_a_method_that_gets_other_code(monkeypatch):
    """As IPython's autoreload gives it; of a new default alone, too, which comes with equal code."""
    net, x = Around(), torch.randn(4, 6, dtype=DTYPE)

    def forward(self, h):
        return self.scale * h.abs()

    assert [recordings(net, x) for _ in range(2)] == [1, 0]
    for code in (forward.__code__, forward.__code__.replace()):
        monkeypatch.setattr(Scaled.forward, "__code__", code)
        assert [recordings(net, x) for _ in range(2)] == [1, 0]


def test_a_module_that_is_no_submodule_and_another_at_its_address():
    net, x, addresses = Around(), torch.randn(4, 6, dtype=DTYPE), set()
    for step in range(10):
        del net.__dict__["hidden"]
        net.__dict__["hidden"] = Scaled()
        net.hidden.scale = 2.0 + step
        addresses.add(id(net.hidden))
        assert [recordings(net, x) for _ in range(2)] == [1, 0]
    assert len(addresses) < 10


def test_another_object_at_the_address_of_a_tensor():
    class Slots:
        __slots__ = "a", "b"

    class Other(Slots):
        """As large as a Tensor."""

    net, x = Around(), torch.randn(4, 6, dtype=DTYPE)
    assert [recordings(net, x) for _ in range(2)] == [1, 0]
    address, net.unused = id(net.unused), None
    others = [Other() for _ in range(10_000)]
    net.unused = next((other for other in others if id(other) == address), others[0])
    assert recordings(net, x) == 1


def test_new_values_need_no_new_recording(net, x):
    optimizer = torch.optim.Adam(net.parameters(), 0.1)
    assert recordings(net, x, strict=True) == 1
    optimizer.step()
    assert recordings(net, x, strict=True) == 0
    net.load_state_dict({name: torch.randn_like(t) for name, t in net.state_dict().items() if t.dtype == DTYPE}, False)
    assert recordings(net, x, strict=True) == 0
    net.conv.weight.data = torch.randn_like(net.conv.weight)
    net.linear.weight.data.mul_(2)
    assert recordings(net, x, strict=True) == 0


def test_shapes_dtypes_and_modes_have_recordings_of_their_own(net, x):
    cases = {
        "batch": lambda: recordings(net, x[:3], strict=True),
        "gradients off": lambda: count_without_grad(net, x),
        "whole": lambda: recordings(net, x, strict=True),
    }
    for times in (1, 0, 0):
        assert {name: case() for name, case in cases.items()} == dict.fromkeys(cases, times)


def count_without_grad(net, x):
    FORWARDS.clear()
    with torch.no_grad():
        actual = static(net, x, strict=True)
    count = len(FORWARDS)
    assert_same({"f": actual}, {"f": reference.normalize_gradient(net, x).detach()})
    return count


def test_critic_and_generator_steps_take_turns(net, x):
    assert recordings(net, x, strict=True) == 1
    assert recordings(net.requires_grad_(False), x, strict=True) == 1
    for frozen in (False, True, False, True):
        assert recordings(net.requires_grad_(not frozen), x, strict=True) == 0


def test_another_dtype(net, x):
    assert recordings(net, x, strict=True) == 1
    static(net.float(), x.float(), strict=True)
    assert recordings(net.double(), x, strict=True) == 1


def test_autocast_is_part_of_it(net, x):
    net, x = net.float(), x.float()
    for _ in range(3):
        FORWARDS.clear()
        with torch.autocast("cpu", torch.bfloat16):
            low, expected = static(net, x, strict=True), gnfast.normalize_gradient(net, x, strict=True)
        assert torch.equal(low, expected) and not torch.equal(low, static(net, x, strict=True))
        low.sum().backward()
        with torch.no_grad():
            net.conv.weight.mul_(1.1)
    assert len(FORWARDS) == 1


def test_labels_are_read_anew(x):
    net = Critic(classes=5)
    assert recordings(net, x, torch.tensor([0, 1, 2, 3]), strict=True) == 1
    assert recordings(net, x, torch.tensor([4, 4, 0, 1]), strict=True) == 0
    net.embedding.weight.data.mul_(-2)
    assert recordings(net, x, torch.tensor([4, 4, 0, 1]), strict=True) == 0
    assert recordings(net, x, strict=True) == 1


def test_tensors_among_the_arguments_get_gradients(net, x):
    for times in (1, 0):
        scale = torch.rand(1, dtype=DTYPE, requires_grad=True)
        (wanted,) = torch.autograd.grad(reference.normalize_gradient(net, x, scale=scale).sum(), scale)
        FORWARDS.clear()
        (actual,) = torch.autograd.grad(static(net, x, scale=scale, strict=True).sum(), scale)
        assert len(FORWARDS) == times
        torch.testing.assert_close(actual, wanted)


def test_other_numbers_among_the_arguments_are_another_recording(net, x):
    for scale, times in ((2.0, 1), (3.0, 1), (2.0, 0)):
        FORWARDS.clear()
        actual = static(net, x, scale=scale, strict=True)
        assert len(FORWARDS) == times
        torch.testing.assert_close(actual, reference.normalize_gradient(net, x, scale=scale))


def test_the_same_tensor_twice_among_the_arguments(x):
    class Net(Critic):
        def forward(self, x, first, second):
            return super().forward(x + first) + (x * second).sum((1, 2, 3))[:, None]

    net, first, second = Net(), *torch.randn(2, 7, dtype=DTYPE)
    counts = [recordings(net, x, *given, strict=True) for given in ((first, first), (first, second), (second, second))]
    assert counts == [1, 1, 0] and recordings(net, x, second, first, strict=True) == 0


def test_an_argument_that_is_the_networks_own(x):
    class Net(Standardised):
        def forward(self, x, addend):
            return super().forward(x + addend)

    net = Net()
    with pytest.warns(FallbackWarning, match="one of its own tensors"):
        recordings(net, x, net.offset)
    recordings(net, x, torch.randn(7, dtype=DTYPE))


def test_strides_and_signs_of_zero_among_the_arguments(x):
    class Net(Critic):
        def forward(self, x, weight, sign=1.0):
            return super().forward(x * (weight if weight.is_contiguous() else 2 * weight)) * math.copysign(1, sign)

    net, weight = Net(), torch.randn(5, 7, dtype=DTYPE)
    for times in (1, 0):
        assert recordings(net, x, weight, strict=True) == times
        assert recordings(net, x, weight.t().contiguous().t(), strict=True) == times
        assert recordings(net, x, weight, 0.0, strict=True) == times
        assert recordings(net, x, weight, -0.0, strict=True) == times


class OneHot(Critic):
    """How many columns there are is in the labels, and read from a shape."""

    def forward(self, x, labels):
        FORWARDS.append(self)
        h, columns = F.relu(self.conv(x)).mean((2, 3)), F.one_hot(labels).to(DTYPE)
        return (h[:, : columns.shape[1]] * columns).sum(1)


class Counted(Critic):
    """The number of labels is read from the shape of a tensor of which nothing else is used."""

    def forward(self, x, labels):
        return super().forward(x) + torch.unique(labels).shape[0]


class Chosen(Critic):
    """A mask chooses rows of a weight."""

    def forward(self, x, labels):
        FORWARDS.append(self)
        weight = self.linear.weight.reshape(8, 6)[labels.repeat(2) > 1]
        return F.linear(x.flatten(1)[:, :6], weight).abs().sum(1) / weight.shape[0]


@pytest.mark.parametrize(("kind", "counts"), [(OneHot, [1, 0, 1, 0]), (Counted, [1, 0, 1, 0]), (Chosen, [1, 0, 0, 1])])
def test_shapes_that_depend_on_values(kind, counts, x):
    net = kind()
    labels = torch.tensor([[0, 4, 2, 1], [1, 4, 2, 0], [0, 0, 2, 2], [0, 0, 0, 2]])
    assert [recordings(net, x, given, strict=True) for given in labels] == counts


def test_the_default_dtype(x):
    class Net(Critic):
        def forward(self, x):
            return super().forward(x) + torch.tensor(1 / 3)

    net = Net()
    recordings(net, x, strict=True)
    torch.set_default_dtype(DTYPE)
    try:
        assert recordings(net, x, strict=True) == 1
    finally:
        torch.set_default_dtype(torch.float32)


def test_x_is_one_of_the_networks_tensors(x):
    net = Standardised()
    net.register_buffer("canvas", x.clone().requires_grad_())
    net.offset = net.canvas
    static(net, x.clone().requires_grad_(), strict=True)
    with pytest.raises(UnsupportedError, match="computed from x"):
        static(net, net.canvas, strict=True)


def test_parametrized_weights_are_computed_anew(net, x):
    parametrizations.weight_norm(net.conv)
    parametrizations.spectral_norm(net.linear).eval()
    assert recordings(net, x, strict=True) == 1
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1)
    assert recordings(net, x, strict=True) == 0


class Standardised(Critic):
    """Weights that the forward makes, an embedding by hand, a constant in other memory, and a frozen addend."""

    def __init__(self):
        super().__init__()
        self.register_buffer("offset", torch.randn(7, dtype=DTYPE))

    def forward(self, x):
        FORWARDS.append(self)
        weight = self.conv.weight - self.conv.weight.mean((1, 2, 3), keepdim=True)
        weight = weight / (weight.flatten(1).norm(dim=1)[:, None, None, None] + torch.tensor(0.1, dtype=DTYPE))
        with torch.no_grad():
            size = self.linear.weight.abs().mean()
        h = F.relu(F.conv2d(x + self.offset, weight, self.conv.bias, padding=1))
        return self.linear(F.avg_pool2d(h, 2).flatten(1)) / size


def test_what_a_forward_computes_without_x_is_computed_anew(x):
    net = Standardised()
    assert recordings(net, x, strict=True) == 1
    with torch.no_grad():
        for tensor in (*net.parameters(), net.offset):
            tensor.mul_(1.3)
    assert recordings(net, x, strict=True) == 0


def test_batch_norm_in_eval_mode(x):
    net = (
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(60, 1)).double().eval()
    )
    for _ in range(3):
        assert_same(
            outputs_and_gradients(static, net, x, strict=True),
            outputs_and_gradients(reference.normalize_gradient, net, x),
        )
        net[1].running_mean.add_(0.3)
        net[1].running_var.mul_(2)


class Odd(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weight):
        return weight * 2

    @staticmethod
    def backward(ctx, grad):
        return grad * 3


class CustomWeight(Critic):
    def __init__(self):
        super().__init__()
        self.first, self.second = (nn.Parameter(torch.randn(105, dtype=DTYPE)) for _ in range(2))

    def weight(self):
        return Odd.apply(self.first)

    def forward(self, x):
        FORWARDS.append(self)
        return (F.relu(x.flatten(1)) * self.weight()).sum(1)


class CustomFactor(CustomWeight):
    def weight(self):
        return Odd.apply(self.first) * self.second


class ReadsValues(Critic):
    def forward(self, x):
        return super().forward(x) * (2.0 if self.conv.bias[0] > 0 else 3.0)


class WritesBuffer(Critic):
    def forward(self, x):
        self.norm.running_mean.mul_(1.5)
        return super().forward(x) * self.norm.running_mean.mean().clone()


class Counts(Critic):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x) * self.calls


OUTSIDE = [torch.ones((), dtype=DTYPE)]


class CountsOnItsClass(Critic):
    total = 0

    def forward(self, x):
        CountsOnItsClass.total += 1
        return super().forward(x)


class ReadsVersion(Critic):
    """As caches do of what is made of a weight."""

    def forward(self, x):
        return super().forward(x) * (1 + self.conv.weight._version)


class ReadsGrad(Critic):
    def forward(self, x):
        return super().forward(x) * (2.0 if self.conv.weight.grad is None else 3.0)


class ReadsGlobals(Critic):
    def forward(self, x):
        return super().forward(x) * (OUTSIDE[0] * 2)


class Slots(Critic):
    __slots__ = ("factor",)

    def __init__(self):
        super().__init__()
        self.factor = 2.0

    def forward(self, x):
        return super().forward(x) * self.factor


class OwnGenerator(Critic):
    def __init__(self):
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, x):
        return super().forward(x) * torch.rand((), generator=self.generator, dtype=DTYPE)


class NumpyGenerator(Critic):
    def __init__(self):
        super().__init__()
        self.generator = np.random.default_rng(0)

    def forward(self, x):
        return super().forward(x) * float(self.generator.uniform(1, 2))


class PythonGenerator(NumpyGenerator):
    def __init__(self):
        super().__init__()
        self.generator = random.Random(0)


def hooked():
    net = Critic()
    net.linear.register_forward_hook(lambda module, args, y: y * 2)
    return net


def own_dict():
    class Doubled(dict):
        def __getitem__(self, name):
            return super().__getitem__(name) * 2

    net = Critic()
    net.linear.__dict__["_parameters"] = Doubled(net.linear._parameters)
    return net


class Normed(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.first, self.second = (nn.BatchNorm2d(1, dtype=torch.float64, **options) for _ in range(2))

    def forward(self, x):
        return self.second(self.first(x.mean(1, keepdim=True)).relu()).relu().mean((1, 2, 3))


def test_batch_norm_without_running_statistics_is_kept_as_the_message_says(x):
    for net in (Normed(track_running_stats=False).train(), Normed().eval()):
        # Or it raises.
        recordings(net, x, strict=True)


def in_training(normalize=None):
    net = Critic()
    if normalize is not None:
        net.features[2] = nn.Identity()
        normalize(net)
    return net.train()


NEVER_KEPT = {
    "dropout": (in_training, "draws at random"),
    "own generator": (OwnGenerator, "draws at random"),
    "own generator of NumPy's": (NumpyGenerator, "draws at random"),
    "own generator of Python's": (PythonGenerator, "draws at random"),
    "PyTorch's spectral norm in training": (
        lambda: in_training(lambda net: parametrizations.spectral_norm(net.linear)),
        "writes in place",
    ),
    "gnfast's spectral norm": (lambda: in_training(gnfast.spectral_norm_), "hooks"),
    "one layer of gnfast's": (lambda: in_training(lambda net: gnfast.spectral_norm(net.linear)), ""),
    "forward hook": (hooked, "hooks"),
    "custom autograd Function": (CustomWeight, "custom autograd Function"),
    "part of a weight by one": (CustomFactor, "custom autograd Function"),
    "values": (ReadsValues, "reads values"),
    "writes": (WritesBuffer, "writes in place"),
    "batch norm": (
        lambda: Normed().train(),
        "statistics change on every call, in submodule 'first' and 1 more: they",
    ),
    "counter": (Counts, "changes attributes"),
    "counter of its class": (CountsOnItsClass, "changes attributes"),
    "versions": (ReadsVersion, "reads values"),
    "gradients": (ReadsGrad, "reads values"),
    "globals": (ReadsGlobals, "unknown origin"),
    "slots": (Slots, "__slots__ in place of a module's dict"),
    "a dict of another kind": (own_dict, "a Doubled in place of a module's dict"),
}


@pytest.mark.parametrize(("make", "reason"), NEVER_KEPT.values(), ids=NEVER_KEPT)
def test_what_cannot_be_kept_is_recorded_on_every_call(make, reason, x):
    """The numbers of the same calls without the promise, draws and states included, and one warning."""
    net, twin = make(), make()
    results = []
    for call in range(4):
        torch.manual_seed(call)
        expected = outputs_and_gradients(gnfast.normalize_gradient, twin, x)
        torch.manual_seed(call)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            actual = outputs_and_gradients(static, net, x)
        assert_same(actual, expected, 1e-12)
        results.append([str(w.message) for w in caught if issubclass(w.category, FallbackWarning)])
    assert [len(messages) for messages in results] == [1, 0, 0, 0]
    assert "is recorded on every call, static or not: " in results[0][0] and reason in results[0][0]
    for other in (net, make()):
        before, drawn = copy.deepcopy(other), torch.get_rng_state()
        with pytest.raises(UnsupportedError, match="has to be recorded on every call"):
            static(other, x, strict=True)
        # The network is as it was before.
        assert torch.equal(torch.get_rng_state(), drawn) and getattr(other, "calls", 0) == getattr(before, "calls", 0)
        for now, then in zip(other.state_dict().values(), before.state_dict().values(), strict=True):
            assert torch.equal(now, then)


def test_train_and_eval(net, x):
    assert recordings(net, x, strict=True) == 1
    net.train()
    FORWARDS.clear()
    with pytest.warns(FallbackWarning, match="draws at random") as caught:
        for _ in range(3):
            static(net, x)
    assert caught[0].filename == __file__, "where the user calls"
    assert len(FORWARDS) == 3
    assert recordings(net.eval(), x, strict=True) == 0


def test_a_hook_that_goes_in_the_forward_in_which_it_ran(net, x):
    def once(module, args, y):
        handle.remove()
        return 3 * y + 1

    for critic in (net, nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Unflatten(1, (1, -1)), nn.AdaptiveAvgPool1d(1))):
        handle = critic.register_forward_hook(once)
        with pytest.warns(FallbackWarning, match="forward hooks"):
            static(critic, x)
        for _ in range(2):
            torch.testing.assert_close(static(critic, x), reference.normalize_gradient(critic, x))


def test_a_new_hook_runs(net, x):
    assert recordings(net, x, strict=True) == 1
    handle = net.linear.register_forward_hook(lambda module, args, y: y + 1)
    with pytest.warns(FallbackWarning, match="hooks"):
        assert recordings(net, x) == 1
    assert recordings(net, x) == 1
    handle.remove()
    assert recordings(net, x, strict=True) == 0


class Initialises(Critic):
    """Its first call makes a table, from its own weight."""

    table = None

    def forward(self, x):
        if self.table is None:
            self.table = self.conv.weight.detach().mean((1, 2, 3))
        return super().forward(x) * self.table.abs().sum()


@pytest.mark.parametrize("strict", [False, True])
def test_what_stood_in_the_way_may_go(strict, x):
    net, other = Critic(), Initialises()
    handle = net.linear.register_forward_hook(lambda module, args, y: y + 1)
    for critic, reason in ((net, "hooks"), (other, "changes attributes")):
        with pytest.warns(FallbackWarning, match=reason):
            static(critic, x)
    handle.remove()
    for critic in (net, other):
        assert [recordings(critic, x, strict=strict) for _ in range(3)] == [1, 0, 0]


def test_an_argument_that_cannot_be_compared(x):
    class Options:
        factor = 2.0

    class Net(Critic):
        def forward(self, x, options):
            return super().forward(x) * options.factor

    net, options = Net(), Options()
    with pytest.warns(FallbackWarning, match="argument"):
        assert recordings(net, x, options) == 1
    options.factor = 3.0
    assert recordings(net, x, options) == 1


def test_refused_networks_fall_back_as_ever(x):
    net = nn.Sequential(nn.Flatten(), nn.Linear(105, 4), Bessel(), nn.Linear(4, 1)).double()
    with pytest.warns(FallbackWarning, match="goes through exact double backward") as caught:
        for _ in range(3):
            assert_same(
                outputs_and_gradients(static, net, x), outputs_and_gradients(reference.normalize_gradient, net, x)
            )
    assert len(caught) == 1
    with pytest.raises(UnsupportedError, match="i0"):
        static(net, x, strict=True)


def test_what_is_around_a_kept_call_is_still_refused(net, x):
    assert recordings(net, x, strict=True) == 1
    hooked = x.clone().requires_grad_()
    hooked.register_hook(lambda grad: grad)
    with pytest.raises(UnsupportedError, match="hook on x"):
        static(net, hooked, strict=True)
    x = x.clone().requires_grad_()
    static(net, x, scale=torch.ones(1, dtype=DTYPE, requires_grad=True), strict=True)
    with pytest.raises(UnsupportedError, match="computed from x"):
        static(net, x, scale=x.mean().reshape(1), strict=True)


def test_modules_copies_and_pickles(net, x):
    critic = gnfast.GradientNorm(net, static=True, strict=True)
    critic(x)
    for other in (copy.deepcopy(critic), pickle.loads(pickle.dumps(critic))):
        with torch.no_grad():
            other.net.conv.weight.add_(1)
        FORWARDS.clear()
        results = [other(x) for _ in range(2)]
        assert len(FORWARDS) == 1
        torch.testing.assert_close(results[1], reference.normalize_gradient(other.net, x))
        assert not torch.equal(results[0], critic(x))
    assert "static=True" in repr(critic)


def test_functional_call(net, x):
    critic = gnfast.GradientNorm(net, static=True, strict=True)
    critic(x)
    tensors = {name: torch.randn_like(p, requires_grad=True) for name, p in net.named_parameters()}
    actual = torch.func.functional_call(critic, tensors, (x,))
    expected = torch.func.functional_call(gnfast.GradientNorm(net, impl="reference"), tensors, (x,))
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(critic(x), reference.normalize_gradient(net, x))


def test_nothing_keeps_the_network_alive(x):
    net = Critic()
    static(net, x, strict=True).sum().backward()
    alive = weakref.ref(net)
    FORWARDS.clear()
    del net
    gc.collect()
    assert alive() is None
