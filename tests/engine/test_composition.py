"""What people put around and inside a call: compilation, graphs, dropout, constants after x, in-place operations."""

import copy
import threading
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo import convert_frame, eval_frame
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.autograd.functional import jacobian
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import gnfast
from gnfast import UnsupportedError, reference
from tests.engine.test_engine import NETWORKS, Called, ResNet, normal
from tests.oracle import (
    assert_agree,
    assert_falls_back,
    assert_matches_double_backward,
    assert_same,
    loss_of,
    outputs_and_gradients,
    relative_error,
)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_code_around_a_call_has_one_graph_break_and_the_right_numbers(x):
    net = ResNet().double()

    def loss(net, x):
        return loss_of(gnfast.normalize_gradient(net, torch.tanh(2 * x), strict=True).sin())

    expected = torch.autograd.grad(loss(net, x), list(net.parameters()))
    compiled = torch.compile(loss, backend="aot_eager")
    actual = torch.autograd.grad(compiled(net, x), list(net.parameters()))
    assert all(relative_error(a, e) < 1e-12 for a, e in zip(actual, expected, strict=True))
    assert torch._dynamo.explain(loss)(net, x).graph_break_count == 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("activation", [nn.ReLU(), nn.SiLU()])
def test_a_compiled_step_leaves_the_passes_of_the_backward_alone(activation, x):
    """The compiler looks into every function that runs below a `backward()`, unless it is told not to."""
    net = nn.Sequential(nn.Conv2d(3, 5, 3), activation, nn.Flatten(), nn.LazyLinear(1)).double()
    net(x)

    def step(x):
        loss = gnfast.normalize_gradient(net, x, strict=True).sum() + gnfast.penalties.r1(net, x, strict=True)
        net.zero_grad()
        loss.backward()

    step(x)
    expected, compiled_files = [p.grad for p in net.parameters()], set()
    hook = convert_frame.register_bytecode_hook(lambda code, _: compiled_files.add(code.co_filename))
    try:
        torch.compile(step, backend="aot_eager")(x)
    finally:
        hook.remove()
    assert all(relative_error(p.grad, e) < 1e-12 for p, e in zip(net.parameters(), expected, strict=True))
    around = {"functional.py", "penalties.py", "uncompiled.py"}
    package = Path(gnfast.__file__).parent
    assert {Path(file).name for file in compiled_files if package in Path(file).parents} <= around
    assert __file__ in compiled_files


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("part", ["whole", "submodule"])
def test_compiled_critics_are_recorded_as_the_python_that_they_were(part, x):
    net = ResNet().double()
    expected = gnfast.normalize_gradient(net, x)
    if part == "whole":
        net = torch.compile(net, backend="aot_eager")
    else:
        net.blocks = torch.compile(net.blocks, backend="aot_eager")
    net(x)
    assert torch.equal(gnfast.normalize_gradient(net, x, strict=True), expected)
    assert relative_error(net(x), gnfast.value_and_input_grad(net, x)[0]) < 1e-12


def test_calls_on_several_threads_leave_the_compiler_as_it_was(x):
    """As DataParallel makes them; here the first to begin is the first to end."""
    first_began, second_began, first_ended = (threading.Event() for _ in range(3))

    def forward(net, x):
        if threading.current_thread() is first:
            first_began.set()
            assert second_began.wait(10)
        else:
            second_began.set()
            assert first_ended.wait(10)
        return F.relu(x * net.w).sum((1, 2, 3))

    net, stance, results = Called(forward, w=normal(7)), eval_frame._stance, []
    first, second = (
        threading.Thread(target=lambda: results.append(gnfast.normalize_gradient(net, x, strict=True)))
        for _ in range(2)
    )
    first.start()
    assert first_began.wait(10)
    second.start()
    first.join()
    first_ended.set()
    second.join()
    assert torch.equal(*results)
    assert eval_frame._stance == stance


@pytest.mark.gpu
def test_cuda_graph_capture():
    net, x = ResNet().cuda(), torch.randn(4, 3, 8, 8, device="cuda")
    parameters = list(net.parameters())

    def step():
        f_hat, norm = gnfast.normalize_gradient(net, x, strict=True, return_grad_norm=True)
        return torch.autograd.grad(f_hat.square().sum() + norm.sum(), parameters)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for seed in range(2):
        torch.manual_seed(seed)
        x.copy_(torch.randn_like(x))
        graph.replay()
        for actual, expected in zip(captured, step(), strict=True):
            assert relative_error(actual, expected) < 1e-5


def dropped(net, x):
    return net.out(net.entries(net.maps(F.leaky_relu(net.conv(x), 0.2))).flatten(1))


def test_dropout_draws_the_mask_that_pytorch_would_draw(x):
    parts = {"conv": nn.Conv2d(3, 4, 3), "out": nn.Linear(60, 1)}
    net = Called(dropped, **parts, entries=nn.Dropout(0.4), maps=nn.Dropout2d(0.3, inplace=True)).double()

    def seeded(function):
        def run(net, x, **options):
            torch.manual_seed(5)
            result = function(net, x, **options)
            return result, torch.rand(1, dtype=torch.float64, requires_grad=True) * 1

        return run

    actual = outputs_and_gradients(seeded(gnfast.normalize_gradient), net, x, strict=True)
    assert_same(actual, outputs_and_gradients(seeded(reference.normalize_gradient), net, x))
    assert_matches_double_backward(net.eval(), x)


def noisy(net, x):
    """Constants that take their shape, dtype or device from x-dependent tensors."""
    grid = torch.linspace(-1, 1, x.shape[-1]).to(x).expand(x.shape[0], 1, *x.shape[2:])
    h = net.conv(torch.cat([x, grid, torch.ones_like(x)[:, :1]], 1))
    h = h + 0.1 * net.gain.expand_as(h) * h.new_full((1,), 0.5)
    return (F.relu(h) * torch.full_like(h, 0.7)).flatten(1).sum(1, keepdim=True)


def in_place(net, x):
    h = net.conv(x).clamp_(-1, 1.5)
    h += net.skip(x)
    h.mul_(1.3).abs_()
    F.hardtanh_(h, -2, 2)
    F.relu6(h, inplace=True)
    return F.threshold(h, 0.1, -0.2, True).sum((1, 2, 3))


def strided(net, x):
    """Not contiguous inside."""
    h = F.relu(net.conv(x)[:, :, ::2].transpose(2, 3))
    return net.out(F.relu(h.permute(0, 2, 3, 1)[..., 1:] - 0.1).mean((1, 2)).repeat(1, 2)[:, :4])


@pytest.mark.parametrize(
    "make",
    [
        lambda: Called(noisy, conv=nn.Conv2d(5, 4, 3), gain=normal(1, 4, 1, 1)),
        lambda: Called(in_place, conv=nn.Conv2d(3, 4, 3), skip=nn.Conv2d(3, 4, 3)),
        lambda: Called(strided, conv=nn.Conv2d(3, 4, 3), out=nn.Linear(4, 1)),
        lambda: gnfast.rewrite(ResNet()),
    ],
    ids=["constants after the shape of x", "any activation in place", "strided", "rewritten"],
)
def test_critics_that_match_double_backward(make, x):
    assert_matches_double_backward(make().double(), x)


@pytest.mark.parametrize("batch", [1, 4])
def test_upsampling_before_convolutions_is_rewritten_exactly(batch):
    def unet(net, x):
        h = F.leaky_relu(net.down(x), 0.2)
        h = F.leaky_relu(net.up(F.interpolate(h, scale_factor=2)), 0.2)
        h = F.leaky_relu(net.point(F.interpolate(h, scale_factor=(1, 3))), 0.2)
        h = torch.cat([h, F.interpolate(x, size=h.shape[2:])], 1)
        return net.out(F.interpolate(h, scale_factor=2)).mean((1, 2, 3))

    down, up = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 6, 3, 1, 1, groups=2)
    point, out = nn.Conv2d(6, 5, 1), nn.Conv2d(8, 1, 5, padding=2, bias=False)
    net, x = Called(unet, down=down, up=up, point=point, out=out).double(), normal(batch, 3, 6, 4)
    assert_matches_double_backward(net, x, rewrite=True)
    assert_matches_double_backward(net, x, rewrite=False)
    merged, plain = gnfast.trace(net, x), gnfast.trace(net, x, rewrite=False)
    labels = [node.op.label() for node in merged.nodes]
    assert "conv_transpose2d s2 p1 g2" in labels and "conv_transpose2d s2 p2" in labels
    names = [node.submodule for node in merged.nodes]
    assert labels[names.index("point") + 1] == "upsample nearest ×(1, 3)", "the 1x1 convolution comes first"
    assert merged.flops()["forward"] < 0.6 * plain.flops()["forward"]


def test_weights_of_several_dtypes_meet_as_in_pytorch(x):
    def mixed(net, x):
        h = net.conv(x.float())
        return (F.relu(h.double()) * net.gain + h).sum((1, 2, 3))

    net = Called(mixed, conv=nn.Conv2d(3, 4, 3), gain=normal(4, 1, 1))
    f, g = gnfast.value_and_input_grad(net, x, strict=True)
    assert f.dtype == torch.float64 and relative_error(f, net(x)) < 1e-6
    expected = reference.value_and_input_grad(net, x)[1]
    assert g.dtype == expected.dtype and relative_error(g, expected) < 1e-6


def test_products_of_mismatched_dtypes_are_the_networks_own_error(x):
    with pytest.raises(RuntimeError, match=r"scalar type|same"):
        gnfast.normalize_gradient(nn.Sequential(nn.Conv2d(3, 1, (5, 7)), nn.ReLU()).float(), x)


def test_replicas_of_a_wrapped_critic_are_independent(x):
    wrapped = gnfast.GradientNorm(NETWORKS["spectral-norm"]().double(), strict=True)
    twin = copy.deepcopy(wrapped)
    before = twin(x)
    with torch.no_grad():
        wrapped.net[3].weight.mul_(2)
    assert torch.equal(twin(x), before) and not torch.equal(wrapped(x), before)


def reads_what_einsum_views(net, x):
    h = x * net.w
    return F.relu(torch.einsum("bchw->bhwc", h)).sum((1, 2, 3)) + (h * net.w).sum((1, 2, 3))


FOUND = {
    "einsum of one factor is a view": lambda: Called(reads_what_einsum_views, w=normal(7)),
    "einsum of x is a view of x": lambda: Called(lambda net, x: F.relu(torch.einsum("bchw->bhwc", x)).sum((1, 2, 3))),
    "division by integers": lambda: Called(
        lambda net, x: F.relu(x / net.i).sum((1, 2, 3)), i=torch.tensor([3, 7, 9, 11, 13, 3, 5])
    ),
    "a multiple of integers added": lambda: Called(
        lambda net, x: F.relu(torch.add(x, net.i, alpha=0.3)).sum((1, 2, 3)), i=torch.arange(7)
    ),
    "maximum with minus infinity": lambda: Called(
        lambda net, x: (torch.maximum(x * net.w, net._k) * net.w).sum((1, 2, 3)),
        w=normal(7),
        _k=torch.tensor([0, 0, -torch.inf, 0, 1, 2, 0], dtype=torch.float64),
    ),
    "amax beside minus infinity": lambda: Called(
        lambda net, x: ((x * net.w + net._k).amax((2, 3)) * net.v).sum(1),
        w=normal(7),
        v=normal(3),
        _k=torch.tensor([0, 0, 0, 1, 0, -torch.inf, 0], dtype=torch.float64),
    ),
    "maximum of padded tensors": lambda: Called(
        lambda net, x: torch.maximum(
            F.pad(x * net.w, (1, 1, 1, 1), value=-torch.inf), F.pad(x * net.w, (1, 1, 1, 1))
        ).sum((1, 2, 3)),
        w=normal(7),
    ),
    "a bias per sample": lambda: Called(
        lambda net, x: F.relu(F.linear(x.flatten(1), net.w, net.b)).sum(1), w=normal(6, 105), b=normal(4, 6)
    ),
    "a linear layer without output axis": lambda: Called(lambda net, x: F.linear(x.flatten(1), net.w), w=normal(105)),
    "prelu of logits": lambda: Called(lambda net, x: F.prelu(x.sum((1, 2, 3)), net.w), w=normal(1)),
    "cat with an empty vector": lambda: Called(
        lambda net, x: torch.cat([x.new_zeros(0), x * net.w], 1).sum((1, 2, 3)), w=normal(7)
    ),
    "axes in lists": lambda: Called(
        lambda net, x: F.relu(torch.flip(x, dims=[2]) * net.w + torch.roll(x, shifts=[1, 2], dims=[2, 3])).sum(
            (1, 2, 3)
        ),
        w=normal(7),
    ),
    "the values of a pooling with indices": lambda: Called(
        lambda net, x: (
            sum(
                F.relu(pool(x * net.w)[0]).sum((1, 2, 3))
                for pool in (
                    lambda h: F.max_pool2d_with_indices(h, 2),
                    lambda h: F.max_pool2d(h, 3, 1, return_indices=True),
                    lambda h: F.adaptive_max_pool2d(h, (None, 3), return_indices=True),
                )
            )
            + F.max_pool1d(x.flatten(1, 2), 2, padding=1).sum((1, 2))
        ),
        w=normal(7),
    ),
    "matmul with axes of size 1": lambda: Called(lambda net, x: F.relu(x @ net.w).sum((1, 2, 3)), w=normal(1, 1, 7, 3)),
}


@pytest.mark.parametrize("name", FOUND)
def test_found_by_random_networks(name, x):
    before = x.clone()
    assert_matches_double_backward(FOUND[name](), x)
    assert torch.equal(x, before)


def uses_a_temporary_twice(net, x):
    k = net.w * 1
    h = x + k
    k.mul_(2)
    return F.relu(h + k).sum((1, 2, 3))


def changes_what_contiguous_may_have_copied(net, x):
    h = (x * net.w).permute(0, 2, 3, 1)
    y = h.contiguous()
    y.relu_()
    return h.sum((1, 2, 3)) + y.sum((1, 2, 3))


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (uses_a_temporary_twice, "changes in place a tensor of shape"),
        (changes_what_contiguous_may_have_copied, "views are in use"),
        (lambda net, x: x.sum((1, 2, 3)) * float(x.abs().max()), "Tensor.__float__"),
    ],
)
def test_refused_since_random_networks(function, reason, x):
    assert_falls_back(Called(function, w=normal(7), _count=normal(7)), x, match=reason)


@pytest.mark.filterwarnings("ignore::gnfast.FallbackWarning")
def test_verdicts_are_per_argument(x):
    def forward(net, x, smooth=False):
        net._count.add_(1)
        h = x * net.w
        return (h.tanh() if smooth else h.relu()).sum((1, 2, 3))

    net = Called(forward, w=normal(7), _count=torch.zeros(()))
    gnfast.normalize_gradient(net, x)
    gnfast.normalize_gradient(net, x, smooth=True)
    gnfast.normalize_gradient(net, x, smooth=True)
    assert net._count == 3, "state advances once per call"
    gnfast.normalize_gradient(net, x, strict=True)


def dual_numbers(f, tensors, tangents):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(f(*map(forward_ad.make_dual, tensors, tangents))).tangent


def of_several_critics(f, tensors, tangents):
    stacked = [torch.stack([t, s]) for t, s in zip(tangents, tensors, strict=True)]
    return tuple(part[1] for part in torch.func.vmap(torch.func.jacrev(f, tuple(range(len(tensors)))))(*stacked))


TRANSFORMS = {
    "func.jacrev": lambda f, tensors, _: torch.func.jacrev(f, tuple(range(len(tensors))))(*tensors),
    "func.functionalize": lambda f, tensors, _: jacobian(torch.func.functionalize(f), tensors),
    "func.vmap": of_several_critics,
    "func.jvp": lambda f, tensors, tangents: torch.func.jvp(f, tensors, tangents)[1],
    "forward_ad": dual_numbers,
    "forward_ad without gradients": torch.no_grad()(dual_numbers),
    "forward_ad by jacobian": lambda f, tensors, _: jacobian(f, tensors, vectorize=True, strategy="forward-mode"),
    "make_fx": lambda f, tensors, tangents: jacobian(make_fx(f)(*tangents), tensors),
}


@pytest.mark.filterwarnings("ignore::gnfast.FallbackWarning")
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Softplus])
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transforms_go_through_double_backward(transform, activation, x):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), activation(), nn.AvgPool2d(3), nn.Flatten(), nn.Linear(4, 1)).double()
    names, weights = zip(*net.named_parameters(), strict=True)
    tensors = (x, *(weight.detach() for weight in weights))
    tangents = tuple(torch.randn_like(t) for t in tensors)

    def normalised(run):
        def function(x, *weights):
            given = dict(zip(names, weights, strict=True))
            return run(Called(lambda _, x: torch.func.functional_call(net, given, x)), x)

        return function

    truth = jacobian(normalised(reference.normalize_gradient), tensors)
    actual = TRANSFORMS[transform](normalised(gnfast.normalize_gradient), tensors, tangents)
    if isinstance(actual, torch.Tensor):
        truth = [sum((j * t).flatten(2).sum(2) for j, t in zip(truth, tangents, strict=True))]
        actual = [actual]
    assert all(relative_error(a, e) < 1e-12 for a, e in zip(actual, truth, strict=True))
    with pytest.raises(UnsupportedError, match=transform.split(".")[0].split()[0]):
        TRANSFORMS[transform](normalised(partial(gnfast.normalize_gradient, strict=True)), tensors, tangents)


@pytest.mark.parametrize("batched", ["is_grads_batched", "vmap"])
def test_batches_of_gradients_are_refused_by_name(batched, x):
    net = ResNet().double()
    for f_hat in (gnfast.normalize_gradient(net, x), gnfast.value_and_grad_norm(net, x)[1]):
        several = torch.randn(3, *f_hat.shape, dtype=x.dtype)

        def gradients(f_hat, given, **options):
            return torch.autograd.grad(f_hat, list(net.parameters()), given, retain_graph=True, **options)

        with pytest.raises(UnsupportedError, match=r"is_grads_batched.*one gradient at a time"):
            if batched == "vmap":
                torch.func.vmap(partial(gradients, f_hat))(several)
            else:
                gradients(f_hat, several, is_grads_batched=True)
    expected = [gradients(gnfast.normalize_gradient(net, x), g) for g in several.reshape(3, 4, 1)]
    f_hat = gnfast.normalize_gradient(net, x, impl="reference")
    actual = gradients(f_hat, several.reshape(3, 4, 1), is_grads_batched=True)
    assert all(
        relative_error(a, torch.stack(e)) < 1e-12 for a, e in zip(actual, zip(*expected, strict=True), strict=True)
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_recorders_of_inference_are_refused_by_name(impl, x):
    critic = gnfast.GradientNorm(ResNet().double(), impl=impl)
    with pytest.raises(UnsupportedError, match=r"torch.jit.trace would .*; give it the critic alone"):
        torch.jit.trace(critic, x)
    with pytest.raises(UnsupportedError, match=r"torch.export would .*; give it the critic alone"):
        torch.export.export(critic, (x,), strict=False)
    with pytest.raises(Exception, match="gnfast runs the network's own Python on every call"):
        torch.compile(critic, backend="eager", fullgraph=True)(x)
    assert torch.jit.trace(critic.net, x)(x).equal(critic.net(x))


class Halved(TorchFunctionMode):
    """A mode of somebody else's, which changes what functions compute."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        return 0.5 * result if func in (F.linear, F.conv2d) else result


def test_modes_around_a_call_are_left_to_double_backward():
    net, x = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1)).double(), normal(4, 6)
    ordinary = gnfast.normalize_gradient(net, x, strict=True)
    with Halved():
        expected = reference.normalize_gradient(net, x)
        with pytest.warns(gnfast.FallbackWarning, match="Halved"):
            assert torch.equal(gnfast.normalize_gradient(net, x), expected)
        with pytest.raises(UnsupportedError, match="Halved"):
            gnfast.normalize_gradient(net, x, strict=True)
    assert relative_error(ordinary, expected) > 0.1
    with torch.device("cpu"):
        assert torch.equal(gnfast.normalize_gradient(net, x, strict=True), ordinary)


def test_modes_around_a_rewritten_module_see_its_functions():
    net, x = nn.Sequential(nn.Conv2d(3, 2, 3), nn.AvgPool2d(2)).double(), normal(2, 3, 6, 6)
    with Halved():
        torch.testing.assert_close(gnfast.rewrite(net)(x), net(x))


def test_fake_tensors_go_through_double_backward():
    with FakeTensorMode(), pytest.warns(gnfast.FallbackWarning, match="FakeTensor"):
        net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1))
        assert gnfast.normalize_gradient(net, torch.randn(5, 6)).shape == (5, 1)


def test_modes_that_count_do_not_see_the_recording():
    net, x = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(45, 1)), torch.randn(2, 3, 5, 5)
    counts = []
    for _ in range(2):
        with FlopCounterMode(display=False) as counter:
            gnfast.normalize_gradient(net, x).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1]


@pytest.mark.filterwarnings("ignore::gnfast.FallbackWarning")
def test_checkpointing_around_a_network_that_is_refused(x):
    """The tensors that a recording saves are the same the second time, or checkpointing takes them for others."""

    def forward(net, x):
        # Computed, and square: one that is saved fits in another's place.
        return (F.elu((x @ (net.a * net._mask)).relu() @ (net.b * net._mask)) @ (net.c * net._mask)).sum(1)

    net, x = Called(forward, a=normal(8, 8), b=normal(8, 8), c=normal(8, 8), _mask=normal(8, 8)), normal(8, 8)
    expected = outputs_and_gradients(reference.normalize_gradient, net, x)

    def checkpointed(net, x):
        return checkpoint(lambda x: gnfast.normalize_gradient(net, x), x, use_reentrant=False)

    for _ in range(5):
        assert_same(outputs_and_gradients(checkpointed, net, x), expected, 1e-12)


@pytest.mark.filterwarnings("ignore::gnfast.FallbackWarning")
@pytest.mark.parametrize("call", [gnfast.normalize_gradient, reference.normalize_gradient])
def test_x_among_the_further_arguments_counts_with_x(call):
    net = Called(lambda net, x, target: (x * net.w - target).abs().sum(1), w=normal(6))
    x = normal(4, 6)
    x_with_gradient = x.clone().requires_grad_()
    g = torch.autograd.grad(net(x_with_gradient, x_with_gradient).sum(), x_with_gradient)[0]
    f = net(x, x)
    expected = f / (g.norm(dim=1) + f.abs())
    for given in (x, x_with_gradient):
        torch.testing.assert_close(call(net, given, given), expected)
        torch.testing.assert_close(call(net, given, target=given), expected)
        with torch.no_grad():
            torch.testing.assert_close(call(net, given, given), expected)


@pytest.mark.filterwarnings("ignore::gnfast.FallbackWarning")
@pytest.mark.parametrize("impl", ["auto", "reference"])
@pytest.mark.parametrize("method", [*gnfast.heads.METHODS, lambda f, n: f / (n + f.abs())])
def test_a_batch_of_one_may_be_squeezed_to_a_number(method, impl):
    net = Called(lambda net, x: F.elu(x @ net.a).matmul(net.b).squeeze(), a=normal(6, 5), b=normal(5, 1))
    x = normal(2, 6)
    whole = gnfast.normalize_gradient(net, x, method=method, impl=impl)
    one = gnfast.normalize_gradient(net, x[:1], method=method, impl=impl)
    assert one.shape == ()
    torch.testing.assert_close(one, whole[0])
    expected = torch.autograd.grad(whole[0], net.a)[0]
    torch.testing.assert_close(torch.autograd.grad(one, net.a)[0], expected)


@pytest.mark.filterwarnings("ignore::gnfast.FallbackWarning")
def test_outputs_that_are_no_logits_are_named():
    x = normal(3, 6)
    for forward, message in ((lambda net, x: x.sum(), "a number"), (lambda net, x: (x, x), "got a tuple")):
        with pytest.raises(gnfast.InputError, match=message):
            gnfast.normalize_gradient(Called(forward), x)


def test_another_output_of_the_same_node_does_not_depend_on_x():
    net = Called(lambda net, x, other: F.relu(x * net.w).sum(1) * other.sum(1), w=normal(6))
    x, other = (normal(4, 12).requires_grad_() * 2).chunk(2, 1)
    assert_agree(lambda way: [way.normalize_gradient(net, x, other)], 1e-12)
    with pytest.raises(UnsupportedError, match="computed from x"):
        gnfast.normalize_gradient(net, x, x * 2, strict=True)
