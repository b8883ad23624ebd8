"""What critics write and PyTorch runs: recorded too, and the same numbers as double backward."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import gnfast
from gnfast import UnsupportedError, reference
from tests.engine.test_engine import Called, normal
from tests.oracle import (
    assert_falls_back,
    assert_matches_double_backward,
    assert_same,
    loss_of,
    outputs_and_gradients,
    relative_error,
)


def critic(function):
    """The critic h ↦ function(net, h) of h = x · w, its entries bent and summed with weights."""

    def forward(net, x):
        y = function(net, x * net.w)
        weights = net.out[: math.prod(y.shape[1:])].reshape(y.shape[1:])
        return (F.leaky_relu(y, 0.3) * weights).sum(tuple(range(1, y.dim())))

    return Called(
        forward,
        w=normal(7),
        u=normal(),
        v=normal(3, 1, 1),
        out=normal(300),
        _k=normal(5, 7),
        mask=torch.tensor([0, 1, 1, 0, 1, 0, 1]).bool(),
        columns=torch.tensor([4, 0, 4]),
        chosen=torch.randint(105, (4, 9)),
    )


def twice(h):
    return [h, F.leaky_relu(h, 0.1)]


def stack_of_constants(net, h):
    with torch.no_grad():
        stack = torch.stack(twice(h))
    return h - stack.mean(0) + torch.where(net.mask, h, stack[1]).lerp(stack[0], 0.2)[:, [0, 2, 1]]


ACCEPTED = {
    "type_as": lambda net, h: h.type_as(net.w),
    "to another tensor": lambda net, h: h.to(net.w),
    "to a memory format": lambda net, h: h.to(memory_format=torch.channels_last),
    "to a device and a dtype, copied": lambda net, h: h.to("cpu", torch.float64, copy=True),
    "to a type by its name": lambda net, h: h.type("torch.DoubleTensor"),
    "to the CPU": lambda net, h: h.cpu(),
    "plus": lambda net, h: +h,
    "minus infinity, clamped": lambda net, h: (h + torch.where(net.mask, 0.0, -math.inf)).clamp(min=-3),
    "added with weight 0": lambda net, h: torch.addmm(
        net.w.new_full((7,), math.nan), h[:, 0, 0], net.w.outer(net.w), beta=0, alpha=0.3
    ),
    "where or a parameter": lambda net, h: torch.where(net.mask, h, net.v),
    "where a number": lambda net, h: torch.where(net.mask, 0.3, h),
    "where of two": lambda net, h: torch.where(net.mask, h.abs(), 0.3 * h.mean(1, keepdim=True)),
    "where is infinite": lambda net, h: torch.where(net.mask, h, -math.inf).amax(3),
    "where as a method": lambda net, h: h.where(net.mask, net.u),
    "where of a constant": lambda net, h: net._k.where(net.mask, h),
    "masked_fill": lambda net, h: h.masked_fill(net.mask, -math.inf).max(3)[0],
    "masked_fill with a parameter": lambda net, h: h.masked_fill(net.mask, net.u),
    "masked_fill_": lambda net, h: h.masked_fill_(net.mask, 0.5),
    "index by a list": lambda net, h: h[:, [2, 0, 0]],
    "index by a tuple": lambda net, h: h[:, (2, 0)],
    "index by a range": lambda net, h: h[..., range(1, 4)],
    "index by an array": lambda net, h: h[:, np.array([2, -1])],
    "index by NumPy's integers": lambda net, h: h[:, np.int64(1), np.int32(0) : np.int32(3)],
    "index by an array of truth values": lambda net, h: h[:, np.array([True, False, True])],
    "index by a tensor": lambda net, h: h[:, :, net.columns],
    "index by a tensor of one number": lambda net, h: h[:, torch.tensor(1)],
    "index by a mask": lambda net, h: h[..., net.mask],
    "index by a mask of two axes": lambda net, h: h[:, :, net._k > 0],
    "index by pairs": lambda net, h: h[:, [0, 1], [3, 3]],
    "index by a grid": lambda net, h: h[..., net.columns[:, None], [3, 1]],
    "index_select": lambda net, h: h.index_select(-2, net.columns),
    "index_select of one": lambda net, h: torch.index_select(h, 1, torch.tensor(1)),
    "gather": lambda net, h: h.flatten(1).gather(1, net.chosen),
    "take_along_dim": lambda net, h: torch.take_along_dim(h.flatten(1), net.chosen[:1], 1),
    "stack and mean": lambda net, h: torch.stack(twice(h)).mean(0),
    "stack and sum": lambda net, h: torch.sum(torch.stack([*twice(h), net.v.expand(h.shape)]), dim=0),
    "stack and maxima": lambda net, h: torch.stack(twice(h)).max(0)[0] + torch.stack(twice(h)).amin(axis=0),
    "stack and take apart": lambda net, h: sum(torch.stack(twice(h))) - 0.3 * torch.stack(twice(h))[-1],
    "stack under no_grad": stack_of_constants,
    "hstack": lambda net, h: torch.hstack(twice(h)),
    "dstack": lambda net, h: torch.dstack(twice(h.flatten(2))),
    "dstack of vectors": lambda net, h: torch.dstack(twice(h.flatten(1))),
    "column_stack of numbers": lambda net, h: torch.column_stack(twice(h.sum((1, 2, 3)))),
    "lerp by a parameter": lambda net, h: torch.lerp(*twice(h), net.u),
    "lerp_": lambda net, h: h.lerp_(net._k.expand_as(h), 0.3),
    "lerp from a constant": lambda net, h: torch.lerp(net._k, h, net.v),
    "addcmul": lambda net, h: torch.addcmul(h.abs(), h, net.v, value=0.3),
    "L1 norm": lambda net, h: h.norm(1, dim=(2, 3)),
    "L1 norm by torch.norm": lambda net, h: torch.norm(h, 1, 1),
    "L1 norm by vector_norm": lambda net, h: torch.linalg.vector_norm(h, 1, (1, 2), keepdim=True),
    "L1 norm by linalg.norm": lambda net, h: torch.linalg.norm(h, 1, -1),
    "maximum norm": lambda net, h: h.norm(math.inf, dim=1),
    "maximum norm by vector_norm": lambda net, h: torch.linalg.vector_norm(x=h, ord=math.inf, dim=(1, 2)),
    "minimum norm": lambda net, h: torch.linalg.vector_norm(h, -math.inf, 1),
    "NumPy's names": lambda net, h: (
        torch.sum(h.abs(), axis=1, keepdims=True) + h.max(axis=1, keepdims=True)[0] + torch.sub(x1=h, x2=net.v)
    ),
    "chunks along an axis": lambda net, h: torch.split(h, 2, 3)[0] + h.chunk(4, axis=3)[1],
    "cat along an axis": lambda net, h: torch.cat(twice(h), axis=2),
    "sizes that are tensors": lambda net, h: h.view(torch.tensor(4), -1).reshape(4, torch.tensor(3), -1),
    "bounds that are tensors": lambda net, h: h.narrow(1, torch.tensor(1), 2)[:, :, : torch.tensor(3)],
    "alpha dropout in eval mode": lambda net, h: F.alpha_dropout(h, 0.5, training=False),
    "in place after flip": lambda net, h: h.flip(1).relu_() + h,
    "in place after an index": lambda net, h: h[:, [1, 0]].relu_() + h[:, :2],
    "in place after +": lambda net, h: (+h).mul_(2) + h,
    "in place after a stack": lambda net, h: torch.stack([h, h.mul_(2)]).sum(0),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_recorded_and_exact(name, x):
    assert_matches_double_backward(critic(ACCEPTED[name]), x)


def writes_to_a_view(net, h):
    torch.einsum("bchw->bchw", h).mul_(2)
    return h


def writes_to_one_of_a_stack(net, h):
    stack = torch.stack([h, h.abs()])
    stack[0].mul_(2)
    return stack.sum(0) + h


@pytest.mark.parametrize("function", [writes_to_a_view, writes_to_one_of_a_stack])
@pytest.mark.filterwarnings("ignore::gnfast.FallbackWarning")
def test_written_memory_is_seen_by_all_who_share_it(function, x):
    net = critic(function)
    assert_same(*(outputs_and_gradients(way.normalize_gradient, net, x) for way in (gnfast, reference)))


class Doubled(torch.Tensor):
    """Has rules of its own."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        result = super().__torch_function__(func, types, args, kwargs or {})
        with torch._C.DisableTorchFunctionSubclass():
            return result * 2 if func in (torch.mul, torch.Tensor.mul) else result


def abs_(h):
    """Somebody else's, which only has the name of an operation of PyTorch's."""
    if torch.overrides.has_torch_function_unary(h):
        return torch.overrides.handle_torch_function(abs_, (h,), h)
    return 3 * h


REFUSED = {
    "a Doubled, a subclass of Tensor with rules of its own": lambda net, h: h * net.w.detach().as_subclass(Doubled),
    "a tensor of layout torch.sparse_csr": lambda net, h: h[:, 0, 0] @ torch.eye(7).to(h.dtype).to_sparse_csr(),
    "abs_": lambda net, h: abs_(h),
    "a norm of matrices": lambda net, h: torch.linalg.norm(h, 1, (2, 3)),
    "not an operation": lambda net, h: torch.i0(h),
    "into a tensor that does not depend on x": lambda net, h: written_into_zeros(h),
}


def written_into_zeros(h):
    y = torch.zeros_like(h)
    y[:, 0] = h[:, 1]
    return y


@pytest.mark.parametrize("reason", REFUSED)
def test_refused_by_name_and_exact(reason, x):
    assert_falls_back(critic(REFUSED[reason]), x, match=reason)


@pytest.mark.filterwarnings("ignore::gnfast.FallbackWarning")
def test_an_x_with_rules_of_its_own(x):
    net = critic(lambda net, h: h * net.w)
    with pytest.raises(UnsupportedError, match=r"Doubled.*: x is of a subclass of Tensor with rules of its own"):
        gnfast.normalize_gradient(net, x.as_subclass(Doubled), strict=True)
    actual, expected = (f.normalize_gradient(net, x.as_subclass(Doubled)) for f in (gnfast, reference))
    assert torch.equal(actual.as_subclass(torch.Tensor), expected.as_subclass(torch.Tensor))


@pytest.mark.parametrize(
    "use",
    [
        lambda net, h: h + net.noise,
        lambda net, h: net.noise - h,
        lambda net, h: h - net.noise.expand(4, 1, 5, 7),
        lambda net, h: torch.cat([h, net.noise.expand(4, 1, 5, 7)], 1),
        lambda net, h: torch.where(net.mask, h, net.noise),
        lambda net, h: F.linear(h, torch.eye(7, dtype=h.dtype), net.noise[0, 0]),
        lambda net, h: F.conv2d(h, torch.eye(3, dtype=h.dtype)[:, :, None, None], net.noise[0, 0, :3]),
        lambda net, h: F.conv_transpose2d(h, torch.eye(3, dtype=h.dtype)[:, :, None, None], net.noise[0, 0, :3]),
    ],
)
def test_a_buffer_that_every_forward_refreshes(use, x):
    """What is only added is not needed in the backward: two forwards, then theirs."""

    def function(net, h):
        net.noise.mul_(-0.7)
        y = use(net, h)
        net.noise.add_(0.1)
        return y

    net, other = critic(function), normal(4, 3, 5, 7)
    net.register_buffer("noise", normal(1, 5, 7))
    gradients = []
    for module, options in ((gnfast, {"strict": True}), (reference, {})):
        twin = copy.deepcopy(net)
        loss = loss_of(*(module.normalize_gradient(twin, batch, **options) for batch in (x, other)))
        gradients.append([*torch.autograd.grad(loss, [twin.w, twin.out]), twin.noise])
    assert all(relative_error(a, e) < 1e-10 for a, e in zip(*gradients, strict=True))


@pytest.mark.parametrize(
    ("function", "shown"),
    [
        (lambda net, h: h.view(4, torch.tensor(21), 5), "reshape"),
        (lambda net, h: torch.sum(h, axis=1, keepdims=True), "sum over 1"),
        (lambda net, h: torch.where(net.mask, h, 0.0), "where"),
        (lambda net, h: torch.where(h > 0, h, 0.2 * h), "where by x"),
        (lambda net, h: torch.mean(h, 1, out=None), "mean over 1"),
    ],
)
def test_a_plan_explains(function, shown, x):
    assert shown in str(gnfast.trace(critic(function), x))


def test_the_papers_name_of_the_network(x):
    net = critic(ACCEPTED["plus"])
    assert torch.equal(gnfast.normalize_gradient(net_D=net, x=x), gnfast.normalize_gradient(net, x))
