"""Spectral normalisation against `torch.nn.utils.parametrizations.spectral_norm`: values, gradients, state, habits."""

import copy
import gc
import pickle
import weakref
from functools import partial, reduce
from unittest import mock

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
from gnfast.kernels.spectral.plain import as_matrix
from gnfast.spectral import LAYERS, SpectralNorm
from tests.engine.test_engine import Called, normal
from tests.oracle import assert_same, outputs_and_gradients

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


def normalized(net: nn.Module, normalize=None, *given, **options) -> nn.Module:
    """The net with its layers normalised one by one, or all at once by gnfast; u and v are drawn from one seed."""
    torch.manual_seed(1)
    if normalize is None:
        return gnfast.spectral_norm_(net, *given, **options)
    for layer in [net] if given else [layer for layer in net.modules() if isinstance(layer, LAYERS)]:
        normalize(layer, *given, **options)
    return net


def twins(net: nn.Module, normalize=None, *given, **options) -> tuple[nn.Module, nn.Module]:
    """The same normalised by PyTorch, and by gnfast."""
    ways = (torch_spectral_norm, normalize)
    expected, actual = (normalized(copy.deepcopy(net), way, *given, **options) for way in ways)
    return expected, actual


PER_LAYER_AND_MODEL = pytest.mark.parametrize("normalize", [gnfast.spectral_norm, None], ids=["per layer", "model"])
BOTH = pytest.mark.parametrize("normalize", [torch_spectral_norm, gnfast.spectral_norm], ids=["PyTorch's", "gnfast's"])


def assert_equal(actual: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance, equal_nan=True)


def assert_same_state(actual: nn.Module, expected: nn.Module, tolerance: float = 1e-12, besides: str = "-") -> None:
    """The same keys in the same order, and the same values but where the key has `besides` in it."""
    state, wanted = actual.state_dict(), expected.state_dict()
    assert list(state) == list(wanted)
    for key, value in wanted.items():
        if besides not in key:
            assert_equal(state[key], value, tolerance)


def assert_alike(pair: tuple[nn.Module, nn.Module], run, tolerance: float = 1e-12) -> None:
    """That `run` returns the same tensors, in the same layout, for both; their states, but for layers not used, too."""
    wanted, got = ([tensor.detach().clone() for tensor in run(net)] for net in pair)
    for left, right in zip(got, wanted, strict=True):
        assert left.stride() == right.stride()
        assert_equal(left, right, tolerance)
    assert_same_state(*reversed(pair), tolerance, besides="unused")


def assert_train_alike(pair: tuple[nn.Module, nn.Module], forward, rate: float, momentum: float = 0.5) -> None:
    """`forward(net, step)` gives a loss and what else is compared, through 100 steps with gradients and weights."""
    optimizers = {net: torch.optim.SGD(net.parameters(), rate, momentum=momentum) for net in pair}

    def update(step, net):
        optimizers[net].zero_grad()
        loss, *outputs = forward(net, step)
        loss.backward()
        optimizers[net].step()
        return [*outputs, *(p.grad for p in net.parameters() if p.grad is not None)]

    assert_same_state(*reversed(pair))
    for step in range(100):
        assert_alike(pair, partial(update, step), 1e-10)


@pytest.mark.parametrize("name", CASES)
def test_layer_trains_as_pytorchs(name):
    """Two reads before each backward, and evaluation in between."""
    layer, parameter, options = CASES[name]()
    layer = layer if getattr(layer, parameter).is_complex() else layer.double()
    nn.init.normal_(getattr(layer, parameter))
    shape, dtype = getattr(layer, parameter).shape, getattr(layer, parameter).dtype

    def forward(layer, step):
        torch.manual_seed(step)
        directions = torch.randn(2, *shape, dtype=dtype)
        first, second = getattr(layer, parameter), getattr(layer, parameter)
        evaluated = getattr(layer.eval(), parameter)
        layer.train()
        loss = ((first * directions[0]).sum() - (second * directions[1]).sum().sin()).abs()
        return loss, first, second, evaluated

    assert_train_alike(twins(layer, gnfast.spectral_norm, parameter, **options), forward, 0.05)


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
    """Ten random layers, as a whole model."""
    generator = torch.Generator().manual_seed(seed)
    pair = twins(nn.ModuleList(random_layer(generator) for _ in range(10)).double())
    for net in pair:
        net.forward = lambda net=net: [layer.weight for layer in net]

    def forward(net, step):
        torch.manual_seed(step)
        weights = net()
        return sum((weight * torch.randn_like(weight)).sum().sin() for weight in weights), *weights

    assert_train_alike(pair, forward, 0.02)


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


def make_net(normalize=None, **options) -> Net:
    torch.manual_seed(0)
    return normalized(Net().double(), normalize, **options)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_model_trains_as_pytorchs(layout, device):
    """A GAN's critic steps, two forwards before each backward; all but the unused layer's u and v."""
    expected, actual = (make_net(way).to(device, memory_format=layout) for way in (torch_spectral_norm, None))

    def forward(net, step):
        x, y = (t.to(device) for t in batch(step))
        real, fake = net(x, y), net(x.flip(0), y)
        return ((1 - real).relu() + (1 + fake).relu()).mean(), real, fake

    assert_train_alike((expected, actual), forward, 1e-2, 0.9)
    assert actual.unused.parametrizations.weight.original.grad is None
    assert not torch.equal(*(net.unused.parametrizations.weight[0]._v for net in (actual, expected)))


@pytest.mark.parametrize("dtypes", [[torch.float32] * 10, [torch.float32, torch.float64, torch.float32]], ids=len)
def test_one_call_for_all_layers_of_a_dtype(dtypes, monkeypatch):
    net = Called(
        lambda net, x: reduce(lambda h, layer: layer(h.to(layer.bias.dtype)), net.layers, x),
        layers=nn.ModuleList(nn.Linear(4, 4, dtype=dtype) for dtype in dtypes),
    )
    gnfast.spectral_norm_(net)
    kernels = implementation("spectral", "cpu")
    calls = {name: mock.Mock(wraps=getattr(kernels, name)) for name in ("iterate", "scale", "backward")}
    for name, call in calls.items():
        monkeypatch.setattr(kernels, name, call)
    net(torch.randn(2, 4)).sum().backward()
    assert {call.call_count for call in calls.values()} == {len(set(dtypes))}
    assert all(p.grad is not None for p in net.parameters())


def iterated(layer: nn.Module, read) -> bool:
    """Whether `read()` changed the layer's v."""
    before = layer.parametrizations.weight[0]._v.clone()
    read()
    return not torch.equal(before, layer.parametrizations.weight[0]._v)


@PER_LAYER_AND_MODEL
def test_when_it_iterates(normalize):
    net, (x, y) = make_net(normalize), batch()
    assert iterated(net.conv, lambda: net(x, y))
    assert iterated(net.conv, lambda: net.conv.weight)
    assert iterated(net.conv, lambda: net.conv(x))
    assert iterated(net.unused, lambda: net(x, y)) == (normalize is None)
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
    x, y = batch()

    def run(net):
        with parametrize.cached():
            out = net(x, y) + net(x + 1, y)
            out.sum().backward()
        return out, net.conv.parametrizations.weight.original.grad, net.twice.weight

    assert_alike((make_net(torch_spectral_norm), make_net()), run)


def test_training_with_frozen_weights():
    net, (x, y) = make_net().requires_grad_(False), batch()
    x.requires_grad_()
    net(x, y).sum().backward()
    assert x.grad is not None
    assert iterated(net.conv, lambda: net(x, y))


def test_no_grad_and_grad_forwards():
    x, y = batch()

    def run(net):
        with torch.no_grad():
            first, weight = net(x, y), net.conv.weight
        second = net(x, y)
        second.sum().backward()
        assert not weight.requires_grad
        return first, second, net.conv.parametrizations.weight.original.grad

    assert_alike((make_net(torch_spectral_norm), make_net()), run)


def test_gradients_enabled_inside_a_forward_without():
    """The W̄ that was prepared carries no gradient; the layer's own does, and u and v advance once."""
    net, x = Called(lambda net, x: torch.enable_grad()(net.layer)(x), layer=nn.Linear(4, 3)).double(), normal(2, 4)

    def run(net):
        out = torch.no_grad()(net)(x)
        out.sin().sum().backward()
        return out, net.layer.parametrizations.weight.original.grad

    assert_alike(twins(net), run)


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


def switching(switch) -> nn.Module:
    """Switches modes within its forward: `switch(net)` before the second of its two layers."""

    def forward(net, x):
        h = net.first(x).sin()
        switch(net)
        return net.second(net.first(h))

    return Called(forward, first=nn.Linear(4, 4), second=nn.Linear(4, 3)).double()


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
    pair, x = twins(switching(switch)), normal(2, 4)
    for _ in range(3):
        assert_alike(pair, lambda net: [net.train(training)(x)])


@pytest.mark.parametrize("switch", [nn.Module.eval, lambda net: net.second.eval()], ids=["all", "one"])
def test_eval_within_a_forward_is_refused(switch):
    """The layer has iterated by then, and would divide by another σ than PyTorch's."""
    net, x = gnfast.spectral_norm_(switching(switch)), normal(2, 4)
    with pytest.raises(
        UnsupportedError, match="spectral_norm_: second was switched to eval mode in the forward of Called"
    ):
        net(x)
    assert not prepared(net)
    assert not iterated(net.second, lambda: net.second.eval()(x))


def prepared(net: nn.Module) -> list[nn.Module]:
    return [m for m in net.modules() if getattr(m, "prepared", None) is not None]


def test_nothing_stays_behind():
    """No W̄ outlives a forward: not the unused ones, and none after an exception."""
    net, (x, y) = make_net(), batch()
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
    net, (x, y) = make_net(), batch()

    def interrupt(*_):
        raise KeyboardInterrupt

    handle = net.hidden.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        net(x, y)
    handle.remove()
    with torch.no_grad():
        net.head.parametrizations.weight.original.add_(1)
    fresh = make_net()
    fresh.load_state_dict(net.state_dict())
    assert prepared(net)
    after = follow(net)
    assert_equal(after(x, y), fresh.train(after.training)(x, y))


def test_nested_models():
    """A model inside a normalised model, normalised on its own as well, iterates once per forward."""
    inner = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    outer, x = nn.Sequential(inner, nn.Linear(4, 1)).double(), normal(2, 4)
    expected = normalized(copy.deepcopy(outer), torch_spectral_norm)
    normalized(inner)
    gnfast.spectral_norm_(outer, filter=lambda name, layer: not parametrize.is_parametrized(layer))
    for step in range(3):
        assert_alike((expected, outer), lambda net, x=x + step: [net(x)])
    assert_alike((expected, outer), lambda net: [net[0](x)])
    assert not prepared(outer)


def test_coeff_scales():
    plain, scaled = make_net(), make_net(coeff=0.3)
    assert_equal(scaled.conv.weight, 0.3 * plain.conv.weight)
    assert not any("coeff" in key for key in scaled.state_dict())
    one_dimensional = gnfast.spectral_norm(nn.LayerNorm(4), coeff=2.0)
    assert_equal(one_dimensional.weight.norm(), torch.tensor(2.0), 1e-6)


@PER_LAYER_AND_MODEL
def test_learned_scale(normalize):
    net, (x, y) = make_net(normalize, learn_scale=True, coeff=0.5), batch()
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


def converged(layer: nn.Module, **options) -> nn.Module:
    """A layer in float64 whose u and v are its singular vectors to rounding."""
    gnfast.spectral_norm(layer.double(), n_power_iterations=300, **options)
    assert layer.weight.isfinite().all(), "a read iterates"
    return layer.eval()


@pytest.mark.parametrize("share", [0.26, 1.0])
@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Conv2d(3, 10, 3),
        lambda: nn.ConvTranspose2d(2, 9, 3),
        lambda: nn.Linear(5, 1),
        lambda: nn.Linear(4, 4),
    ],
    ids=["convolution", "transposed", "one row", "square"],
)
def test_stable_rank_is_limited_as_by_singular_values(make, share):
    layer = converged(make(), coeff=0.7, learn_scale=True, stable_rank=share)
    raw, norm = layer.parametrizations.weight.original, layer.parametrizations.weight[0]
    norm.gamma.data.fill_(3.0)
    matrix = as_matrix(raw, norm.dim).detach().requires_grad_()
    left, values, right = torch.linalg.svd(matrix.detach(), full_matrices=False)
    applied = values / values[0]
    rank = max(1.0, share * len(values))  # A weight of one row is left alone.
    factor = min(1.0, ((rank - 1) / applied[1:].square().sum()).sqrt().item()) if len(values) > 1 else 1.0
    assert (factor < 1) == (len(values) > 1 and share < 0.5), "both cases are met"
    applied[1:] *= factor
    expected = 3 * 0.7 * (left * applied) @ right
    assert_equal(as_matrix(layer.weight, norm.dim), expected, 1e-10)
    assert applied.square().sum() <= rank + 1e-10
    # The gradient, with u, v and the factor constant.
    u, v = left[:, 0], right[0]
    unit = matrix / (u @ matrix @ v)
    first = (u @ unit @ v) * torch.outer(u, v)
    upstream = normal(*matrix.shape)
    (3 * 0.7 * (first + factor * (unit - first)) * upstream).sum().backward()
    (as_matrix(layer.weight, norm.dim) * upstream).sum().backward()
    assert_equal(as_matrix(raw.grad, norm.dim), matrix.grad, 1e-10)


@PER_LAYER_AND_MODEL
def test_stable_rank_under_four_passes(normalize):
    torch.manual_seed(0)
    critic = normalized(models.build("dcgan", resolution=32, width=0.2)[1].double(), normalize, stable_rank=0.2)
    oracle, x = copy.deepcopy(critic), normal(2, 3, 32, 32)
    for _ in range(2):
        actual = outputs_and_gradients(gnfast.normalize_gradient, critic, x, strict=True)
        assert_same(actual, outputs_and_gradients(gnfast.normalize_gradient, oracle, x, impl="reference"))
        assert_same_state(critic, oracle, 1e-10)


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
    net, (x, y) = make_net(), batch()
    out = net(x, y)
    with torch.no_grad():
        net.conv.parametrizations.weight.original.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


@pytest.mark.parametrize(
    ("saved", "loads"),
    [
        (torch_spectral_norm, None),
        (None, torch_spectral_norm),
        (legacy_spectral_norm, gnfast.spectral_norm),
        (legacy_spectral_norm, None),
    ],
    ids=["PyTorch's", "to PyTorch", "legacy, per layer", "legacy, model"],
)
def test_checkpoints(saved, loads):
    trained, net, (x, y) = make_net(saved), make_net(loads), batch()
    for _ in range(3):
        trained(x, y)
    state = trained.state_dict()
    assert ("conv.weight_orig" in state) == (saved is legacy_spectral_norm)
    net.load_state_dict(state)
    assert_equal(net.eval()(x, y), trained.eval()(x, y))


def test_other_shapes_do_not_load():
    state = make_net().state_dict()
    net = Net().double()
    net.conv = nn.Conv2d(4, 7, 3).double()
    gnfast.spectral_norm_(net)
    with pytest.raises(RuntimeError, match=r"size mismatch for conv\.parametrizations\.weight\.0\._v"):
        net.load_state_dict(state)


def test_deepcopy_is_independent():
    net, (x, y) = make_net(), batch()
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


@BOTH
def test_pickling_raises_as_pytorchs(normalize):
    with pytest.raises(RuntimeError, match="only supported through state_dict"):
        pickle.dumps(normalize(nn.Linear(3, 3)))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_remove(training):
    net, (x, y) = make_net(coeff=0.5).train(training), batch()
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
    net = make_net(filter=lambda name, layer: name != "head")
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


@PER_LAYER_AND_MODEL
def test_four_passes(normalize):
    """A spectrally normalised critic through gnfast's engine: each weight read once, gradients through σ."""
    torch.manual_seed(0)
    critic = normalized(models.build("dcgan", resolution=32, width=0.2)[1].double(), normalize)
    oracle, x = copy.deepcopy(critic), normal(2, 3, 32, 32)
    for _ in range(2):
        actual = outputs_and_gradients(gnfast.normalize_gradient, critic, x, strict=True)
        assert_same(actual, outputs_and_gradients(gnfast.normalize_gradient, oracle, x, impl="reference"))
        assert_same_state(critic, oracle, 1e-10)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@PER_LAYER_AND_MODEL
def test_compiles_without_graph_breaks(normalize, training):
    torch._dynamo.reset()
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 1))
    net = normalized(net, normalize).train(training)
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
    x = normal(5, 4)

    def run(net):
        net.eval()

        def loss(parameters, x):
            return torch.func.functional_call(net, parameters, (x,)).square().sum()

        parameters = {name: p.detach() for name, p in net.named_parameters()}
        return torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x).values()

    assert_alike(twins(nn.Linear(4, 3).double(), gnfast.spectral_norm), run)


def test_functional_call_reads_the_weights_it_is_given():
    net, (x, y) = make_net().eval(), batch()
    parameters = {name: 2 * p.detach() + 1 for name, p in net.named_parameters()}
    twin = make_net().eval()
    twin.load_state_dict({**net.state_dict(), **parameters})
    assert_equal(torch.func.functional_call(net, parameters, (x, y)), twin(x, y))
    net.train()
    assert_equal(torch.func.functional_call(net, parameters, (x, y)), twin.train()(x, y))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("value", [0.0, float("nan")], ids=["zero", "NaN"])
def test_degenerate_weights_as_pytorchs(value, training):
    def run(layer):
        original = layer.train(training).parametrizations.weight.original
        with torch.no_grad():
            original.fill_(value)
        weight = layer.weight
        weight.sum().backward()
        return weight, original.grad

    assert_alike(twins(nn.Linear(4, 3), gnfast.spectral_norm), run, 1e-6)


@BOTH
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
    half_done = nn.Sequential(nn.Linear(3, 3), gnfast.spectral_norm(nn.Linear(3, 3)))
    older = nn.Sequential(nn.utils.spectral_norm(nn.Linear(3, 3)))
    one, model, remove = gnfast.spectral_norm, gnfast.spectral_norm_, gnfast.remove_spectral_norm
    for function, net, options, message in (
        (one, integer, {}, r"'weight' is torch\.int64, wanted a floating-point"),
        (one, nn.LazyLinear(3), {}, "has no values yet"),
        (one, torch_spectral_norm(nn.Linear(3, 3)), {}, "'weight' is spectrally normalised already"),
        (one, gnfast.spectral_norm(nn.Linear(3, 3)), {}, "'weight' is spectrally normalised already"),
        *((one, nn.Linear(3, 3), {"coeff": coeff}, "coeff: got") for coeff in (0.0, -1.0, float("inf"), float("nan"))),
        *((one, nn.Linear(3, 3), {"stable_rank": share}, "stable_rank: got") for share in (-0.1, float("nan"))),
        (one, nn.Linear(3, 3, dtype=torch.complex64), {"stable_rank": 0.5}, "wanted 0 or, for real weights"),
        (
            model,
            nn.Sequential(nn.Linear(3, 3)),
            {"stable_rank": 0.3},
            "got 0.3 for 0 'weight' of rank 3, wanted over 1/3",
        ),
        (model, half_done, {}, "1: 'weight' is spectrally normalised already"),
        (
            model,
            older,
            {},
            "0: 'weight' is computed by torch.nn.utils.spectral_norm.SpectralNorm; build the network without",
        ),
        (model, torch.zeros(3, 3), {}, "model: got a Tensor, wanted a torch.nn.Module"),
        (model, nn.Sequential(nn.ReLU()), {}, "Sequential has no convolution, linear or embedding to normalise"),
        (model, Net(), {"filter": lambda name, layer: False}, "that filter accepts"),
        (remove, nn.Linear(3, 3), {}, "was not found in Linear"),
    ):
        with pytest.raises(InputError, match=message):
            function(net, **options)
    assert type(half_done[0]) is nn.Linear
    weight_normed = nn.utils.parametrizations.weight_norm(gnfast.spectral_norm(nn.Linear(3, 3)), "bias", dim=None)
    gnfast.remove_spectral_norm(weight_normed)


def test_sparse_gradients():
    def run(layer):
        layer(torch.tensor([1, 3, 1])).sin().sum().backward()
        return [layer.parametrizations.weight.original.grad.to_dense()]

    assert_alike(twins(nn.Embedding(5, 3, sparse=True).double(), gnfast.spectral_norm), run)


@pytest.mark.parametrize("use_reentrant", [True, False], ids=["reentrant", "non-reentrant"])
def test_checkpointed_layers(use_reentrant):
    """What is computed again in backward iterates again, as PyTorch's does."""

    def forward(net, x):
        return checkpoint(lambda h: net.second(net.first(h).relu()), x, use_reentrant=use_reentrant)

    def run(net):
        torch.manual_seed(0)
        for _ in range(3):
            net(normal(2, 3).requires_grad_()).sin().sum().backward()
        return [p.grad for p in net.parameters()]

    assert_alike(twins(Called(forward, first=nn.Linear(3, 3), second=nn.Linear(3, 3)).double()), run)


def test_meta_device_and_inference_mode(monkeypatch):
    with monkeypatch.context() as patched, torch.device("meta"):
        # Published checkpoints are recognised by networks made there for their shapes alone: nothing is iterated.
        patched.setattr(SpectralNorm.__base__, "_power_method", None)
        net = gnfast.spectral_norm_(nn.Sequential(nn.Linear(3, 2)))
    assert net(torch.ones(1, 3, device="meta")).shape == (1, 2)
    net, (x, y) = make_net(), batch()
    with torch.inference_mode():
        assert iterated(net.conv, lambda: net(x, y))
    net(x, y).sum().backward()


# On a GPU.


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
    net = make_net().float().cuda()
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
