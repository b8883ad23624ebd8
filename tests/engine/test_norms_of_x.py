"""Critics with statistics of x, products of x-dependent tensors, and attention: against double backward."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gnfast
from gnfast import FallbackWarning, UnsupportedError, reference
from gnfast.plan.ops.norms import Standardize
from tests.engine.test_engine import Called
from tests.oracle import (
    assert_falls_back,
    assert_matches_double_backward,
    assert_same,
    assert_same_state,
    outputs_and_gradients,
    relative_error,
)

B = 4
IMAGE, SOUND, VOLUME = torch.Size([3, 6, 5]), torch.Size([3, 8]), torch.Size([3, 3, 4, 3])
TOKENS = torch.Size([5, 6])


def normal(*shape):
    return torch.randn(shape, dtype=torch.float64)


def between(norm, conv, last=nn.LeakyReLU):
    """The norm between two layers, and curvature below it and above."""
    first, second = conv(3, 4), conv(4, 3)
    net = nn.Sequential(first, nn.LeakyReLU(0.2), norm, nn.SiLU(), second, last(), nn.Flatten())
    net = Called(lambda net, x: net.body(x).sum(1), body=net).double()
    for parameter in net.parameters():
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    return net


def by_image(i, o):
    return nn.Conv2d(i, o, 3, padding=1)


def by_sound(i, o):
    return nn.Conv1d(i, o, 3)


def by_volume(i, o):
    return nn.Conv3d(i, o, 2)


LAYERS = {
    "group norm": (lambda: nn.GroupNorm(2, 4), by_image, IMAGE),
    "group norm of sound": (lambda: nn.GroupNorm(4, 4, affine=False), by_sound, SOUND),
    "group norm of vectors": (lambda: nn.GroupNorm(2, 4), nn.Linear, IMAGE[:1]),
    "instance norm": (lambda: nn.InstanceNorm2d(4), by_image, IMAGE),
    "instance norm, running": (
        lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
        by_image,
        IMAGE,
    ),
    "instance norm of volumes": (lambda: nn.InstanceNorm3d(4, affine=True), by_volume, VOLUME),
    "batch norm": (lambda: nn.BatchNorm2d(4), by_image, IMAGE),
    "batch norm, plain": (lambda: nn.BatchNorm2d(4, affine=False), by_image, IMAGE),
    "batch norm of this batch alone": (lambda: nn.BatchNorm2d(4, track_running_stats=False), by_image, IMAGE),
    "batch norm, cumulative": (lambda: nn.BatchNorm2d(4, momentum=None), by_image, IMAGE),
    "batch norm of vectors": (lambda: nn.BatchNorm1d(4), nn.Linear, IMAGE[:1]),
    "batch norm of sound": (lambda: nn.BatchNorm1d(4), by_sound, SOUND),
    "batch norm of volumes": (lambda: nn.BatchNorm3d(4), by_volume, VOLUME),
    "layer norm": (lambda: nn.LayerNorm((4, 6, 5)), by_image, IMAGE),
    "layer norm of rows": (lambda: nn.LayerNorm(5, bias=False), by_image, IMAGE),
    "layer norm, plain": (lambda: nn.LayerNorm(4, elementwise_affine=False), nn.Linear, IMAGE[:1]),
    "rms norm": (lambda: nn.RMSNorm((6, 5)), by_image, IMAGE),
    "rms norm, plain": (lambda: nn.RMSNorm(4, eps=0.1, elementwise_affine=False), nn.Linear, IMAGE[:1]),
    "local response norm": (lambda: nn.LocalResponseNorm(3), by_image, IMAGE),
    "local response norm of sound": (lambda: nn.LocalResponseNorm(2, alpha=0.5, k=2.0), by_sound, SOUND),
    "softmax": (lambda: nn.Softmax(1), by_image, IMAGE),
    "log softmax": (lambda: nn.LogSoftmax(2), by_image, IMAGE),
    "softmin": (lambda: nn.Softmin(1), by_image, IMAGE),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_with_statistics_of_x(name):
    make, layer, shape = LAYERS[name]
    net, x = between(make(), layer), normal(B, *shape)
    assert_matches_double_backward(net, x)
    if len(shape) == 3:
        last = {"memory_format": torch.channels_last}
        assert_matches_double_backward(net.to(**last), x.to(**last))


def heads(net, x, count=2):
    return [layer(x).unflatten(-1, (count, 3)).transpose(-2, -3) for layer in (net.q, net.k, net.v)]


def attended(**given):
    def forward(net, x):
        return F.scaled_dot_product_attention(*heads(net, x), **given)

    return forward


def modulated(net, x):
    """StyleGAN2's convolution, of which each sample has its own kernel."""
    style, weight = net.q(x.mean(1)).flatten(1), net.w[None, :, :6]
    weight = weight * style[:, None, :, None]
    weight = weight * torch.rsqrt(weight.square().sum((2, 3), keepdim=True) + 1e-8)
    h = x.transpose(1, 2).reshape(1, -1, 5)
    return F.conv1d(h, weight.flatten(0, 1), padding=1, groups=len(x)).unflatten(1, (len(x), -1))


CHOICE = torch.rand(B, 1, 5, 5) > 0.3
CHOICE[1, 0, 2] = False
FUNCTIONS = {
    "matrix product": lambda net, x: net.q(x) @ net.k(x).transpose(1, 2),
    "matrix product that broadcasts": lambda net, x: net.q(x)[:, None] @ torch.stack([net.k(x), net.v(x)], 1).mT,
    "product over samples": lambda net, x: net.q(x).flatten(1).T @ net.k(x).flatten(1),
    "contraction": lambda net, x: torch.einsum("bti,bsj->btj", net.q(x), net.k(x)),
    "contraction with a weight": lambda net, x: torch.einsum("bti,ij,bsj->bts", net.q(x), net.w[0, :6], net.k(x)),
    "three factors": lambda net, x: torch.einsum("bti,bui,bsi->bts", net.q(x), net.k(x), net.v(x)),
    "bilinear": lambda net, x: F.bilinear(net.q(x), net.k(x), net.w[:, :6, :], net.w[0, 0, :2]),
    "bilinear of one": lambda net, x: F.bilinear(net.q(x), net.w[0, 0].expand(B, 5, -1), net.w[:, :6, :]),
    "inner products": lambda net, x: torch.inner(net.q(x), net.k(x)),
    "outer product": lambda net, x: torch.outer(net.q(x).flatten(), net.k(x)[0, 0]),
    "dot": lambda net, x: torch.dot(net.q(x).flatten(), net.k(x).flatten()).reshape(1, 1, 1),
    "baddbmm": lambda net, x: torch.baddbmm(net.v(x), net.q(x) @ net.k(x).mT, net.v(x), beta=0.5, alpha=2),
    "lerp, addcmul, addcdiv": lambda net, x: (
        torch.lerp(net.q(x), net.k(x), net.v(x).sigmoid())
        + torch.addcmul(net.q(x), net.k(x), net.v(x), value=0.3)
        + torch.addcdiv(net.q(x), net.k(x), net.v(x).exp())
    ),
    "layer by x": lambda net, x: F.linear(net.q(x), net.k(x)[0], net.v(x)[0, :, 0]),
    "convolution by x": lambda net, x: F.conv1d(net.q(x), net.k(x)[:2, :, :3], net.v(x)[0, 0, :2], padding=1),
    "convolution of a constant": lambda net, x: F.conv1d(
        net.w, net.k(x)[:2, :, :3].mean(1, keepdim=True).expand(2, 7, 3)
    ),
    "modulated convolution": modulated,
    "norms of x": lambda net, x: net.q(x).norm(dim=1) + torch.linalg.vector_norm(net.k(x), 3, 1),
    "normalize": lambda net, x: F.normalize(net.q(x), dim=2) * F.normalize(net.k(x), p=4),
    "variances": lambda net, x: net.q(x).var(1) + net.q(x).std((0, 1)) + net.k(x).var(False),
    "variance and mean": lambda net, x: torch.cat(
        [*torch.var_mean(net.q(x), 1, correction=0), *torch.std_mean(net.k(x), 1)]
    ),
    "minibatch stddev": lambda net, x: (net.q(x).var(0, unbiased=False) + 1e-8).sqrt().mean().expand(B, 1),
    "pixel norm": lambda net, x: net.q(x) * (net.q(x).square().mean(1, keepdim=True) + 1e-8).rsqrt(),
    "adaptive norm": lambda net, x: (
        F.instance_norm(net.q(x)) * net.k(x)[:, :, :1] + F.layer_norm(net.q(x), (6,), net.v(x)[0, 0])
    ),
    "attention": attended(),
    "causal attention": attended(is_causal=True, scale=0.6),
    "attention by choice": attended(attn_mask=CHOICE),
    "attention with a bias": lambda net, x: attended(attn_mask=net.w[:2, :5, :5])(net, x),
    "attention with a bias by x": lambda net, x: attended(attn_mask=net.q(x)[:, None, :, :5])(net, x),
    "grouped attention": lambda net, x: F.scaled_dot_product_attention(
        torch.cat(heads(net, x)[:2], 1), *heads(net, x)[1:], enable_gqa=True
    ),
    "attention of learned queries": lambda net, x: F.scaled_dot_product_attention(
        net.w[:2, :4, :3], *heads(net, x)[1:]
    ),
    "attention to itself": lambda net, x: F.scaled_dot_product_attention(*[net.q(x)] * 3),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_of_several_tensors(name):
    def forward(net, x):
        y = FUNCTIONS[name](net, x)
        return (F.leaky_relu(y, 0.2).flatten(1).sum(1) if len(y) == len(x) else y.relu().sum()) + net.v(x).sum((1, 2))

    parts = {key: nn.Linear(6, 6) for key in "qkv"}
    net = Called(forward, w=nn.Parameter(normal(2, 7, 6)), **parts).double()
    assert_matches_double_backward(net, normal(B, *TOKENS))


def modulated_twice(net, x):
    for _ in range(2):
        weight = net.w * net.style(x.mean((2, 3)))[:, None, :, None, None]
        h = F.conv2d(x.reshape(1, -1, *x.shape[2:]), weight.flatten(0, 1), padding=1, groups=len(x))
        x = h.view(x.shape)
    return F.leaky_relu(x, 0.2).sum((1, 2, 3))


def normed_one_by_one(net, x):
    each = [F.batch_norm(h[None], None, None, net.w[0, 0, 0], training=True) for h in x]
    return (F.leaky_relu(torch.cat(each), 0.2) * net.w[0]).sum((1, 2, 3))


@pytest.mark.parametrize("forward", [modulated_twice, normed_one_by_one])
def test_batches_of_one_in_channels_last(forward):
    """There PyTorch's own gradients may be wrong (2.13, CPU), so that the truth comes from contiguous images."""
    net, x = Called(forward, style=nn.Linear(3, 3), w=nn.Parameter(normal(3, 3, 3, 3))).double(), normal(3, 3, 3, 3)
    truth = outputs_and_gradients(reference.value_and_input_grad, net, x)
    last = {"memory_format": torch.channels_last}
    assert_same(outputs_and_gradients(gnfast.value_and_input_grad, net.to(**last), x.to(**last), strict=True), truth)


def multihead(**options):
    return lambda: nn.MultiheadAttention(6, 2, dtype=torch.float64, **options)


def to_itself(**given):
    def forward(net, h):
        axes = (0, 1) if net.inner.batch_first else (1, 0)
        h = h.movedim((0, 1), axes)
        return net.inner(h, h, h, **given)[0].movedim((0, 1), axes)

    return forward


def encoder(layers=0, **options):
    def make():
        layer = nn.TransformerEncoderLayer(6, 2, 7, dropout=0.0, dtype=torch.float64, **options)
        return nn.TransformerEncoder(layer, layers, enable_nested_tensor=False) if layers else layer

    return make


PADDED = torch.arange(5) >= torch.tensor([5, 4, 2, 3])[:, None]
MODULES = {
    "multi-head": (multihead(batch_first=True), to_itself()),
    "multi-head, batch second": (multihead(add_bias_kv=True), to_itself(need_weights=False)),
    "multi-head, padded": (multihead(batch_first=True), to_itself(key_padding_mask=PADDED, need_weights=False)),
    "multi-head, causal": (
        multihead(bias=False, batch_first=True, add_zero_attn=True),
        to_itself(attn_mask=nn.Transformer.generate_square_subsequent_mask(5, dtype=torch.float64)),
    ),
    "cross-attention": (
        multihead(kdim=3, vdim=4, batch_first=True),
        lambda net, h: net.inner(h[:, :2], h[..., :3], h[..., 1:5])[0],
    ),
    "attention weights": (multihead(batch_first=True), lambda net, h: net.inner(h, h, h)[1]),
    "encoder layer": (encoder(batch_first=True, activation="gelu"), lambda net, h: net.inner(h)),
    "encoder": (encoder(2, batch_first=False, norm_first=True), lambda net, h: net.inner(h)),
}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", MODULES)
def test_attention_modules(name, training):
    make, function = MODULES[name]

    def forward(net, x):
        y = function(net, net.embed(x))
        return (y * net.out[: y.shape[1], : y.shape[2]]).sum((1, 2))

    net = Called(forward, inner=make(), embed=nn.Linear(6, 6), out=nn.Parameter(normal(5, 6))).double()
    assert_matches_double_backward(net.train(training), normal(B, *TOKENS))


def test_dropped_attention_weights_are_those_of_plain_attention():
    net = Called(lambda net, x: attended(dropout_p=0.4)(net, x).sum((1, 2, 3)), **{k: nn.Linear(6, 6) for k in "qkv"})
    found = []
    for function in (gnfast.normalize_gradient, reference.normalize_gradient):
        torch.manual_seed(3)
        kwargs = {"strict": True} if function is gnfast.normalize_gradient else {}
        x = torch.linspace(-1, 1, B * 30, dtype=torch.float64).reshape(B, 5, 6)
        found.append(outputs_and_gradients(function, net.double(), x, **kwargs))
    assert_same(*found)


def test_attention_in_a_network_that_falls_back():
    """PyTorch's own choice, flash attention, has no second derivative."""

    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, h):
            return 2 * h

        @staticmethod
        def backward(ctx, grad):
            return 2 * grad

    own = {key: nn.Linear(6, 6) for key in "qkv"}
    net = Called(lambda net, x: Doubled.apply(attended()(net, x)).sum((1, 2, 3)), **own).double()
    assert_falls_back(net, normal(B, *TOKENS), match="custom autograd function")


def normed(norm=None, conv=by_image):
    return between(nn.BatchNorm2d(4) if norm is None else norm, conv)


RUNNING = {
    "batch norm": lambda: nn.BatchNorm2d(4),
    "cumulative batch norm": lambda: nn.BatchNorm2d(4, momentum=None),
    "instance norm": lambda: nn.InstanceNorm2d(4, track_running_stats=True),
}


@pytest.mark.parametrize("name", RUNNING)
def test_running_statistics_advance_once_per_call(name):
    net, x = normed(RUNNING[name]()), normal(B, *IMAGE)
    twin = copy.deepcopy(net)

    def advanced():
        state = zip(net.buffers(), twin.buffers(), strict=True)
        return all(torch.allclose(a, b, rtol=1e-12, atol=1e-13) for a, b in state)

    for call in range(3):
        gnfast.normalize_gradient(net, x + call, strict=True)
        twin(x + call)
        assert advanced()
    with torch.no_grad():
        gnfast.normalize_gradient(net, x, strict=True)
    assert not advanced()
    twin(x)
    assert advanced()
    gnfast.trace(net, x)
    gnfast.normalize_gradient(net.eval(), x, strict=True)
    assert advanced()


def test_two_calls_before_one_backward():
    """Running statistics are written to between a call's forward and its backward."""
    net, x = normed(), normal(B, *IMAGE)
    grads = []
    for module, twin in ((gnfast, net), (reference, copy.deepcopy(net))):
        parts = [module.normalize_gradient(twin, x * factor).square().sum() for factor in (1, -0.5)]
        sum(parts).backward()
        grads.append({name: p.grad for name, p in twin.named_parameters()})
    assert_same(*grads)


def test_a_refused_recording_leaves_running_statistics_alone():
    class Unknown(torch.autograd.Function):
        @staticmethod
        def forward(ctx, h):
            return h * 2

        @staticmethod
        def backward(ctx, grad):
            return grad * 2

    net = Called(lambda net, x: Unknown.apply(net.norm(x)).flatten(1).sum(1) + x.sum((1, 2, 3)), norm=nn.BatchNorm2d(3))
    twin = copy.deepcopy(net.double())
    with pytest.raises(UnsupportedError, match="custom autograd"):
        gnfast.normalize_gradient(net, normal(B, *IMAGE), strict=True)
    assert_same_state(net, twin)


def test_statistics_that_the_passes_are_yet_to_write_are_not_read():
    def forward(net, x):
        h = net.norm(net.conv(x))
        return (h + F.batch_norm(h, net.norm.running_mean, net.norm.running_var)).relu().sum((1, 2, 3))

    net = Called(forward, conv=nn.Conv2d(3, 4, 3), norm=nn.BatchNorm2d(4)).double()
    with pytest.raises(UnsupportedError, match="running statistics that the same forward updates"):
        gnfast.normalize_gradient(net, normal(B, *IMAGE), strict=True)


def test_one_value_per_channel_is_pytorchs_error():
    net = Called(lambda net, x: net.norm(net.linear(x)).sum(1), linear=nn.Linear(3, 4), norm=nn.BatchNorm1d(4))
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
        gnfast.normalize_gradient(net, torch.randn(1, 3))


def test_running_statistics_are_updated_on_every_call_of_a_static_network():
    net, x = normed(RUNNING["instance norm"]()), normal(B, *IMAGE)
    twin = copy.deepcopy(net)
    with pytest.raises(UnsupportedError, match="running statistics"):
        gnfast.normalize_gradient(net, x, strict=True, static=True)
    with pytest.warns(FallbackWarning, match="running statistics"):
        gnfast.normalize_gradient(net, x, static=True)
    gnfast.normalize_gradient(net, x, static=True)
    twin(x), twin(x)
    for buffer, other in zip(net.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(buffer, other)


def test_an_exact_critic_shows_a_wrong_projection(monkeypatch):
    """What the tests above compare is what the norms compute."""
    net, x = normed(), normal(B, *IMAGE)
    own = Standardize.second
    monkeypatch.setattr(Standardize, "second", lambda *args: ([own(*args)[0][0] * (1 + 1e-6)], own(*args)[1]))
    with pytest.raises(AssertionError, match="differs"):
        assert_matches_double_backward(net, x)


def test_flops_of_two_factors():
    """One product forward, two for the input gradient and the tangent each, four for the second reverse."""
    parts = {"q": nn.Linear(6, 7), "k": nn.Linear(6, 7), "last": nn.Linear(25, 1)}
    net = Called(lambda net, x: net.last((net.q(x) @ net.k(x).mT).flatten(1)), **parts)
    plan = gnfast.trace(net, torch.randn(B, *TOKENS))
    linear, product, last = 2 * 2 * 5 * 6 * 7, 2 * 5 * 5 * 7, 2 * 25
    assert plan.flops() == {
        "forward": linear + product + last,
        "input gradient": linear + 2 * product + last,
        "tangent": linear + 2 * product,
        "second reverse": 4 * product,
        "weights": 2 * linear + last,
    }


def deep(norm):
    layers = [nn.Conv2d(3, 8, 3, padding=1), norm(), nn.LeakyReLU(0.2), nn.Conv2d(8, 8, 3, stride=2), norm(), nn.SiLU()]
    return nn.Sequential(*layers, nn.Conv2d(8, 8, 2), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(8, 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "norm", [lambda: nn.BatchNorm2d(8), lambda: nn.GroupNorm(1, 8)], ids=["batch norm", "layer norm"]
)
def test_rounding_errors_stay_below_twice_those_of_double_backward(norm, dtype):
    errors = {gnfast: {}, reference: {}}
    for seed in range(4):
        torch.manual_seed(seed)
        net, x = deep(norm).to(dtype), torch.randn(8, 3, 6, 6).to(dtype)
        exact = copy.deepcopy(net).double()
        truth = outputs_and_gradients(reference.value_and_input_grad, exact, x.double())
        for module, found in errors.items():
            kwargs = {"strict": True} if module is gnfast else {}
            seen = outputs_and_gradients(module.value_and_input_grad, copy.deepcopy(net), x, **kwargs)
            for name, value in truth.items():
                # A bias before batch norm has no effect.
                if value.norm() > 1e-6:
                    found[name] = found.get(name, 0) + relative_error(seen[name].double(), value)
    for name, error in errors[gnfast].items():
        assert error <= 2 * errors[reference][name], name
