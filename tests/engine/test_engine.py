"""The four passes against double backward in float64: networks of all kinds, and what surrounds a call."""

import copy
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import gnfast
from gnfast import FallbackWarning, InputError, UnsupportedError, reference
from gnfast.engine import autograd, operands, passes
from tests.hunt.steps import FUNCTIONS
from tests.oracle import (
    assert_agree,
    assert_falls_back,
    assert_matches_double_backward,
    assert_same,
    loss_of,
    outputs_and_gradients,
    relative_error,
)


class Residual(nn.Module):
    def __init__(self, channels_in, channels_out, downsample, inplace=False):
        super().__init__()
        self.main = nn.Sequential(
            nn.ReLU(inplace),
            nn.Conv2d(channels_in, channels_out, 3, 1, 1),
            nn.ReLU(),
            nn.Conv2d(channels_out, channels_out, 3, 1, 1),
        )
        self.shortcut = nn.Conv2d(channels_in, channels_out, 1)
        self.downsample = downsample

    def forward(self, x):
        h = self.main(x) + self.shortcut(x)
        return F.avg_pool2d(h, 2) if self.downsample else h


class ResNet(nn.Module):
    def __init__(self, inplace=False):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.blocks = nn.Sequential(Residual(6, 9, True, inplace), Residual(9, 9, False, inplace))
        self.out = nn.Linear(9, 1)

    def forward(self, x):
        h = self.blocks(self.stem(x))
        return self.out(torch.relu(h).mean((2, 3)))


class Called(nn.Module):
    """A critic given as a function of itself and x: floating-point tensors are its parameters, others its buffers.

    So are those whose name begins with _; modules are its submodules.
    """

    def __init__(self, function, **parts):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            if isinstance(part, nn.Module):
                setattr(self, name, part)
            elif part.is_floating_point() and not name.startswith("_"):
                setattr(self, name, nn.Parameter(part))
            else:
                self.register_buffer(name, part)

    def forward(self, *args, **options):
        return self.function(self, *args, **options)


def normal(*shape):
    return torch.randn(shape, dtype=torch.float64)


def shared(net, x):
    """One convolution used three times, one tensor read three times."""
    h = net.act(net.conv(x))
    h = h + net.act(net.conv(h)) - 0.5 * net.conv(h)
    return (h + h).sum((1, 2, 3))


def arithmetic(net, x):
    """Constants in every position, reversed and in place."""
    h = net.conv(1 - x / 2)
    h = net.shift - (h * net.gain + net.shift) * net._mask
    h += 0.3
    h *= 2
    h -= F.relu(h)
    h = -h.contiguous().view(x.size(0), -1)
    h = F.leaky_relu_(h.clone(), 0.3) + h
    return h.mean(dim=1, keepdim=True) / net.gain.mean() - 0.1


def labelled(net, x, y=None):
    """A critic that adds a class-dependent term, constant in x."""
    return net.out(F.relu(net.body(x.flatten(1)) + net.embed(y)))


def make_labelled():
    body = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    return Called(labelled, body=body, embed=nn.Embedding(5, 4), out=nn.Linear(4, 1)).double()


def cnn(inplace=False):
    return nn.Sequential(
        nn.Conv2d(3, 5, 3, padding=1),
        nn.LeakyReLU(0.1, inplace),
        nn.Conv2d(5, 8, 4, stride=2, padding=1),
        nn.LeakyReLU(0.1, inplace),
        nn.AdaptiveAvgPool2d((2, 3)),
        nn.Flatten(),
        nn.Linear(48, 1),
    )


def unused_branch(net, x):
    net.unused(x.flatten(1)).relu()
    return net.used(x.flatten(1))


def pooled(net, x):
    """Convolutions before average poolings: those that are merged, moved, and left alone."""
    h = F.relu(F.avg_pool2d(net.three(x), (1, 2)))
    h = F.relu(F.avg_pool2d(net.one(h), 2, 1))
    h = net.read_twice(F.avg_pool2d(net.grouped(h), (3, 1), ceil_mode=True))
    h = F.relu(h).sum((1, 2, 3)) + F.avg_pool2d(h, 2).mean((1, 2, 3))
    return h + F.leaky_relu(F.avg_pool2d(net.wide(x), 3), 0.2).sum((1, 2, 3))


NETWORKS = {
    "mlp": lambda: nn.Sequential(nn.Flatten(), nn.Linear(105, 16), nn.ReLU(), nn.Linear(16, 1)),
    "cnn": cnn,
    "cnn-inplace": lambda: cnn(inplace=True),
    "cnn-without-bias": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(60, 1, bias=False)
    ),
    "resnet": ResNet,
    "resnet-inplace-shortcut-sees-relu": lambda: ResNet(inplace=True),
    "pooled": lambda: Called(
        pooled,
        three=nn.Conv2d(3, 4, 3, padding=1),
        one=nn.Conv2d(4, 6, 1),
        grouped=nn.Conv2d(6, 6, 2, groups=2, bias=False),
        read_twice=nn.Conv2d(6, 6, 1, padding=1),
        wide=nn.Conv2d(3, 6, 5, padding=2),
    ),
    "shared": lambda: Called(shared, conv=nn.Conv2d(3, 3, 3, padding=1), act=nn.LeakyReLU(0.2)),
    "arithmetic": lambda: Called(
        arithmetic, gain=normal(4, 1, 1), shift=normal(4, 1, 1), conv=nn.Conv2d(3, 4, 3), _mask=normal(1, 4, 3, 5).abs()
    ),
    "linear-only": lambda: nn.Sequential(nn.Flatten(), nn.Linear(105, 1)),
    "activation-first": lambda: nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(105, 1)),
    "output-b-1-1-1": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 1, (3, 5))),
    "spectral-norm": lambda: nn.Sequential(
        nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 4, 3)), nn.ReLU(), nn.Flatten(), nn.Linear(60, 1)
    ).eval(),
    "unused-branch": lambda: Called(unused_branch, used=nn.Linear(105, 1), unused=nn.Linear(105, 7)),
}


@pytest.fixture(params=NETWORKS)
def network(request):
    return NETWORKS[request.param]().double()


def test_everything_matches_double_backward(network, x):
    assert_matches_double_backward(network, x)


@pytest.mark.gpu
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_everything_matches_double_backward_on_a_gpu(network, x, layout):
    net = network.cuda().to(memory_format=layout)
    assert_matches_double_backward(net, x.cuda().contiguous(memory_format=layout))


@pytest.mark.parametrize("layout", [torch.channels_last, "sliced", "transposed"], ids=str)
def test_any_memory_format(x, layout):
    net = ResNet().double()
    if layout == "sliced":
        x = torch.randn(8, 5, 5, 14, dtype=torch.float64)[::2, 1:4, :, ::2]
    elif layout == "transposed":
        x = torch.randn(4, 3, 7, 5, dtype=torch.float64).transpose(2, 3)
    else:
        x, net = x.contiguous(memory_format=layout), net.to(memory_format=layout)
    assert_matches_double_backward(net, x)


class Convolved(TorchDispatchMode):
    """Notes the 4-D tensors that PyTorch's convolutions are given."""

    def __init__(self):
        super().__init__()
        self.tensors = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default):
            self.tensors += [t for t in args if isinstance(t, torch.Tensor) and t.dim() == 4]
        return func(*args, **(kwargs or {}))


def assert_laid_out(device, dtype):
    """Contiguous images and weights: convolutions have both in channels_last, and gradients come back contiguous."""
    net, x = ResNet().to(device, dtype), torch.randn(4, 3, 8, 8, dtype=dtype, device=device, requires_grad=True)
    with Convolved() as seen:
        g = gnfast.value_and_input_grad(net, x, strict=True)[1]
        gnfast.normalize_gradient(net, x, strict=True).sum().backward()
    # Images and weights of 7 convolutions in 2 calls of 2 passes.
    assert len(seen.tensors) >= 2 * 7 * 2 * 2
    assert all(t.is_contiguous(memory_format=torch.channels_last) for t in seen.tensors)
    assert g.is_contiguous()
    for tensor in (x, *net.parameters()):
        assert tensor.is_contiguous() and tensor.grad.is_contiguous()
    loss = gnfast.normalize_gradient(net, x, strict=True).sum()
    assert all(grad.is_contiguous() for grad in torch.autograd.grad(loss, [*net.parameters()]))


def test_contiguous_images_and_weights_are_converted_once_where_that_pays(monkeypatch):
    monkeypatch.setitem(autograd._CHANNELS_LAST_DTYPES, "cpu", (torch.float64,))
    torch.manual_seed(0)
    for net in (ResNet(), cnn(), NETWORKS["shared"](), nn.Sequential(nn.Flatten(), nn.Linear(192, 1))):
        assert_matches_double_backward(net.double(), torch.randn(4, 3, 8, 8, dtype=torch.float64))
    assert_laid_out("cpu", torch.float64)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_contiguous_images_and_weights_are_converted_once_on_a_gpu(dtype):
    assert_laid_out("cuda", dtype)


def test_contiguous_images_and_weights_are_converted_once_on_a_cpu():
    assert_laid_out("cpu", torch.float32)


def test_float64_stays_as_it_is(x):
    with Convolved() as seen:
        gnfast.normalize_gradient(ResNet().double(), x, strict=True)
    assert seen.tensors and all(t.is_contiguous() for t in seen.tensors)


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_any_batch_size(batch):
    assert_matches_double_backward(ResNet().double(), torch.randn(batch, 3, 6, 6, dtype=torch.float64))


def test_labels_and_their_embedding_get_gradients():
    net, x = make_labelled(), normal(4, 6)
    y = torch.tensor([0, 3, 3, 1])
    assert_matches_double_backward(net, x, y=y)
    assert_matches_double_backward(net, x, y)


def test_gradient_of_another_tensor_argument():
    net = Called(lambda net, x, shift: F.relu(x + shift).sum(1))
    x, shift = normal(4, 6), normal(6).requires_grad_()
    assert_agree(lambda way: torch.autograd.grad(loss_of(way.normalize_gradient(net, x, shift)), shift))


def test_frozen_and_partly_frozen_weights(x):
    net = cnn().double()
    for frozen in (["0.weight"], ["0.bias", "6.weight", "6.bias"], [name for name, _ in net.named_parameters()]):
        for name, parameter in net.named_parameters():
            parameter.requires_grad_(name not in frozen)
        assert_matches_double_backward(net, x)


def test_frozen_weights_keep_no_cotangents(x):
    net = cnn().double().requires_grad_(False)
    f_hat = gnfast.normalize_gradient(net, x.requires_grad_(), strict=True)
    cotangents = f_hat.grad_fn.saved_tensors[-len(gnfast.trace(net, x).nodes) :]
    assert not any(isinstance(t, torch.Tensor) for t in cotangents)


def test_x_without_gradient_and_no_grad(x):
    net = ResNet().double()
    expected = reference.normalize_gradient(net, x).detach()
    assert not x.requires_grad
    with torch.no_grad():
        result = gnfast.normalize_gradient(net, x, strict=True)
        assert not result.requires_grad
        assert relative_error(result, expected) < 1e-12
        f, g = reference.value_and_input_grad(net, x)
        assert not f.requires_grad and not g.requires_grad
    with torch.inference_mode():
        assert relative_error(gnfast.normalize_gradient(net, x, strict=True), expected) < 1e-12
    f_hat = gnfast.normalize_gradient(net, x, strict=True)
    f_hat.sum().backward()
    assert x.grad is None and not x.requires_grad


def test_non_leaf_x_passes_its_gradient_on(x):
    net, generator = ResNet().double(), nn.Conv2d(3, 3, 1).double()
    weights = list(generator.parameters())
    assert_agree(lambda way: torch.autograd.grad(loss_of(way.normalize_gradient(net, generator(x))), weights))


def test_several_forwards_before_one_backward(x):
    net = ResNet().double()

    def gradients(way):
        first, second, third = (way.normalize_gradient(net, t) for t in (x, x.flip(0) + 1, 2 * x))
        return torch.autograd.grad(first.relu().mean() - second.mean() * third.sum(), list(net.parameters()))

    assert_agree(gradients)


def test_gradients_accumulate_and_graph_can_be_retained(x):
    net = ResNet().double()
    loss = loss_of(gnfast.normalize_gradient(net, x))
    loss.backward(retain_graph=True)
    once = torch.cat([p.grad.flatten() for p in net.parameters()])
    loss.backward()
    twice = torch.cat([p.grad.flatten() for p in net.parameters()])
    assert relative_error(twice, 2 * once) < 1e-12
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


@pytest.mark.parametrize("index", [0, 1])
def test_losses_of_one_output_only(index, x):
    net = ResNet().double()

    def gradients(way):
        loss = loss_of(way.value_and_input_grad(net, x)[index])
        return torch.autograd.grad(loss, list(net.parameters()), allow_unused=True, materialize_grads=True)

    assert_agree(gradients)


@pytest.mark.parametrize("changed", [lambda net, x: net.stem.weight, lambda net, x: x], ids=["weight", "x"])
def test_what_is_changed_in_place_between_forward_and_backward_raises(changed, x):
    net = ResNet().double()
    f_hat = gnfast.normalize_gradient(net, x)
    with torch.no_grad():
        changed(net, x).mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        f_hat.sum().backward()


class Bessel(nn.Module):
    """Something of PyTorch's that no critic needs."""

    def forward(self, h):
        return torch.i0(h)


REFUSED = {
    "torch.i0 in submodule '1'": (nn.Conv2d(3, 4, 3), Bessel(), nn.Flatten(), nn.Linear(60, 1)),
    "torch.i0 in submodule '2'": (
        *(nn.Flatten(), nn.utils.parametrizations.spectral_norm(nn.Linear(105, 4)), Bessel(), nn.Linear(4, 1)),
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_refused_networks_fall_back_exactly_with_one_warning(message, x):
    net = copy.deepcopy(nn.Sequential(*REFUSED[message])).double()
    assert_falls_back(net, x, match=message)
    with pytest.warns(FallbackWarning, match=message):
        gnfast.normalize_gradient(copy.deepcopy(net), x)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: x.sum((1, 2, 3)) if x.sum() > 0 else x.mean((1, 2, 3)), "Tensor.__bool__"),
        (lambda x: x.relu_().sum((1, 2, 3)), "changes x in place"),
        (lambda x: torch.as_tensor(x.detach().numpy()).sum((1, 2, 3)) + x.sum((1, 2, 3)), "Tensor.numpy"),
        (lambda x: x.sum((1, 2, 3)).to(torch.int64).float(), "in a way that derivatives follow"),
        (lambda x: torch.add(x.flatten(1).max(1)[1], 1) + x.sum((1, 2, 3)), "indices of a maximum"),
        (lambda x: x[x > 0].sum().expand(4), "an index that depends on x"),
        (lambda x: F.rrelu(x, training=True).sum((1, 2, 3)), "drawn at random"),
        (lambda x: x.sum((1, 2, 3)).data, "Tensor.data"),
    ],
)
def test_what_cannot_be_recorded_is_refused(function, reason, x):
    with pytest.raises(UnsupportedError, match=reason):
        gnfast.normalize_gradient(Called(lambda net, x: function(x)), x, strict=True)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.sum((1, 2, 3)) * x.sum((1, 2, 3)),
        lambda x: x / x.sum((1, 2, 3), keepdim=True),
        lambda x: x - x.mean(0, keepdim=True),
        lambda x: x.sum((1, 2, 3)) * x.detach().mean((1, 2, 3)),
        lambda x: x.view(-1).reshape(4, -1),
        lambda x: x.transpose(0, 1).sum((0, 2, 3)),
        lambda x: x.flatten(1)[0].sum().expand(4),
        lambda x: x[:, 0].roll(1, 0),
        lambda x: torch.cat([x[:2], x[2:]]),
        lambda x: x.flatten(1).sort(0)[0],
        lambda x: x.flatten(1)[:, :4].t() @ x.new_ones(4, 2),
        lambda x: torch.einsum("bi,ci->c", x.flatten(1), x.new_ones(4, 105)),
        lambda x: x.new_ones(4, 4) @ x.flatten(1),
        lambda x: F.pad(x, (0, 0, 0, 0, 0, 0, 1, -1)),
        lambda x: x.flatten(1)[torch.arange(4), torch.arange(4)],
    ],
)
def test_what_is_not_piecewise_linear_per_sample(function, x):
    net = Called(lambda net, x: (function(x * net.w) ** 2).reshape(len(x), -1).sum(1), w=normal(7))
    assert_matches_double_backward(net, x)


@pytest.mark.parametrize("what", [tuple, list, lambda logit: {"logit": logit[0]}, lambda logit: None])
@pytest.mark.parametrize("options", [{}, {"strict": True}, {"static": True}, {"impl": "reference"}], ids=str)
@pytest.mark.filterwarnings("error")
def test_a_critic_that_returns_more_than_its_logit(what, options, x):
    net = Called(lambda net, x: what([x.sum((1, 2, 3)), x]))
    with pytest.raises(InputError, match=r"net: got a \w+ from the network, .* its logit alone"):
        gnfast.normalize_gradient(net, x, **options)
    with pytest.raises(InputError, match="its logit alone"):
        gnfast.trace(net, x)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_custom_autograd_functions_are_refused(last, mode, x):
    def function(x):
        halve = FUNCTIONS["half its gradient"]
        return halve(x.sum((1, 2, 3))) if last else halve(x * 2).sum((1, 2, 3))

    with mode(), pytest.raises(UnsupportedError, match="custom autograd function Custom "):
        gnfast.normalize_gradient(Called(lambda net, x: function(x)), x, strict=True)


@pytest.mark.filterwarnings("ignore::gnfast.FallbackWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "wrap",
    [nn.DataParallel, torch.jit.script, lambda net: torch.jit.trace(net, torch.zeros(2, 3, 5, 7).double())],
    ids=["data-parallel", "script", "traced-script"],
)
def test_wrapped_networks_are_exact(wrap, x):
    net = wrap(NETWORKS["mlp"]().double())
    assert_same(*(outputs_and_gradients(way.normalize_gradient, net, x) for way in (gnfast, reference)))


def test_control_flow_on_shapes_and_changed_mode(x):
    def flow(net, x):
        h = F.relu(net.conv(x))
        if x.shape[-1] > 8:
            h = F.avg_pool2d(h, 2)
        if net.training:
            h = F.leaky_relu(net.extra(h), 0.2)
        return h.mean((1, 2, 3))

    net = Called(flow, conv=nn.Conv2d(3, 3, 3, padding=1), extra=nn.Conv2d(3, 3, 1)).double()
    for mode in (True, False, True):
        net.train(mode)
        assert_matches_double_backward(net, x)
        assert_matches_double_backward(net, normal(3, 3, 9, 10))
    net.conv = nn.Conv2d(3, 3, 5, padding=1).double()
    assert_matches_double_backward(net, x)


def test_forward_hooks_are_honoured(x):
    net = cnn().double()
    net[1].register_forward_hook(lambda module, args, output: 2 * output - 1)
    net[3].register_forward_pre_hook(lambda module, args: (args[0] + 0.5,))
    assert_matches_double_backward(net, x)


def test_kept_activations_cannot_be_used(x):
    net, kept = cnn().double(), []
    net[1].register_forward_hook(lambda module, args, output: kept.append(output))
    gnfast.normalize_gradient(net, x, strict=True)
    with pytest.raises(UnsupportedError, match="holds no data"):
        kept[0].sum()


def test_the_networks_own_error_comes_through_without_a_warning():
    net = cnn().double()
    with warnings.catch_warnings(), pytest.raises(RuntimeError, match="channels"):
        warnings.simplefilter("error")
        gnfast.normalize_gradient(net, torch.randn(4, 2, 5, 7, dtype=torch.float64))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.randn(3, 5, 7), "x: .*batch in axis 0"),
        (torch.randn(5), r"x: got shape \(5,\)"),
        (torch.ones(2, 3, 5, 7, dtype=torch.uint8), "x: got dtype torch.uint8"),
        (torch.ones(2, 3, 5, 7, device="meta"), "x: got a tensor on meta"),
        ([[1.0]], "x: got a list"),
    ],
)
def test_bad_input_names_the_argument(x, message):
    with pytest.raises(InputError, match=message):
        gnfast.normalize_gradient(cnn(), x)


def test_bad_options(x):
    with pytest.raises(InputError, match="impl: got 'fast'"):
        gnfast.normalize_gradient(cnn().double(), x, impl="fast")
    with pytest.raises(InputError, match="net: got a function"):
        gnfast.normalize_gradient(lambda x: x, x)


def test_module_has_the_state_dict_of_its_network():
    net = cnn()
    outer = nn.ModuleDict({"critic": gnfast.GradientNorm(net)})
    assert list(outer.state_dict()) == [f"critic.{key}" for key in net.state_dict()]
    nn.ModuleDict({"critic": gnfast.GradientNorm(cnn())}).load_state_dict(outer.state_dict())
    with pytest.raises(RuntimeError, match=r"Missing key.*net\.0\.weight"):
        gnfast.GradientNorm(cnn()).load_state_dict({k: v for k, v in net.state_dict().items() if k != "0.weight"})


def test_module_copies_and_pickles(x):
    normalized = gnfast.GradientNorm(cnn().double(), strict=True)
    normalized(x)
    for twin in (copy.deepcopy(normalized), pickle.loads(pickle.dumps(normalized))):
        assert relative_error(twin(x), normalized(x)) == 0


def test_reference_is_the_papers_formula(x):
    net, x = ResNet().double(), x.requires_grad_()
    f = net(x)
    gradient = torch.autograd.grad(f, [x], torch.ones_like(f), create_graph=True)[0]
    norm = torch.norm(torch.flatten(gradient, start_dim=1), p=2, dim=1).view(-1, 1)
    assert torch.equal(reference.normalize_gradient(net, x), f / (norm + torch.abs(f)))


def test_plan_prints_costs_and_refusals(x):
    text = str(gnfast.trace(ResNet().double(), x))
    assert "blocks.0.main.1" in text and "Exact in four passes" in text and "kept" in text
    plan = gnfast.trace(
        nn.Sequential(nn.Conv2d(3, 4, 3), Bessel(), nn.Flatten(), nn.Linear(60, 1), Bessel()).double(), x
    )
    assert [refusal.submodule for refusal in plan.refusals] == ["1", "4"]
    assert "✗ torch.i0" in str(plan)
    assert "torch.i0 in submodule '1'" in str(plan) and "torch.i0 in submodule '4'" in str(plan)


def test_plan_costs_are_what_pytorch_counts(x):
    from torch.utils.flop_counter import FlopCounterMode

    net = ResNet().double()
    plan = gnfast.trace(net, x)
    with FlopCounterMode(display=False) as counter:
        f_hat = gnfast.normalize_gradient(net, x)
    forward = counter.get_total_flops()
    assert forward == len(x) * (plan.flops()["forward"] + plan.flops()["input gradient"])
    with FlopCounterMode(display=False) as counter:
        f_hat.sum().backward()
    # PyTorch also counts the matrix-vector products that give the bias gradients.
    assert counter.get_total_flops() == pytest.approx(
        len(x) * (plan.flops()["tangent"] + plan.flops()["weights"]), rel=1e-2
    )
    assert sum(plan.flops().values()) / plan.flops()["forward"] <= 4.05


def test_rewrites_change_the_cost_and_not_the_result(x):
    net = NETWORKS["pooled"]().double()
    assert_matches_double_backward(net, x, rewrite=True)
    assert_matches_double_backward(net, x, rewrite=False)
    plain, merged = gnfast.trace(net, x, rewrite=False), gnfast.trace(net, x)
    labels = [node.op.label() for node in merged.nodes]
    assert "conv2d s(1, 2) p1" in labels and "conv2d s3 p2" in labels
    names = [node.submodule for node in merged.nodes]
    assert labels[names.index("one") - 1] == "avg_pool2d 2", "the pooling comes before the 1x1 convolution"
    assert merged.flops()["forward"] < 0.8 * plain.flops()["forward"]


def test_one_plan_serves_every_batch_size():
    net = ResNet().double()
    first, again, larger = (gnfast.trace(net, torch.randn(batch, 3, 6, 6, dtype=torch.float64)) for batch in (2, 2, 7))
    assert first is again
    assert str(first) == str(larger)
    x = torch.randn(7, 3, 6, 6, dtype=torch.float64)
    weights = list(net.parameters())
    made = operands.made_of(first, weights, channels_last=False)
    start, new = operands.prepare(first, made, x, weights)
    given = operands.by_slot(first, made, weights, new)
    assert relative_error(passes.forward(first, start, given)[0], net(x)) < 1e-12


@pytest.mark.filterwarnings("ignore::gnfast.FallbackWarning")
@pytest.mark.parametrize("leaf", [True, False])
@pytest.mark.parametrize("other", [lambda x: x, lambda x: (2 * x).tanh()], ids=["x itself", "computed from x"])
def test_x_reached_by_another_way_falls_back(leaf, other):
    net = Called(lambda net, x, guide: net.linear(F.relu(x + guide)), linear=nn.Linear(6, 1)).double()
    x = normal(4, 6).requires_grad_()
    x = x if leaf else x * 1.5
    guide = other(x)
    with pytest.warns(FallbackWarning, match="computed from x"):
        f, g = gnfast.value_and_input_grad(net, x, guide)
    (expected,) = torch.autograd.grad(net(x, guide).sum(), x, retain_graph=True)
    assert relative_error(g, expected) < 1e-12
    with torch.no_grad():
        assert relative_error(gnfast.value_and_input_grad(net, x, guide)[0], f) < 1e-12


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.flatten(1).masked_scatter(x.flatten(1) < 0, x.flatten(1)).sum(1),
        lambda x: torch.linalg.svdvals(x).sum((1, 2)),
        lambda x: FUNCTIONS["in place"](x.sum((1, 2, 3))),
        lambda x: torch.i0(x).sum((1, 2, 3)).view(torch.i0(x).shape[0], int(x.shape[1] / 3)),
    ],
)
def test_trace_explains_where_it_cannot_go_on(function, x):
    assert gnfast.trace(Called(lambda net, x: function(x)), x).refusals


def test_trace_raises_the_networks_own_error(x):
    with pytest.raises(RuntimeError, match="channels"):
        gnfast.trace(cnn(), torch.randn(4, 2, 5, 7))
