"""Spectral normalisation against `torch.nn.utils.parametrizations.spectral_norm`: values, gradients, state, habits."""

import copy
import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils import spectral_norm as legacy_spectral_norm
from torch.nn.utils.parametrizations import spectral_norm as torch_spectral_norm
from torch.utils.checkpoint import checkpoint

import gnfast
from gnfast import InputError, UnsupportedError, models
from gnfast.kernels.backend import implementation
from gnfast.spectral import LAYERS, SpectralNorm

# id -> layer, name of the parameter, options
CASES = {
    "linear": lambda: (nn.Linear(7, 5), "weight", {}),
    "linear, one output": lambda: (nn.Linear(33, 1), "weight", {}),
    "conv1d": lambda: (nn.Conv1d(3, 5, 4), "weight", {}),
    "conv2d, three iterations": lambda: (nn.Conv2d(3, 5, 3), "weight", {"n_power_iterations": 3}),
    "conv2d, rows of dim 1": lambda: (nn.Conv2d(3, 5, 3), "weight", {"dim": 1}),
    "conv2d, rows of dim -1": lambda: (nn.Conv2d(3, 5, 3), "weight", {"dim": -1}),
    "conv2d, channels_last": lambda: (nn.Conv2d(6, 5, 3).to(memory_format=torch.channels_last), "weight", {}),
    "conv2d, large eps": lambda: (nn.Conv2d(3, 5, 3), "weight", {"eps": 3.0}),
    "grouped conv3d": lambda: (nn.Conv3d(4, 6, 2, groups=2), "weight", {}),
    "transposed conv1d": lambda: (nn.ConvTranspose1d(3, 5, 4), "weight", {}),
    "transposed conv2d": lambda: (nn.ConvTranspose2d(3, 5, 4), "weight", {}),
    "transposed conv3d": lambda: (nn.ConvTranspose3d(3, 5, 2), "weight", {}),
    "embedding": lambda: (nn.Embedding(11, 4), "weight", {}),
    "one dimension": lambda: (nn.LayerNorm(9), "weight", {}),
    "another name": lambda: (nn.GRUCell(3, 4), "weight_hh", {}),
    "complex": lambda: (nn.Linear(7, 5, dtype=torch.complex128), "weight", {}),
}


def pair(name: str) -> tuple[nn.Module, nn.Module, str]:
    """A layer normalised by PyTorch, the same by gnfast, and the parameter's name."""
    layer, parameter, options = CASES[name]()
    if not getattr(layer, parameter).is_complex():
        layer = layer.double()
    nn.init.normal_(getattr(layer, parameter))
    layers = []
    for normalize in (torch_spectral_norm, gnfast.spectral_norm):
        torch.manual_seed(1)
        layers.append(normalize(copy.deepcopy(layer), parameter, **options))
    return *layers, parameter


def assert_equal(actual: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance, equal_nan=True)


def assert_same_state(actual: nn.Module, expected: nn.Module, tolerance: float = 1e-12) -> None:
    """The same keys in the same order, and the same values."""
    state, wanted = actual.state_dict(), expected.state_dict()
    assert list(state) == list(wanted)
    for key, value in wanted.items():
        assert_equal(state[key], value, tolerance)


@pytest.mark.parametrize("name", CASES)
def test_layer_trains_as_pytorchs(name):
    """u, v, W̄, gradients and weights through 100 steps; two reads before each backward, and evaluation in between."""
    expected, actual, parameter = pair(name)
    assert_same_state(actual, expected)
    optimizers = [torch.optim.SGD(layer.parameters(), 0.05, momentum=0.5) for layer in (expected, actual)]
    for step in range(100):
        seen = []
        torch.manual_seed(step)
        shape, dtype = getattr(expected.parametrizations, parameter).original.shape, expected.state_dict()
        directions = torch.randn(2, *shape, dtype=dtype[f"parametrizations.{parameter}.original"].dtype)
        for layer, optimizer in zip((expected, actual), optimizers, strict=True):
            first, second = getattr(layer, parameter), getattr(layer, parameter)
            optimizer.zero_grad()
            ((first * directions[0]).sum() - (second * directions[1]).sum().sin()).abs().backward()
            layer.eval()
            evaluated = getattr(layer, parameter).detach()
            layer.train()
            gradient = getattr(layer.parametrizations, parameter).original.grad.clone()
            optimizer.step()
            seen.append((first.detach(), second.detach(), evaluated, gradient))
        for wanted, got in zip(*seen, strict=True):
            assert got.stride() == wanted.stride()
            assert_equal(got, wanted, 1e-10)
        assert_same_state(actual, expected, 1e-10)


def random_layer(generator: torch.Generator) -> nn.Module:
    """A layer of a random kind with random sizes, in a random memory format."""

    def draw(high: int) -> int:
        return int(torch.randint(1, high, (), generator=generator))

    kind = LAYERS[draw(len(LAYERS) + 1) - 1]
    if kind in (nn.Linear, nn.Embedding):
        return kind(draw(40), draw(40))
    layer = kind(draw(20), draw(20), tuple(draw(5) for _ in range(int(kind.__name__[-2]))))
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    if layer.weight.dim() in formats and draw(3) == 1:
        layer = layer.to(memory_format=formats[layer.weight.dim()])
    return layer


@pytest.mark.parametrize("seed", range(3))
def test_random_shapes_train_as_pytorchs(seed):
    """u, v, W̄, gradients and weights of ten random layers through 100 steps of the whole model."""
    generator = torch.Generator().manual_seed(seed)
    layers = nn.ModuleList(random_layer(generator) for _ in range(10)).double()
    expected, actual = copy.deepcopy(layers), copy.deepcopy(layers)
    torch.manual_seed(1)
    for layer in expected:
        torch_spectral_norm(layer)
    torch.manual_seed(1)
    gnfast.spectral_norm_(actual)
    optimizers = [torch.optim.SGD(net.parameters(), 0.02, momentum=0.5) for net in (expected, actual)]
    for net in (expected, actual):
        net.forward = lambda net=net: [layer.weight for layer in net]
    for _ in range(100):
        directions = [torch.randn(layer.weight.shape, generator=generator).double() for layer in layers]
        seen = []
        for net, optimizer in zip((expected, actual), optimizers, strict=True):
            optimizer.zero_grad()
            weights = net()
            sum((w * d).sum().sin() for w, d in zip(weights, directions, strict=True)).backward()
            gradients = [layer.parametrizations.weight.original.grad.clone() for layer in net]
            optimizer.step()
            seen.append([*(w.detach() for w in weights), *gradients])
        for wanted, got in zip(*seen, strict=True):
            assert got.stride() == wanted.stride()
            assert_equal(got, wanted, 1e-10)
    assert_same_state(actual, expected, 1e-10)


class Net(nn.Module):
    """A critic with every kind of layer that `spectral_norm_` wraps, one of them used twice, one not at all."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 9)
        self.conv = nn.Conv2d(3, 7, 3, padding=1)
        self.up = nn.ConvTranspose2d(7, 5, 4, stride=2, padding=1)
        self.hidden = nn.Linear(5, 9)
        self.twice = nn.Linear(9, 9)
        self.unused = nn.Linear(3, 2)
        self.head = nn.Linear(9, 1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = self.up(F.leaky_relu(self.conv(x), 0.1)).relu().mean((2, 3))
        h = self.hidden(h).relu()
        h = self.twice(self.twice(h).relu())
        return self.head(h) + (self.embedding(y) * h).sum(1, keepdim=True)


def batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    return torch.randn(4, 3, 6, 6, dtype=torch.float64), torch.arange(4)


def normalized_net(whole: bool = True, **options) -> Net:
    torch.manual_seed(0)
    net = Net().double()
    torch.manual_seed(1)
    if whole:
        return gnfast.spectral_norm_(net, **options)
    for layer in net.modules():
        if isinstance(layer, LAYERS):
            gnfast.spectral_norm(layer, **options)
    return net


def torch_net() -> Net:
    torch.manual_seed(0)
    net = Net().double()
    torch.manual_seed(1)
    for layer in net.modules():
        if isinstance(layer, LAYERS):
            torch_spectral_norm(layer)
    return net


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_model_trains_as_pytorchs(layout):
    """A GAN's critic steps, two forwards before each backward; all but the unused layer's u and v."""
    expected, actual = (net.to(memory_format=layout) for net in (torch_net(), normalized_net()))
    optimizers = [torch.optim.SGD(net.parameters(), 1e-2, momentum=0.9) for net in (expected, actual)]
    for step in range(100):
        seen = []
        x, y = batch(step)
        for net, optimizer in zip((expected, actual), optimizers, strict=True):
            optimizer.zero_grad()
            real, fake = net(x, y), net(x.flip(0), y)
            ((1 - real).relu() + (1 + fake).relu()).mean().backward()
            seen.append([real.detach(), fake.detach(), *(p.grad for p in net.parameters() if p.grad is not None)])
            optimizer.step()
        for wanted, got in zip(*seen, strict=True):
            assert_equal(got, wanted, 1e-10)
        wanted, got = expected.state_dict(), actual.state_dict()
        for key in wanted:
            if "unused" not in key:
                assert_equal(got[key], wanted[key], 1e-10)
    assert list(wanted) == list(got)
    assert actual.unused.parametrizations.weight.original.grad is None
    assert not torch.equal(got["unused.parametrizations.weight.0._v"], wanted["unused.parametrizations.weight.0._v"])


def counted(monkeypatch) -> dict[str, int]:
    """Calls of the fused operations from here on."""
    counts = {"iterate": 0, "scale": 0, "backward": 0}
    kernels = implementation("spectral", "cpu")

    def counting(name, function):
        def call(*arguments):
            counts[name] += 1
            return function(*arguments)

        return call

    for name in counts:
        monkeypatch.setattr(kernels, name, counting(name, getattr(kernels, name)))
    return counts


def test_one_call_for_all_layers(monkeypatch):
    net = gnfast.spectral_norm_(nn.Sequential(*(nn.Linear(4, 4) for _ in range(10))))
    counts = counted(monkeypatch)
    net(torch.randn(2, 4)).sum().backward()
    assert counts == {"iterate": 1, "scale": 1, "backward": 1}
    assert all(p.grad is not None for p in net.parameters())


def test_mixed_dtypes_take_one_call_each(monkeypatch):
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4).double(), nn.Linear(4, 4)

        def forward(self, x):
            return self.c(self.b(self.a(x).double()).float())

    net = gnfast.spectral_norm_(Mixed())
    counts = counted(monkeypatch)
    net(torch.randn(2, 4)).sum().backward()
    assert counts == {"iterate": 2, "scale": 2, "backward": 2}


def iterated(layer: nn.Module, read) -> bool:
    """Whether `read()` changed the layer's v."""
    before = layer.parametrizations.weight[0]._v.clone()
    read()
    return not torch.equal(before, layer.parametrizations.weight[0]._v)


@pytest.mark.parametrize("whole", [False, True], ids=["per layer", "model"])
def test_when_it_iterates(whole):
    net, (x, y) = normalized_net(whole), batch()
    assert iterated(net.conv, lambda: net(x, y))
    assert iterated(net.conv, lambda: net.conv.weight)
    assert iterated(net.conv, lambda: net.conv(x))
    assert iterated(net.unused, lambda: net(x, y)) == whole
    with parametrize.cached():
        assert iterated(net.conv, lambda: net(x, y))
        assert not iterated(net.conv, lambda: (net(x, y), net.conv.weight))
    net.eval()
    assert not iterated(net.conv, lambda: (net(x, y), net.conv.weight))
    net.conv.train()
    net.conv.parametrizations.train()
    assert iterated(net.conv, lambda: net(x, y))
    assert not iterated(net.head, lambda: net(x, y))


def test_cached_matches_pytorch():
    expected, actual, (x, y) = torch_net(), normalized_net(), batch()
    seen = []
    for net in (expected, actual):
        with parametrize.cached():
            out = net(x, y) + net(x + 1, y)
            out.sum().backward()
        seen.append([out.detach(), net.conv.parametrizations.weight.original.grad, net.twice.weight.detach()])
    for wanted, got in zip(*seen, strict=True):
        assert_equal(got, wanted)


def test_training_with_frozen_weights():
    net, (x, y) = normalized_net().requires_grad_(False), batch()
    x.requires_grad_()
    net(x, y).sum().backward()
    assert x.grad is not None
    assert iterated(net.conv, lambda: net(x, y))


def test_no_grad_and_grad_forwards():
    expected, actual, (x, y) = torch_net(), normalized_net(), batch()
    seen = []
    for net in (expected, actual):
        with torch.no_grad():
            first = net(x, y)
            weight = net.conv.weight
        second = net(x, y)
        second.sum().backward()
        assert not weight.requires_grad
        seen.append((first, second.detach(), net.conv.parametrizations.weight.original.grad))
    for wanted, got in zip(*seen, strict=True):
        assert_equal(got, wanted)


def test_gradients_enabled_inside_a_forward_without():
    """The W̄ that was prepared carries no gradient; the layer's own does, and u and v advance once."""

    class Enabling(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3).double()

        def forward(self, x):
            with torch.enable_grad():
                return self.layer(x)

    torch.manual_seed(0)
    expected = Enabling()
    actual = copy.deepcopy(expected)
    torch.manual_seed(1)
    torch_spectral_norm(expected.layer)
    torch.manual_seed(1)
    gnfast.spectral_norm_(actual)
    x = torch.randn(2, 4, dtype=torch.float64)
    for net in (expected, actual):
        with torch.no_grad():
            out = net(x)
        out.sin().sum().backward()
    assert_same_state(actual, expected)
    assert_equal(
        actual.layer.parametrizations.weight.original.grad, expected.layer.parametrizations.weight.original.grad
    )


def test_weight_changed_within_a_forward():
    """A weight that changed after it was prepared is divided as it is now."""
    net = gnfast.spectral_norm_(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)).double())

    def double(layer, _):
        with torch.no_grad():
            layer.parametrizations.weight.original.mul_(2)

    seen = []
    net[1].register_forward_pre_hook(double)
    net[1].register_forward_pre_hook(lambda layer, _: seen.append(layer.weight))
    net(torch.randn(2, 3, dtype=torch.float64))
    net[1].eval()
    weight, norm = net[1].parametrizations.weight.original, net[1].parametrizations.weight[0]
    # The read after that one iterated once more, so the values agree only to what an iteration moves.
    with torch.no_grad():
        wanted = weight / (norm._u @ weight @ norm._v)
        assert (seen[0] - wanted).norm() < 0.1 * wanted.norm()


class Switching(nn.Module):
    """Switches modes within its forward: `switch(net)` before the second of its two layers."""

    def __init__(self, switch) -> None:
        super().__init__()
        self.switch, self.first, self.second = switch, nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).sin()
        self.switch(self)
        h = self.first(h)
        return self.second(h)


@pytest.mark.parametrize(
    ("training", "switch"),
    [
        (False, nn.Module.train),
        (False, lambda net: net.second.train()),
        (True, lambda net: net.first.eval()),
        (True, lambda net: net.eval().train()),
    ],
    ids=["all to training", "one to training", "one that was read to evaluation", "there and back"],
)
def test_modes_switched_within_a_forward(training, switch):
    torch.manual_seed(0)
    plain, x = Switching(switch).double(), torch.randn(2, 4, dtype=torch.float64)
    nets = []
    for whole in (False, True):
        torch.manual_seed(1)
        net = copy.deepcopy(plain)
        if whole:
            gnfast.spectral_norm_(net)
        else:
            torch_spectral_norm(net.first)
            torch_spectral_norm(net.second)
        nets.append(net)
    expected, actual = nets
    for _ in range(3):
        assert_equal(*(net.train(training)(x) for net in (actual, expected)))
        assert_same_state(actual, expected)


@pytest.mark.parametrize("switch", [nn.Module.eval, lambda net: net.second.eval()], ids=["all", "one"])
def test_eval_within_a_forward_is_refused(switch):
    """The layer has iterated by then, and would divide by another σ than PyTorch's."""
    net, x = gnfast.spectral_norm_(Switching(switch)), torch.randn(2, 4)
    with pytest.raises(UnsupportedError, match="spectral_norm_: second was switched to eval mode in the forward of Sw"):
        net(x)
    assert not prepared(net)
    assert not iterated(net.second, lambda: net.second.eval()(x))


def prepared(net: nn.Module) -> list[nn.Module]:
    return [m for m in net.modules() if getattr(m, "_prepared", None) is not None]


def test_nothing_stays_behind():
    """No W̄ outlives a forward: not the unused ones, and none after an exception."""
    net, (x, y) = normalized_net(), batch()
    net(x, y)
    assert not prepared(net)
    with pytest.raises(RuntimeError):
        net(x[:, :2], y)
    assert not prepared(net)
    weights = []
    handle = net.conv.register_forward_hook(lambda layer, args, output: weights.append(weakref.ref(output)))
    net(x, y)
    handle.remove()
    gc.collect()
    assert weights[0]() is None


@pytest.mark.parametrize(
    "follow",
    [nn.Module.train, nn.Module.eval, copy.deepcopy, lambda net: gnfast.remove_spectral_norm(net).eval()],
    ids=["train", "eval", "copy", "remove"],
)
def test_interrupted_forward_does_not_go_stale(follow):
    net, (x, y) = normalized_net(), batch()

    def interrupt(*_):
        raise KeyboardInterrupt

    handle = net.hidden.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        net(x, y)
    handle.remove()
    with torch.no_grad():
        net.head.parametrizations.weight.original.add_(1)
    fresh = normalized_net()
    fresh.load_state_dict(net.state_dict())
    assert prepared(net)
    after = follow(net)
    assert_equal(after(x, y), fresh.train(after.training)(x, y))


def test_nested_models():
    """A model inside a normalised model, normalised on its own as well, iterates once per forward."""
    inner = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    outer = nn.Sequential(inner, nn.Linear(4, 1)).double()
    expected = copy.deepcopy(outer)
    torch.manual_seed(1)
    for layer in expected.modules():
        if isinstance(layer, LAYERS):
            torch_spectral_norm(layer)
    torch.manual_seed(1)
    gnfast.spectral_norm_(inner)
    gnfast.spectral_norm_(outer, filter=lambda name, layer: not parametrize.is_parametrized(layer))
    x = torch.randn(2, 4, dtype=torch.float64)
    for step in range(3):
        assert_equal(outer(x + step), expected(x + step))
        assert_same_state(outer, expected)
    assert_equal(inner(x), expected[0](x))
    assert_same_state(outer, expected)
    assert not prepared(outer)


def test_coeff_scales():
    plain, scaled = normalized_net(), normalized_net(coeff=0.3)
    assert_equal(scaled.conv.weight, 0.3 * plain.conv.weight)
    assert not any("coeff" in key for key in scaled.state_dict())
    one_dimensional = gnfast.spectral_norm(nn.LayerNorm(4), coeff=2.0)
    assert_equal(one_dimensional.weight.norm(), torch.tensor(2.0), 1e-6)


@pytest.mark.parametrize("whole", [False, True], ids=["per layer", "model"])
def test_learned_scale(whole):
    net, (x, y) = normalized_net(whole, learn_scale=True, coeff=0.5), batch()
    norm = net.conv.parametrizations.weight[0]
    assert [key for key in net.state_dict() if key.startswith("conv.par")] == [
        "conv.parametrizations.weight.original",
        "conv.parametrizations.weight.0.gamma",
        "conv.parametrizations.weight.0._u",
        "conv.parametrizations.weight.0._v",
    ]
    assert norm.gamma.shape == ()
    with torch.no_grad():
        norm.gamma.fill_(3)
    net(x, y).sum().backward()
    assert norm.gamma.grad is not None
    net.eval()
    assert torch.linalg.matrix_norm(net.conv.weight.flatten(1), 2).item() == pytest.approx(1.5, rel=1e-2)


@pytest.mark.parametrize("shape", [(4, 3), (5, 3, 2)], ids=str)
def test_any_number_of_derivatives(shape):
    layer = nn.Conv1d(shape[1], shape[0], shape[2]) if len(shape) == 3 else nn.Linear(shape[1], shape[0])
    gnfast.spectral_norm(layer.double(), coeff=0.7).eval()
    weight = layer.parametrizations.weight.original.detach().clone().requires_grad_()
    norm = layer.parametrizations.weight[0]
    assert torch.autograd.gradcheck(norm, weight)
    assert torch.autograd.gradgradcheck(norm, weight)


def test_used_weights_alone_get_gradients():
    net = gnfast.spectral_norm_(
        nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Conv1d(3, 2, 2), "c": nn.Linear(3, 3)}).double()
    )
    net.forward = lambda x: net["c"](net["a"](x))
    out = net(torch.ones(1, 3, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(out.sum(), net["c"].parametrizations.weight.original, retain_graph=True)
    out.sum().backward()
    assert net["b"].parametrizations.weight.original.grad is None
    assert_equal(net["c"].parametrizations.weight.original.grad, gradient)


def test_writes_are_counted():
    """A graph that saved u notices that an iteration changed it."""
    layer = gnfast.spectral_norm(nn.Linear(3, 3))
    x = torch.ones(3, requires_grad=True)
    out = x * layer.parametrizations.weight[0]._u
    layer.weight
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_weight_changed_before_backward_raises():
    net, (x, y) = normalized_net(), batch()
    out = net(x, y)
    with torch.no_grad():
        net.conv.parametrizations.weight.original.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_checkpoints_of_pytorch_both_ways():
    expected, actual, (x, y) = torch_net(), normalized_net(), batch()
    for net in (expected, actual):
        for _ in range(3):
            net(x, y)
    actual.load_state_dict(expected.state_dict())
    assert_equal(actual(x, y), expected(x, y))
    fresh = torch_net()
    fresh.load_state_dict(actual.state_dict())
    assert_equal(fresh.eval()(x, y), actual.eval()(x, y))


@pytest.mark.parametrize("whole", [False, True], ids=["per layer", "model"])
def test_loads_legacy_checkpoints(whole):
    torch.manual_seed(5)
    legacy, (x, y) = Net().double(), batch()
    for layer in legacy.modules():
        if isinstance(layer, LAYERS):
            legacy_spectral_norm(layer)
    for _ in range(3):
        legacy(x, y)
    state = legacy.state_dict()
    assert "conv.weight_orig" in state
    net = normalized_net(whole)
    net.load_state_dict(state)
    assert "conv.weight_orig" in state
    assert_equal(net.eval()(x, y), legacy.eval()(x, y))


def test_other_shapes_do_not_load():
    state = normalized_net().state_dict()
    net = Net().double()
    net.conv = nn.Conv2d(4, 7, 3).double()
    gnfast.spectral_norm_(net)
    with pytest.raises(RuntimeError, match=r"size mismatch for conv\.parametrizations\.weight\.0\._v"):
        net.load_state_dict(state)


def test_deepcopy_is_independent():
    net, (x, y) = normalized_net(), batch()
    net(x, y)
    twin = copy.deepcopy(net)
    assert_equal(twin(x, y), net(x, y))
    assert_same_state(twin, net)
    before = copy.deepcopy(net.state_dict())
    twin(x, y).sum().backward()
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key])
    assert all(p.grad is None for p in net.parameters())
    assert not prepared(twin)


@pytest.mark.parametrize("normalize", [torch_spectral_norm, gnfast.spectral_norm], ids=["PyTorch's", "gnfast's"])
def test_pickling_raises_as_pytorchs(normalize):
    import pickle

    with pytest.raises(RuntimeError, match="only supported through state_dict"):
        pickle.dumps(normalize(nn.Linear(3, 3)))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_remove(training):
    net, (x, y) = normalized_net(coeff=0.5).train(training), batch()
    parameters = dict(net.named_parameters())
    wanted = copy.deepcopy(net).eval()(x, y)
    assert gnfast.remove_spectral_norm(net) is net
    assert type(net.conv) is nn.Conv2d
    assert set(net.state_dict()) == set(Net().state_dict())
    assert net.conv.weight is parameters["conv.parametrizations.weight.original"]
    assert isinstance(net.conv.weight, nn.Parameter)
    assert net.conv.weight.requires_grad
    assert_equal(net(x, y), wanted)
    assert not net._forward_pre_hooks
    assert not net._forward_hooks
    assert not net._forward_hooks_always_called
    assert not net.conv._load_state_dict_pre_hooks
    gnfast.spectral_norm_(net)
    with pytest.raises(InputError, match="'bias' was not found in Net"):
        gnfast.remove_spectral_norm(net, "bias")


def test_spectral_values():
    net = normalized_net(filter=lambda name, layer: name != "head")
    for _ in range(500):
        net(*batch())
        net.twice.weight
    before = copy.deepcopy(net.state_dict())
    sigmas, values = gnfast.spectral_values(net), gnfast.spectral_values(net, all_values=True)
    assert set(sigmas) == {f"{name}.weight" for name, layer in net.named_children()}
    assert set(values) == set(sigmas)
    for name, layer in net.named_children():
        weight = layer.weight if name == "head" else layer.parametrizations.weight.original
        matrix = (weight.transpose(0, 1) if name == "up" else weight).flatten(1)
        expected = torch.linalg.svdvals(matrix)
        assert_equal(values[f"{name}.weight"], expected)
        assert sigmas[f"{name}.weight"].shape == ()
        assert_equal(sigmas[f"{name}.weight"], expected[0], 1e-6)
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key])
    linear = gnfast.spectral_norm(nn.Linear(3, 2))
    assert list(gnfast.spectral_values(linear)) == ["weight"]
    assert list(gnfast.spectral_values(torch_spectral_norm(nn.Linear(3, 2), "bias"))) == ["bias", "weight"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_low_precision(dtype):
    """At most twice the error of PyTorch's own at the same precision, against double."""
    torch.manual_seed(0)
    layer = nn.Conv2d(40, 50, 3)
    errors = {}
    for normalize in (torch_spectral_norm, gnfast.spectral_norm):
        net, exact = copy.deepcopy(layer).to(dtype), copy.deepcopy(layer).to(dtype).double()
        normalize(net)
        torch_spectral_norm(exact)
        exact.load_state_dict(net.state_dict())
        direction = torch.randn(layer.weight.shape).to(dtype)
        results = []
        for each in (net, exact):
            weight = each.weight
            (weight * direction).sum().backward()
            results.append((weight.detach(), each.parametrizations.weight.original.grad))
        errors[normalize] = [(a.double() - b).norm() / b.norm() for a, b in zip(*results, strict=True)]
    for ours, theirs in zip(errors[gnfast.spectral_norm], errors[torch_spectral_norm], strict=True):
        assert ours <= 2 * theirs + torch.finfo(dtype).eps


def test_autocast_keeps_float32():
    torch.manual_seed(0)
    net = gnfast.spectral_norm_(nn.Sequential(nn.Linear(30, 20), nn.Linear(20, 1)))
    twin = copy.deepcopy(net)
    x = torch.randn(4, 30)
    with torch.autocast("cpu", torch.bfloat16):
        out = net(x)
        assert out.dtype == torch.bfloat16
        assert net[0].weight.dtype == torch.float32
    out.float().sum().backward()
    twin(x)
    twin[0].weight
    assert_same_state(net, twin, 1e-6)


@pytest.mark.parametrize("whole", [False, True], ids=["per layer", "model"])
def test_four_passes(whole):
    """A spectrally normalised critic through gnfast's engine: each weight read once, gradients through σ."""
    torch.manual_seed(0)
    _, critic = models.build("dcgan", resolution=32, width=0.2)
    critic = critic.double()
    if whole:
        gnfast.spectral_norm_(critic)
    else:
        for layer in critic.modules():
            if isinstance(layer, LAYERS):
                gnfast.spectral_norm(layer)
    oracle = copy.deepcopy(critic)
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    for _ in range(2):
        seen = []
        for net, options in ((oracle, {"impl": "reference"}), (critic, {"strict": True})):
            net.zero_grad()
            out = gnfast.normalize_gradient(net, x, **options)
            out.square().sum().backward()
            seen.append([out.detach(), *(p.grad for p in net.parameters())])
        for wanted, got in zip(*seen, strict=True):
            assert_equal(got, wanted, 1e-10)
        assert_same_state(critic, oracle, 1e-10)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("whole", [False, True], ids=["per layer", "model"])
def test_compiles_without_graph_breaks(whole, training):
    torch._dynamo.reset()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 1)).train(training)
    if whole:
        gnfast.spectral_norm_(net)
    else:
        gnfast.spectral_norm(net[0])
        gnfast.spectral_norm(net[3])
    eager, x = copy.deepcopy(net), torch.randn(2, 3, 4, 4)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    for _ in range(3):
        assert_equal(compiled(x), eager(x), 1e-5)
        compiled(x).sum().backward()
        eager(x).sum().backward()
        for got, wanted in zip(net.parameters(), eager.parameters(), strict=True):
            assert_equal(got.grad, wanted.grad, 1e-5)
        assert_same_state(net, eager, 1e-5)


def test_torch_func():
    layer = gnfast.spectral_norm(nn.Linear(4, 3).double()).eval()
    expected = torch_spectral_norm(nn.Linear(4, 3).double()).eval()
    expected.load_state_dict(layer.state_dict())
    x = torch.randn(5, 4, dtype=torch.float64)
    results = []
    for net in (layer, expected):

        def loss(parameters, x, net=net):
            return torch.func.functional_call(net, parameters, (x,)).square().sum()

        parameters = {name: p.detach() for name, p in net.named_parameters()}
        results.append(torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x))
    for name, wanted in results[1].items():
        assert_equal(results[0][name], wanted)


def test_functional_call_reads_the_weights_it_is_given():
    net, (x, y) = normalized_net().eval(), batch()
    parameters = {name: 2 * p.detach() + 1 for name, p in net.named_parameters()}
    twin = normalized_net().eval()
    twin.load_state_dict({**net.state_dict(), **parameters})
    assert_equal(torch.func.functional_call(net, parameters, (x, y)), twin(x, y))
    net.train()
    assert_equal(torch.func.functional_call(net, parameters, (x, y)), twin.train()(x, y))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("value", [0.0, float("nan")], ids=["zero", "NaN"])
def test_degenerate_weights_as_pytorchs(value, training):
    results = []
    for normalize in (torch_spectral_norm, gnfast.spectral_norm):
        torch.manual_seed(0)
        layer = normalize(nn.Linear(4, 3)).train(training)
        with torch.no_grad():
            layer.parametrizations.weight.original.fill_(value)
        weight = layer.weight
        weight.sum().backward()
        norm = layer.parametrizations.weight[0]
        results.append((weight.detach(), layer.parametrizations.weight.original.grad, norm._u, norm._v))
    for wanted, got in zip(*results, strict=True):
        assert_equal(got, wanted, 1e-6)


@pytest.mark.parametrize("normalize", [torch_spectral_norm, gnfast.spectral_norm], ids=["PyTorch's", "gnfast's"])
def test_errors_that_are_pytorchs(normalize):
    with pytest.raises(IndexError, match="Dimension out of range"):
        normalize(nn.Linear(3, 3), dim=2)
    with pytest.raises(ValueError, match="n_power_iterations to be positive"):
        normalize(nn.Linear(3, 3), n_power_iterations=0)
    with pytest.raises(ValueError, match="no parameter or buffer"):
        normalize(nn.ReLU())


def test_clear_errors():
    integer = nn.Module()
    integer.register_buffer("weight", torch.ones(3, 3, dtype=torch.int64))
    with pytest.raises(InputError, match=r"'weight' is torch\.int64, wanted a floating-point"):
        gnfast.spectral_norm(integer)
    with pytest.raises(InputError, match="has no values yet"):
        gnfast.spectral_norm(nn.LazyLinear(3))
    for first in (torch_spectral_norm, gnfast.spectral_norm):
        with pytest.raises(InputError, match="'weight' is spectrally normalised already"):
            gnfast.spectral_norm(first(nn.Linear(3, 3)))
    for coeff in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(InputError, match="coeff: got"):
            gnfast.spectral_norm(nn.Linear(3, 3), coeff=coeff)
    net = nn.Sequential(nn.Linear(3, 3), gnfast.spectral_norm(nn.Linear(3, 3)))
    with pytest.raises(InputError, match="1: 'weight' is spectrally normalised already"):
        gnfast.spectral_norm_(net)
    assert type(net[0]) is nn.Linear
    with pytest.raises(InputError, match="Sequential has no convolution, linear or embedding to normalise"):
        gnfast.spectral_norm_(nn.Sequential(nn.ReLU()))
    with pytest.raises(InputError, match="that filter accepts"):
        gnfast.spectral_norm_(Net(), filter=lambda name, layer: False)
    weight_normed = nn.utils.parametrizations.weight_norm(gnfast.spectral_norm(nn.Linear(3, 3)), "bias", dim=None)
    gnfast.remove_spectral_norm(weight_normed)
    with pytest.raises(InputError, match=r"was not found in Linear"):
        gnfast.remove_spectral_norm(nn.Linear(3, 3))


def test_sparse_gradients():
    results = []
    for normalize in (torch_spectral_norm, gnfast.spectral_norm):
        torch.manual_seed(0)
        layer = normalize(nn.Embedding(5, 3, sparse=True).double())
        layer(torch.tensor([1, 3, 1])).sin().sum().backward()
        results.append(layer.parametrizations.weight.original.grad.to_dense())
    assert_equal(*results)


@pytest.mark.parametrize("use_reentrant", [True, False], ids=["reentrant", "non-reentrant"])
def test_checkpointed_layers(use_reentrant):
    """What is computed again in backward iterates again, as PyTorch's does."""

    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(3, 3).double(), nn.Linear(3, 3).double()

        def forward(self, x):
            return checkpoint(lambda h: self.second(self.first(h).relu()), x, use_reentrant=use_reentrant)

    results = []
    for whole in (False, True):
        torch.manual_seed(0)
        net = Checkpointed()
        if whole:
            gnfast.spectral_norm_(net)
        else:
            torch_spectral_norm(net.first)
            torch_spectral_norm(net.second)
        for step in range(3):
            torch.manual_seed(step)
            net(torch.randn(2, 3, dtype=torch.float64, requires_grad=True)).sin().sum().backward()
        results.append(dict(net.named_parameters()) | dict(net.named_buffers()))
        results.append({name: p.grad for name, p in net.named_parameters()})
    for wanted, got in zip(results[:2], results[2:], strict=True):
        for name in wanted:
            assert_equal(got[name], wanted[name])


def test_meta_device_and_inference_mode(monkeypatch):
    with monkeypatch.context() as patched, torch.device("meta"):
        # Published checkpoints are recognised by networks made there for their shapes alone: nothing is iterated.
        patched.setattr(SpectralNorm.__base__, "_power_method", None)
        net = gnfast.spectral_norm_(nn.Sequential(nn.Linear(3, 2)))
    assert net(torch.ones(1, 3, device="meta")).shape == (1, 2)
    net, (x, y) = normalized_net(), batch()
    with torch.inference_mode():
        assert iterated(net.conv, lambda: net(x, y))
    net(x, y).sum().backward()


# On a GPU.


@pytest.mark.gpu
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_model_trains_as_pytorchs_on_gpu(layout):
    nets = [net.cuda().to(memory_format=layout) for net in (torch_net(), normalized_net())]
    optimizers = [torch.optim.SGD(net.parameters(), 1e-2, momentum=0.9) for net in nets]
    for step in range(100):
        x, y = (t.cuda() for t in batch(step))
        for net, optimizer in zip(nets, optimizers, strict=True):
            optimizer.zero_grad()
            ((1 - net(x, y)).relu() + (1 + net(x.flip(0), y)).relu()).mean().backward()
            optimizer.step()
    wanted, got = (net.state_dict() for net in nets)
    for key in wanted:
        if "unused" not in key:
            assert_equal(got[key], wanted[key], 1e-10)


def launches(function) -> int:
    """Kernels that a call starts on the GPU."""
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        function()
        torch.cuda.synchronize()
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profiled.events())


@pytest.mark.gpu
def test_two_launches_each_way():
    net = gnfast.spectral_norm_(nn.Sequential(*(nn.Conv2d(8, 8, 3, padding=1) for _ in range(10)))).cuda()
    net.forward = lambda: [layer.weight for layer in net]
    directions = [torch.randn_like(weight) for weight in net()]
    assert launches(lambda: net()) <= 2
    weights = net()
    originals = [layer.parametrizations.weight.original for layer in net]
    assert launches(lambda: torch.autograd.grad(weights, originals, directions)) <= 2


@pytest.mark.gpu
def test_captures_in_a_cuda_graph():
    """A replayed step continues as eager steps do."""
    net = normalized_net().float().cuda()
    x, y = (t.cuda() for t in batch())
    x = x.float()

    def step():
        net.zero_grad(set_to_none=False)
        net(x, y).sum().backward()

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    twin = copy.deepcopy(net)
    twin_x, twin_y = x.clone(), y.clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        step()
    for _ in range(3):
        graph.replay()
        twin.zero_grad()
        twin(twin_x, twin_y).sum().backward()
    assert_same_state(net, twin, 1e-5)
    for p, q in zip(net.parameters(), twin.parameters(), strict=True):
        if q.grad is not None:
            assert_equal(p.grad, q.grad, 1e-4)
