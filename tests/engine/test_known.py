"""Recordings that are kept of networks whose code is known: right after whatever a user may do to them in between."""

import copy
import functools
import gc
import types
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

import gnfast
import gnfast.models
from gnfast import UnsupportedError, reference
from gnfast.engine import known, recording
from gnfast.models import resnet
from gnfast.plan import stateless
from tests.hunt import kept
from tests.oracle import assert_same, outputs_and_gradients

DTYPE = torch.float64


@pytest.fixture
def net():
    torch.manual_seed(1)
    block = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.LeakyReLU(0.1), nn.AvgPool2d(2))
    return nn.Sequential(block, nn.Conv2d(8, 8, 1), nn.Dropout(0.5), nn.Flatten(), nn.Linear(48, 1)).double().eval()


@pytest.fixture
def x():
    return torch.randn(4, 3, 5, 7, dtype=DTYPE)


@pytest.fixture(autouse=True)
def recorded(monkeypatch):
    """The networks that were recorded, once for each time."""
    found = []

    def plan_for(net, *args, **kwargs):
        found.append(net)
        return original(net, *args, **kwargs)

    original = recording.plan_for
    monkeypatch.setattr(recording, "plan_for", plan_for)
    return found


@pytest.fixture
def is_recorded(recorded):
    def check(net, x, **kwargs):
        """Whether a call records, whose result and gradients are those of double backward."""
        expected = outputs_and_gradients(reference.normalize_gradient, net, x)
        recorded.clear()
        actual = outputs_and_gradients(gnfast.normalize_gradient, net, x, **kwargs)
        assert_same(actual, expected)
        return len(recorded) == 1

    return check


def test_the_second_recording_is_kept(net, x, is_recorded):
    assert [is_recorded(net, torch.randn_like(x), strict=True) for _ in range(5)] == [True, True, False, False, False]


@pytest.mark.parametrize("name", ["dcgan", "resnet"])
def test_shipped_critics(name, is_recorded):
    critic = gnfast.models.build(name, resolution=32, width=0.05)[1].double()
    x = torch.randn(2, 3, 32, 32, dtype=DTYPE)
    assert [is_recorded(critic, x, strict=True) for _ in range(3)] == [True, True, False]


def test_norms_and_smooth_layers(is_recorded):
    first = nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.SiLU(), nn.LocalResponseNorm(2), nn.Softmax(1), nn.Flatten()
    last = nn.Linear(72, 6), nn.LayerNorm(6), nn.GELU(), nn.Linear(6, 6), nn.RMSNorm(6), nn.Softplus(), nn.Tanh()
    net, x = nn.Sequential(*first, *last, nn.Linear(6, 1)).double(), torch.randn(4, 3, 5, 5, dtype=DTYPE)
    assert [is_recorded(net, x, strict=True) for _ in range(3)] == [True, True, False]
    net[1].num_groups = 4
    assert is_recorded(net, x, strict=True)


def test_values_are_read_anew(net, x, is_recorded):
    optimizer = torch.optim.Adam(net.parameters(), 0.1)
    changes = {
        "a step": optimizer.step,
        "a state dict": lambda: net.load_state_dict({n: torch.randn_like(t) for n, t in net.state_dict().items()}),
        "another memory": lambda: setattr(net[1].weight, "data", torch.randn_like(net[1].weight)),
        "a write behind PyTorch's back": lambda: net[1].weight.data.mul_(2),
    }
    assert [is_recorded(net, x, strict=True) for _ in range(3)] == [True, True, False]
    for name, change in changes.items():
        change()
        assert not is_recorded(net, x, strict=True), name


class Doubled(nn.LeakyReLU):
    def forward(self, h):
        return 2 * super().forward(h)


CHANGES = {
    "a replaced parameter": lambda net: setattr(net[1], "weight", nn.Parameter(torch.randn(8, 8, 1, 1, dtype=DTYPE))),
    "a parameter taken out": lambda net: setattr(net[1], "bias", None),
    "a replaced module": lambda net: net[0].__setitem__(1, nn.ReLU()),
    "a module taken out": lambda net: net.pop(1),
    "an added module": lambda net: net[0].append(nn.ReLU()),
    "the order of modules": lambda net: net[0]._modules.update({"1": net[0]._modules.pop("1")}),
    "another module twice": lambda net: net.__setitem__(2, net[1]),
    "an attribute": lambda net: setattr(net[0][1], "negative_slope", 0.3),
    "another forward": lambda net: setattr(net[0][1], "forward", lambda h: h.abs()),
    "another class": lambda net: setattr(net[0][1], "__class__", Doubled),
    "a hook": lambda net: net[0].register_forward_hook(lambda module, args, y: y.abs()),
    "a parametrization": lambda net: parametrizations.spectral_norm(net[1]).eval(),
    "gnfast's spectral norm": lambda net: gnfast.spectral_norm_(net).eval(),
    "requires_grad of one": lambda net: net[1].weight.requires_grad_(False),
    "requires_grad of all": lambda net: net.requires_grad_(False),
    "a frozen bias": lambda net: net[1].bias.requires_grad_(False),
    "memory format": lambda net: net.to(memory_format=torch.channels_last),
    "more of known code": lambda net: net[0].extend([nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()]).double(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_has_changed_is_recorded_anew(change, net, x, is_recorded):
    for _ in range(3):
        is_recorded(net, x, strict=True)
    change(net)
    assert [is_recorded(net, x, strict=True) for _ in range(2)] == [True, True]
    for _ in range(2):
        is_recorded(net, x, strict=True)


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        *[(nn.LeakyReLU, "forward"), (F, "leaky_relu"), (nn.Conv2d, "_conv_forward"), (nn.Sequential, "__iter__")],
        *[(nn.Module, "__call__"), (nn.Module, "_call_impl"), (nn.Module, "__getattr__")],
    ],
)
@pytest.mark.filterwarnings("ignore::gnfast.FallbackWarning")
def test_replaced_code_runs(owner, name, net, x, recorded, monkeypatch):
    for _ in range(3):
        gnfast.normalize_gradient(net, x, strict=True)
    calls, original = [], getattr(owner, name)

    def counted(*args, **kwargs):
        calls.append(args)
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, counted)
    gnfast.normalize_gradient(net, x)
    assert calls


def test_functions_that_a_file_of_layers_has_from_elsewhere(net, x, is_recorded, monkeypatch):
    for _ in range(3):
        is_recorded(net, x, strict=True)
    other = types.SimpleNamespace(**{**vars(F), "leaky_relu": lambda h, *_: F.leaky_relu(h, 0.7)})
    monkeypatch.setattr(nn.modules.activation, "F", other)
    assert is_recorded(net, x, strict=True)


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        *[(nn.Conv2d, "_conv_forward"), (nn.Sequential, "__iter__"), (nn.Module, "__getattr__")],
        *[(resnet.Discriminator, "forward"), (resnet.Discriminator, "__call__")],
    ],
)
@pytest.mark.filterwarnings("ignore::gnfast.FallbackWarning")
def test_code_that_was_replaced_before_runs_on_every_call(owner, name, monkeypatch):
    original, calls = getattr(owner, name), []

    @functools.wraps(original)
    def counted(*args, **kwargs):
        calls.append(args)
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, counted)
    # As where it was replaced before gnfast was imported.
    monkeypatch.setattr(known, "_CODE", (known._functions(vars(F)), known._code(nn)))
    critic = gnfast.models.build("resnet", resolution=32, width=0.05)[1]
    for _ in range(5):
        calls.clear()
        gnfast.normalize_gradient(critic, torch.randn(2, 3, 32, 32))
        assert calls


@pytest.mark.parametrize("kind", stateless.FORWARDS)
def test_layers_are_as_they_came(kind):
    assert stateless.is_known(kind)
    assert stateless.is_as_it_came(kind)


def test_a_layer_that_goes_to_the_neighbour(is_recorded):
    """Under the same name, so that all names are still in their order."""
    critic = resnet.Discriminator((8, 8, 8), 1, 3, lambda i, o, down: resnet.Block(i, o, down, o), resnet.SumPool())
    x, block = torch.randn(2, 3, 8, 8, dtype=DTYPE), critic.double().model[2]
    for _ in range(3):
        is_recorded(critic, x, strict=True)
    assert [*block._modules] == ["shortcut", "residual"]
    assert not block.shortcut
    block.shortcut.add_module("0", block.residual._modules.pop("0"))
    assert is_recorded(critic, x, strict=True)


def test_a_dict_of_another_kind(net, x, is_recorded):
    class Doubled(dict):
        def __getitem__(self, name):
            return super().__getitem__(name) * 2 if name == "weight" else super().__getitem__(name)

    for _ in range(3):
        is_recorded(net, x, strict=True)
    net[1].__dict__["_parameters"] = Doubled(net[1]._parameters)
    assert all(is_recorded(net, x, strict=True) for _ in range(4))


def test_the_list_by_which_a_convolution_pads(net, x, is_recorded):
    net[0][0] = nn.Conv2d(3, 8, 3, padding="same", padding_mode="circular").double()
    for _ in range(3):
        is_recorded(net, x, strict=True)
    net[0][0]._reversed_padding_repeated_twice[:] = [2, 0, 1, 1]
    is_recorded(net, x, strict=True)


def test_changes_in_turns_cost_few_guards(net, x, recorded, monkeypatch):
    guards, original = [], known._guard
    monkeypatch.setattr(known, "_guard", lambda net: guards.append(net) or original(net))
    for step in range(256):
        net[1].requires_grad_(step % 2 == 0)
        gnfast.normalize_gradient(net, x, strict=True)
    assert len(recorded) > 200
    assert len(guards) <= 9
    for _ in range(70):
        gnfast.normalize_gradient(net, x, strict=True)
    recorded.clear()
    for step in range(256):
        net[1].requires_grad_(step % 64 < 32)
        gnfast.normalize_gradient(net, x, strict=True)
    assert len(recorded) == 16


def test_training_mode_draws_each_time(net, x):
    for training in (False, False, False, True, True, True, False):
        net.train(training)
        torch.manual_seed(0)
        before = gnfast.normalize_gradient(net, x)
        torch.manual_seed(0)
        torch.testing.assert_close(before, reference.normalize_gradient(net, x))
        assert torch.equal(before, gnfast.normalize_gradient(net, x)) != training


def test_turns_of_train_and_eval_cost_no_recordings(x, is_recorded):
    net = nn.Sequential(nn.Flatten(), nn.Linear(105, 8), nn.ReLU(), nn.Linear(8, 1)).double()
    turns = [is_recorded(net.train(training), x, strict=True) for training in (True, False) * 4]
    assert turns == [True] * 4 + [False] * 4


def test_each_form_of_call_is_kept_by_itself(net, x, is_recorded):
    def low(net, x):
        with torch.autocast("cpu", torch.bfloat16):
            return gnfast.normalize_gradient(net, x.float(), strict=True)

    for _ in range(3):
        is_recorded(net, x, strict=True)
        is_recorded(net, x[:3], strict=True)
        is_recorded(net, x, strict=True, rewrite=False)
        with torch.no_grad():
            assert not gnfast.normalize_gradient(net, x, strict=True).requires_grad
        expected = low(copy.deepcopy(net).float(), x)
        assert expected.dtype == torch.float32
        assert torch.equal(low(net.float(), x), expected)
        net.double()
    with pytest.raises(gnfast.InputError, match="wanted 4 with the batch"):
        gnfast.normalize_gradient(net, x[0], strict=True)


def test_many_forms_of_call(net, x, is_recorded):
    for _ in range(3):
        for size in range(1, 25):
            is_recorded(net, torch.randn(size, *x.shape[1:], dtype=DTYPE), strict=True)


def test_what_is_around_a_call_is_still_refused(net, x):
    for _ in range(3):
        gnfast.normalize_gradient(net, x.clone().requires_grad_(), strict=True)
    hooked = x.clone().requires_grad_()
    hooked.register_hook(lambda grad: grad)
    with pytest.raises(UnsupportedError, match="hook on x"):
        gnfast.normalize_gradient(net, hooked, strict=True)
    net[1].register_full_backward_hook(lambda *_: None)
    with pytest.raises(UnsupportedError, match="a backward hook"):
        gnfast.normalize_gradient(net, x.clone().requires_grad_(), strict=True)


def test_weights_that_come_from_x_are_refused(net, x):
    x = x.clone().requires_grad_()
    for _ in range(3):
        gnfast.normalize_gradient(net, x, strict=True)
    weights = {"1.bias": x.mean((0, 2, 3)).repeat(3)[:8]}
    with pytest.raises(UnsupportedError, match="computed from x"):
        torch.func.functional_call(gnfast.GradientNorm(net, strict=True), {"net.1.bias": weights["1.bias"]}, (x,))


def test_functional_calls_and_copies(net, x):
    critic = gnfast.GradientNorm(net, strict=True)
    for _ in range(4):
        tensors = {name: torch.randn_like(p, requires_grad=True) for name, p in critic.named_parameters()}
        actual = torch.func.functional_call(critic, tensors, (x,))
        expected = torch.func.functional_call(gnfast.GradientNorm(net, impl="reference"), tensors, (x,))
        torch.testing.assert_close(actual, expected)
        torch.testing.assert_close(critic(x), reference.normalize_gradient(net, x))
        other = copy.deepcopy(critic)
        with torch.no_grad():
            other.net[1].weight.add_(1)
        torch.testing.assert_close(other(x), reference.normalize_gradient(other.net, x))


def test_replaced_parts_at_the_addresses_of_their_predecessors(net, x, is_recorded):
    for step in range(40):
        net[1] = nn.Conv2d(8, 8, 1, bias=bool(step % 3)).double()
        net[0][1] = nn.LeakyReLU(step / 40)
        net[1].weight = nn.Parameter(torch.randn(8, 8, 1, 1, dtype=DTYPE))
        for _ in range(3):
            is_recorded(net, x, strict=True)


def test_compiled_parts_run_as_they_were(net, x, recorded):
    for _ in range(3):
        gnfast.normalize_gradient(net, x, strict=True)
    net[0].compile(backend="eager")
    recorded.clear()
    torch.testing.assert_close(
        gnfast.normalize_gradient(net, x, strict=True), reference.normalize_gradient(copy.deepcopy(net), x)
    )
    assert recorded


def test_hooks_that_run_once(net, x):
    """As those that initialise a layer by its first batch."""

    def once(module, args, y):
        handle.remove()
        return 3 * y + 1

    without_weights = nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Unflatten(1, (1, -1)), nn.AdaptiveAvgPool1d(1))
    for critic in (net, without_weights):
        # The second recording is the first that may be kept.
        gnfast.normalize_gradient(critic, x, strict=True)
        for _ in range(3):
            handle = critic[1].register_forward_hook(once)
            gnfast.normalize_gradient(critic, x, strict=True)
            actual = gnfast.normalize_gradient(critic, x, strict=True)
            torch.testing.assert_close(actual, reference.normalize_gradient(critic, x))


@pytest.mark.filterwarnings("ignore")
def test_random_changes():
    assert [reason for seed in range(30) if (reason := kept.trial(seed))] == []


LEADS_BACK = {
    "an attribute": lambda net: net[1].__dict__.update(parent=net),
    "a hook on a state dict": lambda net: net[1].register_state_dict_pre_hook(lambda *_: net),
    "a hook on a weight": lambda net: net[1].weight.register_hook(lambda _: net),
    "an attribute of a weight": lambda net: net[1].weight.__dict__.update(parent=net),
    "nothing": lambda net: None,
}


@pytest.mark.parametrize("lead", LEADS_BACK.values(), ids=LEADS_BACK)
@pytest.mark.parametrize("before", [True, False])
def test_nothing_keeps_the_network_alive(lead, before, x, recorded):
    net = nn.Sequential(nn.Flatten(), nn.Linear(105, 1)).double()
    if before:
        lead(net)
    for _ in range(3):
        gnfast.normalize_gradient(net, x, strict=True)
    if not before:
        lead(net)
    recorded.clear()
    alive = weakref.ref(net)
    del net
    gc.collect()
    assert alive() is None


def test_code_of_the_users_is_never_kept(x, is_recorded):
    class Own(nn.Sequential):
        pass

    for net in (Own(nn.Flatten(), nn.Linear(105, 1)), nn.Sequential(nn.Flatten(), Own(nn.Linear(105, 1)))):
        assert all(is_recorded(net.double(), x, strict=True) for _ in range(4))
    assert not known.is_known(Own)
