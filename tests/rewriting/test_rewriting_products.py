"""Winograd convolutions in rewritten modules: values and derivatives of every order against PyTorch's in float64."""

import copy
import gc
import weakref

import pytest
import torch
import torch._dynamo.compiled_autograd
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.utils.parametrizations import spectral_norm

import gnfast
from gnfast import models
from gnfast.kernels import winograd
from gnfast.rewriting import calls
from gnfast.rewriting import winograd as products
from tests.kernels.test_winograd import ENABLED, Called
from tests.oracle import loss_of

NHWC = torch.channels_last
FORWARD, INPUT_GRAD, WEIGHT_GRAD = (f"winograd_conv2d{name}" for name in ("", "_input_grad", "_weight_grad"))

# The operators of the forward, of the input's gradient and of the weight's.
CONV, TRANSPOSED = (FORWARD, INPUT_GRAD, WEIGHT_GRAD), (INPUT_GRAD, FORWARD, WEIGHT_GRAD)
LAYERS = {
    "conv 3x3": (lambda i, o, **k: nn.Conv2d(i, o, 3, padding=1, **k), CONV),
    "conv 3x3, padding 0": (lambda i, o, **k: nn.Conv2d(i, o, 3, **k), CONV),
    "conv 4x4 stride 2": (lambda i, o, **k: nn.Conv2d(i, o, 4, 2, 1, **k), CONV),
    "conv 4x4": (lambda i, o, **k: nn.Conv2d(i, o, 4, padding=2, **k), CONV),
    "transposed 3x3": (lambda i, o, **k: nn.ConvTranspose2d(i, o, 3, 1, 1, **k), TRANSPOSED),
    "transposed 4x4 stride 2": (lambda i, o, **k: nn.ConvTranspose2d(i, o, 4, 2, 1, **k), TRANSPOSED),
    "transposed 4x4": (lambda i, o, **k: nn.ConvTranspose2d(i, o, 4, 1, 1, **k), TRANSPOSED),
    "transposed, output padding": (lambda i, o, **k: nn.ConvTranspose2d(i, o, 4, 2, 2, 1, **k), TRANSPOSED),
    "upsampling and 3x3": (
        lambda i, o, **k: nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(i, o, 3, padding=1, **k)),
        TRANSPOSED,
    ),
    "3x3 and pooling": (lambda i, o, **k: nn.Sequential(nn.Conv2d(i, o, 3, padding=1, **k), nn.AvgPool2d(2)), CONV),
}


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return ((actual.double() - expected).norm() / expected.norm()).item()


def gradients(module, x, order=1):
    """The output, and what the derivatives of loss after loss give for x and the parameters."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    wanted = [x, *module.parameters()]
    found = [module(x)]
    last = found
    for k in range(order):
        grads = torch.autograd.grad(loss_of(*last), wanted, create_graph=k + 1 < order)
        found += grads
        # Derivatives grow from one to the next, and a curve as tight as they are large says nothing.
        last = [g / g.detach().norm() for g in grads]
    return [t.detach() for t in found]


def assert_within_twice_pytorchs(net, x, order=1, at_once=False):
    """Against float64; PyTorch's error is that of the net as stated or as merged, whichever is larger.

    Ten roundings are allowed: in sums as short as some here PyTorch makes hardly more than one.
    """
    truth = gradients(copy.deepcopy(net).double(), x.double(), order)
    stated = gradients(copy.deepcopy(net), x, order)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calls, "convolution", lambda *_: None)
        merged = gradients(gnfast.rewrite(copy.deepcopy(net)), x, order)
    with Called() as called:
        ours = gradients(gnfast.rewrite(copy.deepcopy(net)), x, order)
    assert called.names
    found = ours, stated, merged, truth
    if at_once:
        # Single gradients are dominated by what a chain of layers makes of one layer's rounding.
        found = ([torch.cat([t.flatten() for t in tensors])] for tensors in found)
    for a, b, c, exact in zip(*found, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        theirs = max(relative_error(b, exact), relative_error(c, exact))
        assert relative_error(a, exact) <= max(2 * theirs, 10 * torch.finfo(a.dtype).eps)


@pytest.fixture
def any_size(monkeypatch):
    """Winograd however small the problem."""
    for module in winograd, products:
        monkeypatch.setattr(module, "_MIN_POSITIONS", 0)
    monkeypatch.setattr(winograd, "_MIN_SIDE", 0)


@ENABLED
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("name", LAYERS)
def test_values_and_gradients_within_twice_pytorchs_error(name, bias):
    torch.manual_seed(0)
    make, operators = LAYERS[name]
    layer = make(96, 128, bias=bias)
    x = torch.randn(8, 96, 14, 18)
    with Called() as called:
        gradients(gnfast.rewrite(layer), x)
    assert sorted(called.names) == sorted(operators)
    assert_within_twice_pytorchs(layer, x)


@ENABLED
@pytest.mark.usefixtures("any_size")
@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("name", LAYERS)
def test_higher_derivatives(name, order):
    if order == 3 and name == "transposed, output padding":
        pytest.skip("PyTorch itself has no third derivative of it")
    torch.manual_seed(0)
    make, operators = LAYERS[name]
    layer, x = make(72, 64), torch.randn(2, 72, 7, 5)
    with Called() as called:
        gradients(gnfast.rewrite(layer), x, order)
    assert all(called.names.count(operator) >= order for operator in operators)
    assert_within_twice_pytorchs(layer, x, order)


@pytest.mark.parametrize("name", LAYERS)
def test_derivatives_numerically(name, monkeypatch):
    """The Function alone, in float64, with PyTorch's convolutions for Winograd's."""
    applied = []

    def fits(x, weight, arguments, outputs):
        is_served = (tuple(weight.shape[2:]), arguments[0]) in winograd.CASES
        applied.append(is_served)
        return is_served

    monkeypatch.setattr(products, "fits", fits)
    monkeypatch.setattr(products, "_MIN_POSITIONS", 1)
    torch.manual_seed(0)
    layer = LAYERS[name][0](2, 3).double()
    rewritten = gnfast.rewrite(layer)
    x = torch.randn(2, 2, 5, 4, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in rewritten.named_parameters()]

    def function(x, *parameters):
        return torch.func.functional_call(rewritten, dict(zip(names, parameters, strict=True)), (x,))

    given = (x, *rewritten.parameters())
    assert "_Derivative" in function(*given).grad_fn.name() and any(applied)
    assert torch.autograd.gradcheck(function, given, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(function, given)


SLICE = "slice of channels_last"


def laid_out(t: Tensor, layout: str) -> Tensor:
    if layout == "channels_last":
        return t.to(memory_format=NHWC)
    if layout == SLICE:
        return torch.cat([t, t], 1).to(memory_format=NHWC)[:, : t.shape[1]]
    return t.new_ones(()).expand(t.shape) if layout == "expanded" else t


@ENABLED
@pytest.mark.parametrize("cotangent", ["contiguous", "channels_last", "expanded"])
@pytest.mark.parametrize("weight", ["contiguous", "channels_last"])
@pytest.mark.parametrize("x", ["contiguous", "channels_last", SLICE])
@pytest.mark.parametrize("name", ["conv 3x3", "conv 4x4 stride 2", "transposed 3x3", "transposed 4x4 stride 2"])
def test_memory_formats_are_pytorchs(name, x, weight, cotangent):
    torch.manual_seed(0)
    layer = LAYERS[name][0](16, 24)
    layer.weight = nn.Parameter(laid_out(layer.weight.detach(), weight))
    x = laid_out(torch.randn(8, 16, 9, 10), x).requires_grad_()
    results = []
    for module in layer, gnfast.rewrite(layer):
        y = module(x)
        given = laid_out(torch.randn(y.shape, generator=torch.Generator().manual_seed(1)), cotangent)
        grads = torch.autograd.grad(y, [x, layer.weight], given, create_graph=True)
        module(x).backward(given)
        results.append([y, *grads, x.grad, layer.weight.grad])
        layer.weight.grad = x.grad = None
    for stated, rewritten in zip(*results, strict=True):
        assert stated.stride() == rewritten.stride()
        torch.testing.assert_close(stated, rewritten, rtol=1e-4, atol=1e-3)


# What a backward computes and keeps


@ENABLED
@pytest.mark.parametrize("needed", ["", "x", "weight", "bias", "x weight", "weight bias", "x weight bias"])
@pytest.mark.parametrize("name", ["conv 3x3", "transposed 4x4 stride 2"])
def test_only_what_is_asked_for_is_computed(name, needed):
    make, (forward, input_grad, weight_grad) = LAYERS[name]
    layer = make(16, 16)
    x = torch.randn(4, 16, 8, 8)
    tensors = {"x": x, "weight": layer.weight, "bias": layer.bias}
    for key, tensor in tensors.items():
        tensor.requires_grad_(key in needed)
    with Called() as called:
        y = gnfast.rewrite(layer)(x)
        assert y.requires_grad == bool(needed)
        if needed:
            y.square().sum().backward()
    assert [key for key, tensor in tensors.items() if tensor.grad is not None] == needed.split()
    assert called.names.count(forward) == 1
    assert called.names.count(input_grad) == ("x" in needed)
    assert called.names.count(weight_grad) == ("weight" in needed)


@ENABLED
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_a_graph_nothing_is_kept(mode):
    net = gnfast.rewrite(nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ConvTranspose2d(16, 16, 4, 2, 1)))
    x = torch.randn(4, 16, 8, 8)
    with mode(), Called() as called:
        y = net(x)
    assert called.names == [FORWARD, INPUT_GRAD]
    assert not y.requires_grad and y.grad_fn is None and y.is_inference() == (mode is torch.inference_mode)
    alive = weakref.ref(x)
    del x
    gc.collect()
    assert alive() is None


@ENABLED
def test_the_backward_frees_what_was_kept():
    layer = gnfast.rewrite(nn.ConvTranspose2d(16, 16, 4, 2, 1))
    h = torch.randn(4, 16, 8, 8) * 1
    alive = weakref.ref(h)
    y = layer(h)
    del h
    assert alive() is not None
    y.sum().backward()
    assert alive() is None
    with pytest.raises(RuntimeError, match="second time"):
        y.sum().backward()


@ENABLED
@pytest.mark.parametrize("written", ["x", "weight"])
@pytest.mark.parametrize("name", ["conv 3x3", "transposed 4x4 stride 2"])
def test_writing_in_place_before_the_backward_is_noticed(name, written):
    layer = LAYERS[name][0](16, 16)
    x = torch.randn(4, 16, 8, 8)
    for module in layer, gnfast.rewrite(layer):
        h = x.clone().requires_grad_() * 1
        y = module(h)
        with torch.no_grad():
            (h if written == "x" else layer.weight).mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


@ENABLED
def test_results_may_be_written_in_place():
    net = nn.Sequential(
        nn.ConvTranspose2d(16, 16, 4, 2, 1), nn.ReLU(True), nn.Conv2d(16, 16, 3), nn.LeakyReLU(0.1, True)
    )
    x = torch.randn(4, 16, 8, 8)
    for a, b in zip(gradients(gnfast.rewrite(net), x), gradients(net, x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


# Modules


class Twice(nn.Module):
    """h + f(h), where f holds a convolution that another module may hold as well."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, h):
        return h + self.layers(h)


def random_net(seed: int) -> nn.Module:
    """A smooth network of 64 to 96 channels: convolutions of all kinds, batch norm, branches, shared weights."""
    draw = torch.Generator().manual_seed(seed)

    def pick(*options):
        return options[int(torch.randint(len(options), (), generator=draw))]

    torch.manual_seed(seed)
    shared = nn.Conv2d(64, 64, 3, padding=1, bias=pick(True, False))
    channels, layers = 64, [nn.Conv2d(64, 64, 3, padding=1)]
    for _ in range(4):
        kind = pick("conv", "up", "transposed", "down", "pool", "norm", "shared", "branch")
        width = pick(64, 72, 96)
        if kind == "conv":
            layers.append(nn.Conv2d(channels, width, 3, padding=pick(0, 1, 2), bias=pick(True, False)))
        elif kind == "up":
            layers += [nn.Upsample(scale_factor=2), nn.Conv2d(channels, width, 3, padding=1)]
        elif kind == "transposed":
            layers.append(nn.ConvTranspose2d(channels, width, 4, 2, pick(0, 1), bias=pick(True, False)))
        elif kind == "down":
            layers.append(spectral_norm(nn.Conv2d(channels, width, 4, 2, 1)))
        elif kind == "pool":
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.AvgPool2d(2)]
        elif kind == "norm":
            layers += [nn.BatchNorm2d(channels), pick(nn.Tanh(), nn.Softplus())]
        elif channels == 64:
            layers.append(shared if kind == "shared" else Twice(nn.Softplus(), shared, nn.BatchNorm2d(64), nn.Tanh()))
        if kind not in ("norm", "shared", "branch"):
            channels = width
    net = nn.Sequential(*layers, nn.BatchNorm2d(channels), nn.Conv2d(channels, 3, 3, padding=1), nn.Tanh())
    if pick(True, False):
        net[0].requires_grad_(False)
    return net.to(memory_format=pick(NHWC, torch.contiguous_format))


def trained(module, net, x):
    """The output, every gradient, every buffer, and what hooks see of a training step."""
    x = x.detach().clone().requires_grad_()
    seen = []
    last = [m for m in net.modules() if isinstance(m, nn.Conv2d)][-1]
    last.register_full_backward_hook(lambda module, grad_input, grad_output: seen.extend([*grad_input, *grad_output]))
    parameter = next(p for p in net.parameters() if p.requires_grad)
    parameter.register_hook(lambda grad: 3 * grad)
    parameter.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad))
    y = module(x)
    loss_of(y).backward()
    for p in net.parameters():
        assert p.grad is None if not p.requires_grad else p.grad.stride() == p.stride()
    grads = [p.grad for p in net.parameters() if p.requires_grad]
    buffers = [b for b in net.buffers() if b.is_floating_point()]
    return torch.cat([t.detach().double().flatten() for t in (y, x.grad, *grads, *buffers, *seen)])


@ENABLED
@pytest.mark.parametrize("seed", range(16))
def test_random_networks(seed):
    net = random_net(seed)
    x = torch.randn(6, 64, 10, 8)
    truth, stated, rewritten = copy.deepcopy(net).double(), copy.deepcopy(net), copy.deepcopy(net)
    exact = trained(truth, truth, x.double())
    theirs = trained(stated, stated, x)
    with Called() as called:
        ours = trained(gnfast.rewrite(rewritten), rewritten, x)
    assert called.names
    assert relative_error(ours, exact) <= 2 * relative_error(theirs, exact)


@ENABLED
@pytest.mark.parametrize("layout", [NHWC, torch.contiguous_format], ids=["channels_last", "contiguous"])
@pytest.mark.parametrize("family", ["resnet", "dcgan"])
def test_generators(family, layout):
    torch.manual_seed(0)
    generator, _ = models.build(family, resolution=32, width=1 / 4)
    # Smooth: with ReLUs, the error is which pre-activations rounding puts on the other side of zero.
    for module in list(generator.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, nn.Softplus())
    generator = generator.to(memory_format=layout)
    z = torch.randn(16, 128)
    with Called() as called:
        gradients(gnfast.rewrite(generator), z)
    # Per block of the ResNet a merged and a plain convolution, per level of the CNN a transposed one.
    served = {"resnet": (6, 6, 6), "dcgan": (3, 3, 3)}[family]
    assert tuple(called.names.count(name) for name in (FORWARD, INPUT_GRAD, WEIGHT_GRAD)) == served
    assert_within_twice_pytorchs(generator, z, at_once=True)


@ENABLED
def test_double_backward_of_a_critic():
    """A gradient penalty by plain double backward, as a user would write it."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(64, 64, 3, padding=1),
        nn.Softplus(),
        nn.Conv2d(64, 128, 4, 2, 1),
        nn.Softplus(),
        nn.Flatten(),
        nn.Linear(128 * 64, 1),
    )
    assert_within_twice_pytorchs(net, torch.randn(8, 64, 16, 16), order=2)


# What must see what is stated


def stated_net():
    return nn.Sequential(
        nn.ConvTranspose2d(16, 16, 4, 2, 1), nn.Softplus(), nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 8, 4, 2, 1)
    )


def merging_net():
    return nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(16, 16, 3), nn.AvgPool2d(2))


def differentiated(y):
    y.float().square().sum().backward()
    return y


def under_autocast(net, x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = net(x)
    return differentiated(y)


def under_saved_tensor_hooks(net, x):
    with torch.autograd.graph.save_on_cpu():
        y = net(x)
    return differentiated(y)


def under_forward_ad(net, x):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(net(forward_ad.make_dual(x.detach(), torch.ones_like(x)))).tangent


WATCHERS = {
    "autocast": under_autocast,
    "checkpoint": lambda net, x: differentiated(torch.utils.checkpoint.checkpoint(net, x, use_reentrant=False)),
    "saved tensor hooks": under_saved_tensor_hooks,
    "vmap": lambda net, x: torch.vmap(lambda sample: net(sample[None]))(x),
    "grad": lambda net, x: torch.func.grad(lambda x: net(x).square().sum())(x),
    "jvp": lambda net, x: torch.func.jvp(net, (x.detach(),), (torch.ones_like(x),))[1],
    "forward_ad": under_forward_ad,
    "compile": lambda net, x: differentiated(torch.compile(net, backend="eager")(x)),
    "jit.trace": lambda net, x: torch.jit.trace(net, x.detach())(x),
}


@pytest.mark.parametrize(
    ("name", "make"),
    # Autocast does not keep convolutions from being merged.
    [*((name, stated_net) for name in WATCHERS), *((name, merging_net) for name in WATCHERS if name != "autocast")],
)
def test_watchers_see_what_is_stated(name, make):
    net, watch = make(), WATCHERS[name]
    x = torch.randn(4, 16, 8, 8)
    results = []
    for module in net, gnfast.rewrite(net):
        given = x.clone().requires_grad_()
        result = watch(module, given)
        results.append([result, given.grad, *(p.grad for p in net.parameters())])
        net.zero_grad()
    for a, b in zip(*results, strict=True):
        assert (a is None and b is None) or torch.equal(a, b)
    assert not winograd.enabled("cpu") or not torch.equal(gnfast.rewrite(net)(x), net(x))


def cotangents(y):
    return torch.randn(3, *y.shape, generator=torch.Generator().manual_seed(1))


def batched(y, x, parameters):
    return torch.autograd.grad(y, [x, *parameters], cotangents(y), is_grads_batched=True)


def vmapped(y, x, parameters):
    return torch.vmap(lambda v: torch.autograd.grad(y, [x, *parameters], v, retain_graph=True))(cotangents(y))


def dual(y, x, parameters):
    with forward_ad.dual_level():
        cotangent = forward_ad.make_dual(torch.ones_like(y), torch.linspace(0, 1, y.numel()).view(y.shape))
        grads = torch.autograd.grad(y, [x, *parameters], cotangent)
        return [forward_ad.unpack_dual(grad).tangent for grad in grads]


def compiled_backward(y, x, parameters):
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager")):
        y.square().sum().backward()
    grads = [t.grad for t in (x, *parameters)]
    for t in (x, *parameters):
        t.grad = None
    return grads


@ENABLED
@pytest.mark.parametrize("differentiate", [batched, vmapped, dual, compiled_backward], ids=lambda f: f.__name__)
def test_watched_backwards(differentiate):
    """The forward was Winograd's, the backward is PyTorch's where more than ordinary autograd watches it."""
    net = stated_net()
    x = torch.randn(4, 16, 8, 8, requires_grad=True)
    expected = differentiate(net(x), x, list(net.parameters()))
    with Called() as forward:
        y = gnfast.rewrite(net)(x)
    assert len(forward.names) == 3
    actual = differentiate(y, x, list(net.parameters()))
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


# Everything else is PyTorch's own work, bit for bit.
ELSEWHERE = {
    "float64": (nn.ConvTranspose2d(16, 16, 4, 2, 1).double(), (4, 16, 8, 8)),
    "bfloat16": (nn.ConvTranspose2d(16, 16, 4, 2, 1).bfloat16(), (4, 16, 8, 8)),
    "transposed to three channels": (nn.ConvTranspose2d(16, 3, 4, 2, 1), (4, 16, 8, 8)),
    "transposed, groups": (nn.ConvTranspose2d(16, 16, 4, 2, 1, groups=2), (4, 16, 8, 8)),
    "transposed, dilation": (nn.ConvTranspose2d(16, 16, 4, 2, 1, dilation=2), (4, 16, 8, 8)),
    "transposed 4x4 stride 1, tiny maps": (nn.ConvTranspose2d(16, 16, 4, 1, 1), (64, 16, 2, 2)),
    "transposed 5x5": (nn.ConvTranspose2d(16, 16, 5, 2, 2), (4, 16, 8, 8)),
    "few positions": (nn.ConvTranspose2d(16, 16, 4, 2, 1), (6, 16, 4, 5)),
    "one image": (nn.ConvTranspose2d(16, 16, 4, 2, 1), (16, 8, 8)),
    "no images": (nn.ConvTranspose2d(16, 16, 4, 2, 1), (0, 16, 8, 8)),
    "conv, groups": (nn.Conv2d(16, 16, 4, 2, 1, groups=2), (4, 16, 16, 16)),
    "conv, dilation": (nn.Conv2d(16, 16, 3, dilation=2), (4, 16, 16, 16)),
    "conv 3x3 stride 2": (nn.Conv2d(16, 16, 3, 2, 1), (4, 16, 16, 16)),
    "circular": (nn.Conv2d(16, 16, 4, 2, 1, padding_mode="circular"), (1, 16, 8, 8)),
    "padding by name": (nn.Conv2d(16, 16, 3, dilation=2, padding="same"), (4, 16, 16, 16)),
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_other_convolutions_are_pytorchs(name):
    layer, size = ELSEWHERE[name]
    x = torch.randn(size, dtype=layer.weight.dtype)
    with Called() as called:
        actual = gradients(gnfast.rewrite(layer), x)
    assert called.names == []
    for a, b in zip(actual, gradients(layer, x), strict=True):
        assert torch.equal(a, b) and a.stride() == b.stride()


WRONG = {
    "channels": lambda x, w: F.conv_transpose2d(x, w[:8], None, 2, 1),
    "conv's channels": lambda x, w: F.conv2d(x, w[:, :8], None, 2, 1),
    "bias": lambda x, w: F.conv_transpose2d(x, w, torch.ones(8), 2, 1),
    "bias's dtype": lambda x, w: F.conv2d(x, w, torch.ones(16, dtype=torch.float64), 2, 1),
    "dtype": lambda x, w: F.conv_transpose2d(x, w.double(), None, 2, 1),
    "output padding": lambda x, w: F.conv_transpose2d(x, w, None, 2, 1, output_padding=2),
    "negative output padding": lambda x, w: F.conv_transpose2d(x, w, None, 2, 1, output_padding=-1),
    "negative padding": lambda x, w: F.conv_transpose2d(x, w, None, 2, -1),
    "conv's negative padding": lambda x, w: F.conv2d(x, w, None, 2, -1),
    "three paddings": lambda x, w: F.conv_transpose2d(x, w, None, 2, (1, 1, 1)),
    "conv's three paddings": lambda x, w: F.conv2d(x, w, None, 1, (1, 1, 1)),
    "three factors": lambda x, w: F.interpolate(x, scale_factor=(2, 2, 2)),
    "three strides": lambda x, w: F.conv2d(x, w, None, (2, 2, 2), 1),
    "small images": lambda x, w: F.conv2d(x[..., :1], w, None, 2, 1),
    "stride 0": lambda x, w: F.conv2d(x, w, None, 0, 1),
    "transposed stride 0": lambda x, w: F.conv_transpose2d(x, w, None, 0, 1),
    "one dimension": lambda x, w: F.conv_transpose2d(x[0, 0, 0], w, None, 2, 1),
    "weight's dimensions": lambda x, w: F.conv2d(x, w[0], None, 2, 1),
    "name": lambda x, w: F.conv2d(x, w, None, 2, "same"),
}


@pytest.mark.usefixtures("any_size")
@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_are_refused_in_pytorchs_words(name):
    class Call(nn.Module):
        def forward(self, x, w):
            return WRONG[name](x, w)

    given = torch.randn(4, 16, 8, 8), torch.randn(16, 16, 4, 4)
    with pytest.raises((RuntimeError, ValueError)) as stated:
        WRONG[name](*given)
    with pytest.raises(type(stated.value)) as rewritten:
        gnfast.rewrite(Call())(*given)
    assert str(rewritten.value) == str(stated.value)


@pytest.mark.gpu
@pytest.mark.parametrize("name", LAYERS)
def test_on_a_gpu(name):
    layer = LAYERS[name][0](16, 24).to("cuda", torch.float64)
    x = torch.randn(4, 16, 8, 6, device="cuda", dtype=torch.float64)
    with Called() as called:
        actual = gradients(gnfast.rewrite(layer), x, 2)
    assert called.names == []
    for a, b in zip(actual, gradients(layer, x, 2), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
