"""Rewritten modules against the modules as stated, in float64: outputs, every gradient, and what must not go wrong."""

import copy
import ctypes
import operator
import pickle
import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils._python_dispatch import TorchDispatchMode

import gnfast
from gnfast import InputError, UnsupportedError, models
from gnfast.bench.count import work
from gnfast.rewriting.deferred import Deferred
from gnfast.rewriting.folding import fold_avg_pool, fold_pays, fold_upsample
from tests.oracle import loss_of

TOLERANCE = 1e-12


class Net(nn.Module):
    """A function of (net, x), with a 3×3 convolution `conv`, a 1×1 `point` and a BatchNorm `norm` of 4 channels."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.conv, self.point, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.function(self, x)


class Convolutions(TorchDispatchMode):
    """Notes each convolution that is computed: kernel, stride, whether transposed."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution.default:
            self.seen.append((tuple(args[1].shape[2:]), tuple(args[3]), args[6]))
        if func is torch.ops.aten.conv_transpose2d.input:  # Seen in inference mode only.
            self.seen.append((tuple(args[1].shape[2:]), tuple(args[3]), True))
        if func.namespace == "gnfast" and func._opname in ("winograd_conv2d", "winograd_conv2d_input_grad"):
            size = args[1].shape[2]
            self.seen.append(((size, size), (size - 2, size - 2), func._opname.endswith("input_grad")))
        return func(*args, **(kwargs or {}))


PLAIN, POINT = ((3, 3), (1, 1), False), ((1, 1), (1, 1), False)
POOLED, UPSAMPLED = ((4, 4), (2, 2), False), ((4, 4), (2, 2), True)


def everything(module, net, x):
    """What a user can see of a call and its backward, by name."""
    x = x.detach().clone().requires_grad_()
    with Convolutions() as convolutions:
        output = module(x)
    outputs = output if isinstance(output, tuple) else (output,)
    assert all(type(tensor) is torch.Tensor for tensor in outputs)
    loss_of(*outputs).backward()
    seen = {f"output {i}": tensor.detach() for i, tensor in enumerate(outputs)} | {"x.grad": x.grad}
    seen |= {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    return seen | dict(net.named_buffers()), convolutions.seen


def assert_same(net, x, expected_convolutions=None, tolerance=TOLERANCE):
    """The rewritten net against the net as stated; which convolutions ran forward, where that is given."""
    stated, rewritten = copy.deepcopy(net), copy.deepcopy(net)
    expected, _ = everything(stated, stated, x)
    actual, convolutions = everything(gnfast.rewrite(rewritten), rewritten, x)
    assert actual.keys() == expected.keys()
    # The gradient of a bias before batch norm is 0 up to the rounding of the others.
    largest = max(tensor.norm().item() for tensor in expected.values() if tensor.is_floating_point())
    for name, tensor in expected.items():
        assert actual[name].shape == tensor.shape and actual[name].dtype == tensor.dtype
        scale = tensor.double().norm().item()
        error = (actual[name] - tensor).double().norm().item() / (scale if scale > 1e-9 * largest else largest)
        assert error <= tolerance, f"{name} differs by {error:.2e}"
    if expected_convolutions is not None:
        assert sorted(convolutions) == sorted(expected_convolutions)


def assert_function_same(function, expected_convolutions=None, size=(2, 4, 8, 10)):
    assert_same(Net(function).double(), torch.randn(size, dtype=torch.float64), expected_convolutions)


# The shipped networks


@pytest.mark.parametrize("family", ["resnet", "dcgan"])
@pytest.mark.parametrize("resolution", [32, 48])
def test_shipped_networks(family, resolution):
    generator, critic = models.build(family, resolution=resolution, width=1 / 16)
    assert_same(critic.double(), torch.randn(3, 3, resolution, resolution, dtype=torch.float64))
    if family == "resnet":
        assert_same(generator.double(), torch.randn(3, 128, dtype=torch.float64))


@pytest.mark.parametrize("resolution", [32, 48])
def test_resnets_use_as_few_flops_as_promised(resolution):
    generator, critic = models.build("resnet", resolution=resolution)
    images = torch.randn(1, 3, resolution, resolution)
    for net, x, bound in ((generator, torch.randn(1, 128), 0.72), (critic, images, 0.63)):
        modules = net, gnfast.rewrite(net)
        stated, rewritten = (work(lambda m=m, x=x: m(x).sum().backward()).flops for m in modules)
        assert rewritten <= bound * stated


# Folding and merging


FACTORS = [(2, 2), (3, 3), (2, 1), (1, 3), (2, 3)]
KERNELS = [(1, 1), (3, 3), (5, 5), (2, 4), (1, 3)]


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("factor", FACTORS)
def test_folded_kernels(factor, kernel, groups):
    x = torch.randn(2, 4, 9, 11, dtype=torch.float64)
    weight = torch.randn(8, 4 // groups, *kernel, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(8, dtype=torch.float64)
    for padding in {(0, 0), tuple(k // 2 for k in kernel), tuple(k - 1 for k in kernel), (6, 1)}:
        stated = F.avg_pool2d(F.conv2d(x, weight, bias, 1, padding, 1, groups), factor)
        folded = F.conv2d(x, fold_avg_pool(weight, factor), bias, factor, padding, 1, groups)
        torch.testing.assert_close(folded, stated, rtol=TOLERANCE, atol=TOLERANCE)
        if all(p < k for p, k in zip(padding, kernel, strict=True)):
            stated = F.conv2d(F.interpolate(x, scale_factor=factor), weight, bias, 1, padding, 1, groups)
            cropping = [k - 1 - p for k, p in zip(kernel, padding, strict=True)]
            upsampled = fold_upsample(weight, factor, groups)
            folded = F.conv_transpose2d(x, upsampled, bias, factor, cropping, groups=groups)
            torch.testing.assert_close(folded, stated, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("factor", [(2, 2), (3, 1)])
def test_folding_is_twice_differentiable(factor):
    weight = torch.randn(2, 1, 2, 3, dtype=torch.float64, requires_grad=True)
    for fold in fold_avg_pool, fold_upsample:
        torch.autograd.gradcheck(lambda w, fold=fold: fold(w, factor), weight)
        torch.autograd.gradgradcheck(lambda w, fold=fold: fold(w, factor).square(), weight)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_folding_keeps_dtype_and_layout_and_sums_in_float32(dtype, layout):
    weight = torch.randn(6, 4, 3, 3).to(dtype).to(memory_format=layout)
    for folded, exact in (
        (fold_avg_pool(weight, (2, 2)), fold_avg_pool(weight.double(), (2, 2))),
        (fold_upsample(weight, (3, 3)), fold_upsample(weight.double(), (3, 3))),
    ):
        assert folded.dtype == dtype and folded.is_contiguous(memory_format=layout)
        rounding = torch.finfo(dtype).eps / 2 + 4 * torch.finfo(torch.float32).eps
        assert ((folded.double() - exact).abs() <= rounding * weight.abs().max().double() * 9).all()
        if dtype == torch.bfloat16:
            torch.testing.assert_close(folded, exact.float().to(dtype), rtol=0.01, atol=1e-6)


def test_what_pays():
    assert fold_pays((3, 3), (2, 2)) and fold_pays((2, 2), (2, 2)) and fold_pays((3, 3), (2, 1))
    assert not fold_pays((1, 1), (2, 2)) and not fold_pays((3, 3), (1, 1)) and not fold_pays((1, 1), (3, 1))


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("padding", [0, 1, "same", "valid", 4])
@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("factor", [2, 3, (2, 1)])
def test_sequences(factor, kernel, padding, groups, bias):
    conv = nn.Conv2d(4, 6, kernel, padding=padding, groups=groups, bias=bias)
    x = torch.randn(2, 4, 7, 9, dtype=torch.float64)
    stride = factor if isinstance(factor, tuple) else (factor, factor)
    folded = tuple(kernel + m - 1 for m in stride)
    pooled = POINT if kernel == 1 else (folded, stride, False)
    upsampled = POINT if kernel == 1 else (folded, stride, True)
    if padding == 4 and kernel == 3:
        upsampled = PLAIN  # It would have to crop a negative number of pixels.
    assert_same(nn.Sequential(conv, nn.AvgPool2d(factor)).double(), x, [pooled])
    assert_same(nn.Sequential(nn.Upsample(scale_factor=factor), conv).double(), x, [upsampled])


UNMERGED = {
    "stride": nn.Sequential(nn.Conv2d(4, 4, 3, stride=2), nn.AvgPool2d(2)),
    "dilation": nn.Sequential(nn.Conv2d(4, 4, 3, dilation=2), nn.AvgPool2d(2)),
    "pool stride": nn.Sequential(nn.Conv2d(4, 4, 3), nn.AvgPool2d(3, 2)),
    "pool padding": nn.Sequential(nn.Conv2d(4, 4, 3), nn.AvgPool2d(2, padding=1)),
    "ceil mode": nn.Sequential(nn.Conv2d(4, 4, 4), nn.AvgPool2d(2, ceil_mode=True)),
    "divisor": nn.Sequential(nn.Conv2d(4, 4, 3), nn.AvgPool2d(2, divisor_override=3)),
    "bilinear": nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(4, 4, 3)),
    "fraction": nn.Sequential(nn.Upsample(scale_factor=1.5), nn.Conv2d(4, 4, 3)),
    "uneven size": nn.Sequential(nn.Upsample((13, 25)), nn.Conv2d(4, 4, 3)),
    "wide padding": nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(4, 4, 3, padding=3)),
    "activation between": nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(True), nn.AvgPool2d(2)),
    "reflect": nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")),
}


@pytest.mark.parametrize("name", UNMERGED)
def test_what_is_left_alone(name):
    net = UNMERGED[name].double()
    conv = next(module for module in net if isinstance(module, nn.Conv2d))
    x = torch.randn(2, 4, 9, 11, dtype=torch.float64)
    assert_same(net, x, [(conv.kernel_size, conv.stride, False)])


def test_circular_padding_merges_with_the_pooling():
    conv = nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")
    assert_same(nn.Sequential(conv, nn.AvgPool2d(2)).double(), torch.randn(2, 4, 6, 8, dtype=torch.float64), [POOLED])


def test_upsampling_to_a_size():
    net = nn.Sequential(nn.Upsample(size=(12, 24)), nn.Conv2d(4, 4, 3, padding=1))
    assert_same(net.double(), torch.randn(2, 4, 6, 12, dtype=torch.float64), [UPSAMPLED])


@pytest.mark.parametrize("factor", [*range(2, 10), 40])
def test_factors_that_count_as_integer_repeat_each_pixel(factor):
    line = torch.arange(1000.0)
    plane = line.expand(1, 1, 2, -1)
    upsampled = F.interpolate(plane, scale_factor=(1.0, float(factor)))
    assert torch.equal(upsampled[0, 0, 0], line.repeat_interleave(factor))


SUMS = {
    "two convolutions": (lambda net, x: F.avg_pool2d(net.conv(x) + net.point(x), 2), [POOLED, POINT]),
    "identity": (lambda net, x: F.avg_pool2d(net.conv(x.relu()) + x, 2), [POOLED]),
    "identity first": (lambda net, x: F.avg_pool2d(torch.add(x, net.conv(x.relu())), 2), [POOLED]),
    "three terms": (lambda net, x: F.avg_pool2d(x + net.conv(x) + (net.point(x) + x.relu()), 2), [POOLED, POINT]),
    "upsampled term": (
        lambda net, x: F.avg_pool2d(net.conv(x) + F.interpolate(x[..., :4, :5], scale_factor=2), 2),
        [POOLED],
    ),
    "pre-pooled shortcut": (
        lambda net, x: F.avg_pool2d(net.conv(x), 2) + net.point(F.avg_pool2d(x, 2)),
        [POOLED, POINT],
    ),
    "twice the same": (lambda net, x: (lambda h: F.avg_pool2d(h + h, 2))(net.conv(x)), [POOLED, POOLED]),
    "a term that is used again": (
        lambda net, x: (lambda h: F.avg_pool2d((h + x).relu() + h + x, 2))(net.conv(x)),
        [PLAIN],
    ),
    "not pooled": (lambda net, x: (net.conv(x) + x).relu(), [PLAIN]),
    "scaled": (lambda net, x: F.avg_pool2d(torch.add(x, net.conv(x), alpha=2), 2), [PLAIN]),
    "broadcast": (lambda net, x: F.avg_pool2d(net.conv(x) + x[:, :1], 2), [PLAIN]),
    "number": (lambda net, x: F.avg_pool2d(1 + net.conv(x), 2), [PLAIN]),
}


@pytest.mark.parametrize("name", SUMS)
def test_sums(name):
    function, convolutions = SUMS[name]
    assert_function_same(function, convolutions)


def test_a_convolution_with_two_readers():
    def function(net, x):
        h = net.conv(x)
        return F.avg_pool2d(h, 2) + F.max_pool2d(h, 2) + F.avg_pool2d(h, 2)

    # The third finds it computed.
    assert_function_same(function, [POOLED, PLAIN])


def test_second_derivatives():
    def function(net, x):
        y = net.point(
            F.interpolate(net.conv(F.interpolate(F.avg_pool2d(net.conv(x), 2), scale_factor=2)).sin(), scale_factor=2)
        )
        (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        return gradient

    assert_function_same(function)


# Writing in place


def write_to_input_of_pending(net, x):
    x = x.sin()
    h = net.conv(x)
    x.detach().mul_(2)
    return F.avg_pool2d(h, 2).detach() + net.point(F.avg_pool2d(x, 2))


def write_running_statistics(net, x):
    h = F.conv2d(x, net.point.weight, net.norm.running_mean)
    k = net.norm(x)
    return F.avg_pool2d(h, 2).sum() + k


def write_to_the_weight(net, x):
    weight = net.conv.weight.detach().clone()
    h = F.conv2d(x, weight, padding=1)
    weight.data.clamp_(0)
    return F.avg_pool2d(h, 2).detach() + F.avg_pool2d(F.conv2d(x, weight, padding=1), 2)


def write_to_the_source_of_an_upsampling(net, x):
    y = x * 1
    h = F.interpolate(y, scale_factor=2)
    y.relu_()
    return net.conv(h).sum() + y


def write_to_the_result(net, x):
    h = net.conv(x)
    F.relu(h, inplace=True)
    k = net.conv(x)
    k += h
    k[:, 1:] *= 2
    alias = k.view(2, -1)
    alias.mul_(3)
    return F.avg_pool2d(h, 2).sum() + k


def write_to_a_term(net, x):
    h = net.conv(x)
    total = h + x
    h.relu_()
    return F.avg_pool2d(total, 2).sum() + h


def write_to_a_term_that_was_read(net, x):
    h = net.conv(x)
    total = h + x
    view = h.view(-1)
    view.mul_(2)
    return F.avg_pool2d(total, 2).sum() + h


def change_the_shape_in_place(net, x):
    h = net.conv(x)
    h.unsqueeze_(0)
    assert h.shape == (1, 2, 4, 8, 10) and h.dim() == 5
    return h


def written_to_the_input(write):
    def function(net, x):
        y = x.detach().clone()
        h = F.conv2d(y, net.conv.weight.detach())
        write(y)
        return F.avg_pool2d(h, 2) * y.mean() + x.mean()

    return function


def written_to_the_source(write):
    def function(net, x):
        y = x * 1
        h = F.interpolate(y, scale_factor=2)
        write(y.detach())
        return net.conv(h).detach() + y.mean()

    return function


def written_to_the_kernel(write):
    def function(net, x):
        weight = net.conv.weight.detach().clone()
        h = F.conv2d(x.detach(), weight, padding=1)
        write(weight)
        return F.avg_pool2d(h, 2) + x.mean() * weight.mean()

    return function


WRITES = {
    "by keyword": lambda y: F.relu(y, inplace=True),
    "by position": lambda y: F.leaky_relu(y, 0.3, True),
    "by out": lambda y: torch.sin(y.clone(), out=y),
    "to a slice": lambda y: operator.setitem(y, (slice(None), 0), 7),
    "by data": lambda y: setattr(y, "data", torch.ones_like(y)),
    "by torch.ops": lambda y: torch.ops.aten.relu_(y.view(-1)),
    "by foreach": lambda y: torch._foreach_mul_([y[0], y[1]], 2),
}
# Through what is not a tensor: of memory that was put off.
HANDED_OUT = {
    "numpy": lambda alias: alias.numpy().fill(2),
    "array": lambda alias: np.asarray(alias).fill(2),
    "dlpack": lambda alias: torch.from_dlpack(alias).fill_(2),
    "storage": lambda alias: alias.untyped_storage().fill_(0),
    "pointer": lambda alias: ctypes.memset(alias.data_ptr(), 0, alias.nbytes),
}
WRITERS = {name: value for name, value in list(globals().items()) if name.startswith(("write_", "change_"))}
WRITERS |= {name: written_to_the_input(write) for name, write in WRITES.items()}
WRITERS |= {f"to the source by {name}": written_to_the_source(write) for name, write in HANDED_OUT.items()}
WRITERS |= {f"to the kernel by {name}": written_to_the_kernel(write) for name, write in HANDED_OUT.items()}


@pytest.mark.parametrize("function", WRITERS.values(), ids=WRITERS)
def test_writing_in_place(function):
    assert_function_same(function)


@torch.no_grad()
def test_other_memory_for_what_is_put_off():
    """`set_` has no derivative in PyTorch, and does not go through `__torch_function__`."""
    net, x = Net(lambda net, x: F.avg_pool2d(net.conv(x).set_(x * 1), 2)), torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(gnfast.rewrite(net)(x), net(x))


def test_batch_norm_of_the_input_does_not_hinder_a_merge():
    assert_function_same(lambda net, x: (lambda h: net.norm(x).sum() + F.avg_pool2d(h, 2))(net.conv(x)), [POOLED])


def test_a_write_that_the_call_does_not_show_is_refused():
    def function(net, x):
        table = torch.ones(4, 4)
        h = F.conv2d(x, table[..., None, None])
        F.embedding(torch.tensor([1]), table, max_norm=0.1)
        return F.avg_pool2d(h, 2)

    with pytest.raises(UnsupportedError, match="changed in place"):
        gnfast.rewrite(Net(function))(torch.randn(2, 4, 8, 8))


@pytest.mark.parametrize("legacy", [False, True], ids=["parametrization", "hook"])
def test_spectral_norm_merges_and_keeps_its_state(legacy):
    normalize = torch.nn.utils.spectral_norm if legacy else spectral_norm
    first, second = normalize(nn.Conv2d(4, 4, 3).double()), normalize(nn.Conv2d(4, 4, 3).double())
    net = nn.Sequential(first, nn.AvgPool2d(2), nn.Upsample(scale_factor=2), second)
    assert_same(net, torch.randn(2, 4, 8, 8, dtype=torch.float64), [POOLED, UPSAMPLED])


# Autograd


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h):
        ctx.save_for_backward(h)
        return h * h

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad * ctx.saved_tensors[0]


class DoubleInPlace(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h):
        h.mul_(2)
        ctx.mark_dirty(h)
        return h

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad


class Reverse(torch.autograd.Function):
    """Reads nothing, and changes the gradient."""

    @staticmethod
    def forward(ctx, h):
        ctx.mark_dirty(h)
        return h

    @staticmethod
    def backward(ctx, grad):
        return -grad


class Convolve(torch.autograd.Function):
    """Its forward is a convolution, whose result autograd then makes its own."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        return nn.grad.conv2d_input(x.shape, weight, grad), nn.grad.conv2d_weight(x, weight.shape, grad)


def dirty(net, x):
    h = net.conv(x)
    k = DoubleInPlace.apply(h)
    h.add_(0.5)
    return k * h


def convolved(net, x):
    h = Convolve.apply(x, net.conv.weight)
    k = h.mul_(2)
    return F.avg_pool2d(h, 2).sum() + k


class Kept(torch.autograd.Function):
    """Reads nothing of its input until its backward."""

    @staticmethod
    def forward(ctx, h):
        ctx.save_for_backward(h)
        return torch.zeros(h.shape, dtype=h.dtype)

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0]


def given_to_a_function_after(change):
    """A critic that gives the result of a convolution to custom Functions after something was done to it."""

    def function(net, x):
        h = net.conv(x)
        change(h)
        k = Square.apply(h)
        return k if k.requires_grad else k + x

    return function


def saved_before_it_is_computed(net, x):
    h = net.conv(x)
    return Kept.apply(h) + h.sin()


def hooked_after_a_function_in_place(net, x):
    h = net.conv(x)
    DoubleInPlace.apply(h).register_hook(lambda grad: 3 * grad)
    return Square.apply(h)


def written_with_what_has_a_gradient(net, x):
    h = F.conv2d(x.detach(), net.conv.weight.detach())
    h.mul_(x.mean())
    return Square.apply(h)


CUSTOM = {
    "function after a write": given_to_a_function_after(lambda h: h.mul_(2)),
    "function after a write to a view": given_to_a_function_after(lambda h: h.view(-1).mul_(2)),
    "function after a hook": given_to_a_function_after(lambda h: h.register_hook(lambda grad: 3 * grad)),
    "function after a hook on its node": given_to_a_function_after(
        lambda h: h.grad_fn.register_prehook(lambda grads: (3 * grads[0],))
    ),
    "function after detaching": given_to_a_function_after(torch.Tensor.detach_),
    "function after a write with what has a gradient": written_with_what_has_a_gradient,
    "hook after a function in place": hooked_after_a_function_in_place,
    "function that saves what is computed later": saved_before_it_is_computed,
    "function of a convolution": lambda net, x: Square.apply(net.conv(x)),
    "function and a merge": lambda net, x: (lambda h: F.avg_pool2d(h, 2).sum() + Square.apply(h))(net.conv(x)),
    "function of a sum": lambda net, x: Square.apply(net.conv(x) + net.point(x)),
    "function of an upsampling": lambda net, x: Square.apply(F.interpolate(net.conv(x), scale_factor=3)),
    "function of a weight that depends on x": lambda net, x: Square.apply(F.conv2d(x, net.conv.weight * x.mean())),
    "function in place": dirty,
    "function that only changes the gradient": lambda net, x: F.avg_pool2d(Reverse.apply(net.conv(x)), 2),
    "function that convolves": convolved,
}


@pytest.mark.parametrize("name", CUSTOM)
def test_custom_autograd_functions(name):
    assert_function_same(CUSTOM[name])


def test_a_write_to_what_a_function_has_saved_raises_as_in_pytorch():
    def function(net, x):
        h = net.conv(x)
        k = Square.apply(h)
        h.mul_(2)
        return k + h

    for module in (Net(function), gnfast.rewrite(Net(function))):
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            module(torch.randn(2, 4, 8, 8)).sum().backward()


# What asks for the gradient of h before y's backward; it returns that gradient where it is there at once.
ASKING = {
    "retain_grad": lambda h, y: h.retain_grad(),
    "register_hook": lambda h, y: h.register_hook(print),
    "register_multi_grad_hook": lambda h, y: torch.autograd.graph.register_multi_grad_hook([h], print),
    "hook on the node": lambda h, y: h.grad_fn.register_prehook(print),
    "autograd.grad": lambda h, y: torch.autograd.grad(y.sum(), h, retain_graph=True)[0],
    "autograd.grad by keywords": lambda h, y: torch.autograd.grad(outputs=[y.sum()], inputs=[h], retain_graph=True)[0],
    "autograd.backward": lambda h, y: torch.autograd.backward(y.sum(), retain_graph=True, inputs=[h]) or h.grad,
    "backward": lambda h, y: y.sum().backward(retain_graph=True, inputs=h) or h.grad,
}
AT_ONCE = [name for name in ASKING if "backward" in name or "autograd.grad" in name]


@pytest.mark.parametrize("name", AT_ONCE)
def test_gradients_of_what_is_put_off(name):
    """As PyTorch's where it has not been merged, also where a custom autograd Function has seen it."""

    def function(net, x):
        h, other = net.conv(x), net.conv(x)
        k = Square.apply(h)
        return k + ASKING[name](h, h * h.detach() + F.avg_pool2d(other, 2).mean() + k)

    torch.manual_seed(0)
    net, x = Net(function).double(), torch.randn(2, 4, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(gnfast.rewrite(net)(x), net(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("reentrant", [False, True], ids=["hooks", "reentrant"])
def test_checkpointing(reentrant):
    def body(net, h):
        return F.avg_pool2d(net.conv(h.relu()), 2)

    def function(net, x):
        return torch.utils.checkpoint.checkpoint(body, net, net.conv(x), use_reentrant=reentrant)

    assert_function_same(function)


def test_backward_hooks():
    seen = []
    net = nn.Sequential(nn.Conv2d(4, 4, 3), nn.AvgPool2d(2)).double()
    net[0].register_full_backward_hook(lambda module, grad_input, grad_output: seen.append(grad_output[0]))
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    assert_same(net, x)
    torch.testing.assert_close(seen[0], seen[1])


def test_tensor_hooks_before_the_pooling():
    def function(net, x):
        h = net.conv(x)
        assert h.requires_grad
        h.register_hook(lambda grad: 3 * grad)
        return F.avg_pool2d(h, 2)

    assert_function_same(function, [PLAIN])


@pytest.mark.parametrize("name", ASKING)
@pytest.mark.parametrize("wholly", [True, False], ids=["wholly", "in part"])
def test_asking_for_the_gradient_of_what_is_gone_is_refused(name, wholly):
    def function(net, x):
        h = net.conv(x)
        y = F.avg_pool2d(h, 2) + (0 if wholly else h.sum())
        ASKING[name](h, y)
        return y

    with pytest.raises(UnsupportedError, match="merged"):
        gnfast.rewrite(Net(function))(torch.randn(2, 4, 8, 8))


def test_what_forward_hooks_keep_is_usable_afterwards():
    kept = {}
    net = nn.Sequential(nn.Conv2d(4, 4, 3), nn.AvgPool2d(2), nn.Upsample(scale_factor=2), nn.Conv2d(4, 4, 3))
    for name, module in net.named_children():
        module.register_forward_hook(lambda module, args, output, name=name: kept.update({name: (args[0], output)}))
    x = torch.randn(2, 4, 8, 8)
    with Convolutions() as convolutions:
        y = gnfast.rewrite(net)(x)
    assert sorted(convolutions.seen) == sorted([POOLED, UPSAMPLED, PLAIN])  # The last because a hook wants it.
    y.sum().backward()
    net.zero_grad()
    kept["0"][1].sum().backward()
    torch.testing.assert_close(net[0].bias.grad, torch.full((4,), 72.0))
    h, up = net[0](x), net[2](net[1](net[0](x)))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    torch.testing.assert_close(kept["0"][1].detach().numpy(), h.detach().numpy())
    torch.testing.assert_close(kept["2"][1] + 0, up)
    assert kept["2"][1].shape == up.shape and kept["1"][0] is kept["0"][1] and kept["3"][1] is y
    assert type(pickle.loads(pickle.dumps(kept["0"][1].detach()))) is torch.Tensor


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients(mode):
    generator, _ = models.build("resnet", resolution=32, width=1 / 32)
    z = torch.randn(3, 128)
    with mode(), Convolutions() as convolutions:
        y = gnfast.rewrite(generator.eval())(z)
    assert type(y) is torch.Tensor and not y.requires_grad and y.is_inference() == (mode is torch.inference_mode)
    assert sum(transposed for _, _, transposed in convolutions.seen) == 3
    torch.testing.assert_close(y, generator(z).detach(), rtol=1e-4, atol=1e-5)


def test_grad_mode_is_that_of_the_call():
    def function(net, x):
        with torch.no_grad():
            constant = net.conv(x)
        h = net.conv(x)
        with torch.no_grad():
            pooled = F.avg_pool2d(h, 2)
        return F.avg_pool2d(constant, 2) + pooled + h.mean()

    assert_function_same(function, [PLAIN, PLAIN])


# Types and modes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_autocast(dtype):
    def function(net, x):
        h = net.conv(F.interpolate(x, scale_factor=2))
        deferred = net.conv(F.interpolate(h, scale_factor=2)) + net.point(F.interpolate(h, scale_factor=2))
        kept = net.conv(h)
        with torch.autocast("cpu", enabled=False):
            outside = F.avg_pool2d(net.conv(x), 2)
            kept = kept.to(outside.dtype)
        return h, deferred, F.avg_pool2d(net.conv(h), 2), F.interpolate(net.point(h), scale_factor=2), kept, outside

    net = Net(function).to(dtype)
    x = torch.randn(2, 4, 6, 6, dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected, actual = net(x), gnfast.rewrite(net)(x)
    exact = Net(function).double()
    exact.load_state_dict(net.state_dict())
    for a, e, o in zip(actual, expected, exact(x.double()), strict=True):
        assert a.dtype == e.dtype and a.shape == e.shape
        assert (a - o).norm() <= 2 * (e - o).norm() + 1e-6 * o.norm()
    sum(tensor.float().sum() for tensor in actual).backward()


@pytest.mark.parametrize("kind", ["conv", "upsampled conv", "sum", "upsampling"])
def test_second_derivatives_under_autocast(kind):
    def function(net, x):
        if kind == "conv":
            return net.conv(x)
        if kind == "upsampled conv":
            return net.conv(F.interpolate(x, scale_factor=2))
        return net.conv(x) + net.point(x) if kind == "sum" else F.interpolate(net.point(x), scale_factor=2)

    net = Net(function)
    x = torch.randn(2, 4, 6, 6, requires_grad=True)
    found = []
    for called in (net, gnfast.rewrite(net)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            (g,) = torch.autograd.grad(called(x).float().sin().sum(), x, create_graph=True)
            found.append([g, *torch.autograd.grad(g.sin().sum(), [x, net.conv.weight], allow_unused=True)])
    for a, b in zip(*found, strict=True):
        assert (a is None) == (b is None)
        assert a is None or (a - b).norm() <= 2e-2 * b.norm()


def test_other_kinds_of_arguments_go_to_pytorch():
    rewritten = gnfast.rewrite(Net(lambda net, x: F.avg_pool2d(net.conv(x), 2)))
    sample = torch.randn(4, 8, 8)
    assert torch.equal(rewritten(sample), rewritten.net(sample))
    with pytest.raises(RuntimeError, match="channels"):
        rewritten(torch.randn(2, 3, 8, 8))
    with pytest.raises(RuntimeError, match="Kernel size"):
        gnfast.rewrite(nn.Sequential(nn.Conv2d(4, 4, 5), nn.AvgPool2d(1)))(torch.randn(2, 4, 3, 8))
    with pytest.raises(RuntimeError):
        rewritten(torch.randn(2, 4, 8, 8).double())
    counts = gnfast.rewrite(Net(lambda net, x: F.conv2d(x, torch.ones(1, 4, 3, 3, dtype=x.dtype))))
    assert counts(torch.ones(1, 4, 5, 5, dtype=torch.int64)).eq(36).all()
    assert counts(torch.ones(1, 4, 5, 5, dtype=torch.complex128)).eq(36).all()


def test_containers_hold_tensors():
    def function(net, x):
        h = net.conv(x)
        return {"h": h, "list": [F.interpolate(x, scale_factor=2), (h + x, None, 3)]}

    result = gnfast.rewrite(Net(function))(torch.randn(2, 4, 6, 6))
    tensors = [result["h"], result["list"][0], result["list"][1][0]]
    assert all(type(tensor) is torch.Tensor for tensor in tensors) and result["list"][1][1:] == (None, 3)


def test_a_deferred_acts_as_a_tensor():
    def function(net, x):
        h = net.conv(x)
        assert isinstance(h, Deferred) and len(h) == 2 and h.size(1) == 4 and h.numel() == 640 and h.ndim == 4
        assert h.dtype == x.dtype and h.is_floating_point() and h.device == x.device
        assert h.is_contiguous() and h.stride() == x.stride() and h.data_ptr() and "grad_fn" in repr(h)
        for result in torch.cat([h, h]), torch.stack((h, x)), h[0], h.unbind(1)[0], x @ h.mT, x * h, h.to(x):
            assert type(result) is torch.Tensor and result.requires_grad
        return h

    gnfast.rewrite(Net(function))(torch.randn(2, 4, 8, 10))


@pytest.mark.parametrize("where", ["around", "inside"])
def test_compiled(where):
    net = nn.Sequential(
        nn.Conv2d(4, 4, 3), nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(4, 4, 3)), nn.AvgPool2d(2)
    )
    x = torch.randn(2, 4, 5, 5)
    expected = net(x)
    if where == "around":
        actual = torch.compile(gnfast.rewrite(net), backend="eager", fullgraph=True)(x)
    else:
        net[1] = torch.compile(net[1], backend="eager")
        actual = gnfast.rewrite(net)(x)
    torch.testing.assert_close(actual, expected)
    assert type(actual) is torch.Tensor


def test_scripted_submodules():
    scripted = torch.jit.script(nn.Sequential(nn.ReLU(True), nn.Conv2d(4, 4, 1)).double())
    net = nn.Sequential(nn.Conv2d(4, 4, 3), scripted, nn.AvgPool2d(2)).double()
    assert_same(net, torch.randn(2, 4, 6, 6, dtype=torch.float64))


def test_threads_do_not_see_each_other():
    net, seen = nn.Conv2d(4, 4, 3), []

    def function(_, x):
        thread = threading.Thread(target=lambda: seen.append(type(net(x))))
        thread.start()
        thread.join()
        return net(x)

    gnfast.rewrite(Net(function))(torch.randn(1, 4, 5, 5))
    assert seen == [torch.Tensor]


# The module


def test_the_module_is_the_same_network():
    generator, _ = models.build("resnet", resolution=32, width=1 / 32)
    rewritten, z = gnfast.rewrite(generator).eval(), torch.randn(2, 128)
    assert rewritten.net is generator
    assert torch.equal(pickle.loads(pickle.dumps(rewritten))(z), rewritten(z))
    assert torch.equal(nn.Sequential(rewritten).state_dict()["0.linear.weight"], generator.linear.weight)


def test_nested_rewrites():
    def function(net, x):
        h = net.conv(x)
        return F.avg_pool2d(h, 2) + F.max_pool2d(h, 2)

    inner = gnfast.rewrite(nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(4, 4, 3, padding=1), Net(function)))
    net = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), inner, nn.Conv2d(4, 4, 3), nn.AvgPool2d(2)).double()
    with Convolutions() as convolutions:
        gnfast.rewrite(net)(torch.randn(2, 4, 6, 6, dtype=torch.float64)).sum().backward()
    # Each convolution once, and none again in the backward.
    assert sorted(convolutions.seen) == sorted([PLAIN, UPSAMPLED, POOLED, PLAIN, POOLED])
    assert_same(net, torch.randn(2, 4, 6, 6, dtype=torch.float64))


def test_together_with_gradient_normalisation():
    _, critic = models.build("resnet", resolution=32, width=1 / 16)
    critic.double()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    expected = gnfast.normalize_gradient(critic, x, strict=True)
    for actual in (
        gnfast.normalize_gradient(gnfast.rewrite(critic), x, strict=True),
        gnfast.normalize_gradient(gnfast.rewrite(critic), x, impl="reference"),
        gnfast.rewrite(gnfast.GradientNorm(critic, strict=True))(x),
    ):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


def test_what_is_no_module_is_refused():
    with pytest.raises(InputError, match="module"):
        gnfast.rewrite(torch.relu)
