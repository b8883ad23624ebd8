"""What changes a derivative and not the value: followed exactly where that can be, refused by name where not."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules import module as hooks
from torch.utils.checkpoint import checkpoint

import gnfast
from gnfast import UnsupportedError, reference
from tests.oracle import PAIRS, assert_same, outputs_and_gradients, relative_error


class Halve(torch.autograd.Function):
    """The identity with half its gradient."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad / 2


class Constant(torch.autograd.Function):
    """The identity, of which autograd is told that it has no derivative."""

    @staticmethod
    def forward(ctx, x):
        y = x * 1
        ctx.mark_non_differentiable(y)
        return y

    @staticmethod
    def backward(ctx, grad):
        raise AssertionError


class Critic(nn.Module):
    """One hidden layer, whose activation goes through `change`."""

    def __init__(self, change):
        super().__init__()
        torch.manual_seed(1)
        self.first, self.side, self.last = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 1)
        self.double()
        self.change = change

    def forward(self, x):
        return self.last(self.change(self, F.leaky_relu(self.first(x), 0.3)))


@pytest.fixture
def x():
    return torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def under(context, function):
    """The function with its result computed under no_grad or the like."""

    def change(net, h):
        with context():
            constant = function(net, h)
        return h - constant

    return change


def mean(net, h):
    return h.mean(1, keepdim=True)


def switched_off(net, h):
    torch.set_grad_enabled(False)
    constant = mean(net, h)
    torch.set_grad_enabled(True)
    return h - constant


def kept_elsewhere(net, h):
    with torch.autograd.graph.save_on_cpu():
        return net.side(h)


def written_while_off(net, h):
    with torch.no_grad():
        constant = net.side(h)
        constant.mul_(0.5).relu_()
    return h - constant


def written_into_a_constant(net, h):
    constant = h.detach().clone()
    constant += h
    return constant


def of_a_constant(net, h):
    """Weights behind a constant get gradients, and those before it none."""
    return h + net.side(h.detach())


EXACT = {
    "no_grad": under(torch.no_grad, mean),
    "no_grad as a decorator": lambda net, h: h - torch.no_grad()(mean)(net, h),
    "set_grad_enabled(False)": under(lambda: torch.set_grad_enabled(False), mean),
    "set_grad_enabled, called": switched_off,
    "weights under no_grad": under(torch.no_grad, lambda net, h: net.side(h)),
    "clone under no_grad": under(torch.no_grad, lambda net, h: h.clone() * 0.5),
    "to(copy=True) under no_grad": under(torch.no_grad, lambda net, h: h.to(torch.float64, copy=True) * 0.5),
    "a view under no_grad": lambda net, h: h + torch.no_grad()(h.view)(5, 4, 4).flatten(1) * 0.3,
    "grad within no_grad": under(torch.no_grad, lambda net, h: torch.enable_grad()(mean)(net, h)),
    "in place within no_grad": written_while_off,
    "detach": lambda net, h: h - 0.3 * h.detach(),
    "torch.detach, weights after it": of_a_constant,
    "a constant that h is added to": written_into_a_constant,
    "detach of x's sum": lambda net, h: h + torch.cat([h.detach().max(1, keepdim=True)[0], h[:, 1:]], 1),
    "save_on_cpu": kept_elsewhere,
    "checkpoint": lambda net, h: checkpoint(lambda h: net.side(h).relu(), h, use_reentrant=False),
    "a Function without derivative": lambda net, h: h - 0.5 * Constant.apply(h.detach()),
}


def hooked_if_it_can_be(net, h):
    if h.requires_grad:
        h.register_hook(lambda grad: 3 * grad)
    return h


def compressed(net, h):
    with torch.autograd.graph.saved_tensors_hooks(lambda saved: saved / 2, lambda packed: packed):
        return net.side(h)


def in_place_while_off(net, h):
    with torch.no_grad():
        h.mul_(2)
    return h


def through(*steps):
    def change(net, h):
        h = Halve.apply(h)
        for step in steps:
            h = step(h)
        return h

    return change


# Fragments of what the message says.
REFUSED = {
    "a hook": (hooked_if_it_can_be, "Tensor.register_hook"),
    "in place under no_grad": (in_place_while_off, "changes in place a value and not its derivative"),
    "a Function": (through(), "custom autograd function"),
    "a Function, clone": (through(torch.clone), "custom autograd function"),
    "a Function, contiguous": (through(lambda h: h.contiguous()), "custom autograd function"),
    "a Function, to(copy)": (through(lambda h: h.to(torch.float64, copy=True)), "custom autograd function"),
    "a Function, in place": (through(lambda h: h.mul_(2)), "custom autograd function"),
    "a Function, detached beside": (lambda net, h: h + Halve.apply(h).detach(), "custom autograd function"),
    "a Function among a list": (lambda net, h: torch.cat([h[:, :8], Halve.apply(h)[:, 8:]], 1), "custom autograd"),
    "contiguous under no_grad": (lambda net, h: h + torch.no_grad()(h.contiguous)(), "depends on the memory format"),
    "saved tensor hooks": (compressed, "saved_tensors_hooks"),
    "retain_grad": (lambda net, h: h.retain_grad() or h, "Tensor.retain_grad"),
    "data": (lambda net, h: h + h.data, "Tensor.data"),
}


def compare(net, x, **options):
    """Every output and gradient, and which weights have none."""
    for name, (fast, oracle) in PAIRS.items():
        actual, expected = outputs_and_gradients(fast, net, x, **options), outputs_and_gradients(oracle, net, x)
        assert_same(actual, expected, of=f"{name}: ")
        assert [key for key in actual if actual[key] is None] == [key for key in expected if expected[key] is None]


@pytest.mark.parametrize("change", EXACT.values(), ids=EXACT)
def test_values_without_a_derivative_are_constants(change, x):
    compare(Critic(change), x, strict=True)
    compare(Critic(change), x, strict=True, rewrite=False)


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED)
@pytest.mark.filterwarnings("ignore::gnfast.FallbackWarning")
def test_other_derivatives_than_the_operations_are_refused(change, message, x):
    net = Critic(change)
    with pytest.raises(UnsupportedError, match=message):
        gnfast.normalize_gradient(net, x, strict=True)
    compare(net, x)


def test_a_branch_in_inference_mode_is_pytorchs_to_refuse_or_not(x):
    net = Critic(under(torch.inference_mode, mean))
    with pytest.raises(UnsupportedError, match="in inference mode"):
        gnfast.normalize_gradient(net, x, strict=True)
    with pytest.warns(gnfast.FallbackWarning):
        compare(net, x)


def test_a_critic_that_x_only_reaches_as_a_constant(x):
    net = Critic(lambda net, h: net.side(h.detach()))
    with pytest.raises(UnsupportedError, match="in a way that derivatives follow"):
        gnfast.normalize_gradient(net, x, strict=True)
    with pytest.raises(gnfast.InputError, match="without a gradient with respect to x"), warnings.catch_warnings():
        warnings.simplefilter("error")
        gnfast.normalize_gradient(net, x)


@pytest.mark.parametrize("every", [False, True], ids=["one module's", "all modules'"])
@pytest.mark.parametrize("pre", [False, True], ids=["after", "before"])
def test_backward_hooks_of_modules_are_refused(pre, every, x):
    net = Critic(lambda net, h: net.side(h))
    register = getattr(hooks if every else net.side, f"register_{'module_' * every}full_backward_{'pre_' * pre}hook")
    handle = register(lambda module, grads, *_: tuple(None if g is None else 2 * g for g in grads))
    try:
        with pytest.raises(UnsupportedError, match="for all modules" if every else "submodule 'side'"):
            gnfast.normalize_gradient(net, x, strict=True)
        with pytest.warns(gnfast.FallbackWarning):
            norm = gnfast.value_and_grad_norm(net, x)[1]
        expected = reference.value_and_grad_norm(net, x)[1]
    finally:
        handle.remove()
    assert relative_error(norm, expected) < 1e-12


def test_a_hook_on_x(x):
    net, x = Critic(lambda net, h: h), x.requires_grad_()
    handle = x.register_hook(lambda grad: 2 * grad)
    with pytest.raises(UnsupportedError, match="hook on x"):
        gnfast.normalize_gradient(net, x, strict=True)
    with pytest.warns(gnfast.FallbackWarning):
        doubled = gnfast.value_and_grad_norm(net, x)[1]
    handle.remove()
    assert relative_error(doubled, 2 * gnfast.value_and_grad_norm(net, x, strict=True)[1]) < 1e-12


def test_a_hook_that_only_looks_on(x):
    net, x, seen = Critic(lambda net, h: h), x.requires_grad_(), []
    torch.autograd.graph.register_multi_grad_hook([x, *net.parameters()], seen.append)
    gnfast.normalize_gradient(net, x, strict=True).sum().backward()
    assert len(seen) == 1


def penalised(f_hat, x):
    (g,) = torch.autograd.grad(f_hat.sum(), x, create_graph=True)
    return f_hat.mean() + 10 * (g.norm(dim=1) - 1).square().mean()


@pytest.mark.parametrize(
    "differentiate",
    [
        lambda loss, net, x: loss.backward(),
        lambda loss, net, x: loss.backward(inputs=list(net.parameters())),
        lambda loss, net, x: torch.autograd.grad(loss, list(net.parameters())),
        lambda loss, net, x: torch.autograd.grad(loss, list(net.parameters()), allow_unused=True),
        lambda loss, net, x: torch.autograd.grad(loss, x),
    ],
    ids=["backward", "backward(inputs)", "grad", "grad(allow_unused)", "grad of x"],
)
@pytest.mark.parametrize("method", ["gn", lambda f, n: f / (n + 2)])
def test_every_way_to_a_second_derivative_raises(differentiate, method, x):
    net, x = Critic(lambda net, h: net.side(h)), x.requires_grad_()
    loss = penalised(gnfast.normalize_gradient(net, x, method=method, strict=True), x)
    with pytest.raises(UnsupportedError, match="impl='reference'"):
        differentiate(loss, net, x)
    exact = penalised(gnfast.normalize_gradient(net, x, method=method, impl="reference"), x)
    assert relative_error(loss, exact) < 1e-12
    differentiate(exact, net, x)


def test_a_hessian_raises(x):
    net = Critic(lambda net, h: net.side(h))
    with pytest.raises(UnsupportedError, match="second derivative"):
        torch.autograd.functional.hessian(lambda x: gnfast.normalize_gradient(net, x).sum(), x)


CURVED = {
    "tanh": lambda net, h: torch.tanh(h),
    "elu": lambda net, h: F.elu(3 * h),
    "softplus": lambda net, h: F.softplus(net.side(h)),
    "coupled": lambda net, h: h - h.mean(0),
}


@pytest.mark.parametrize("impl", ["auto", "reference"])
@pytest.mark.parametrize("method", ["gn", "gran", "pgn", lambda f, n: f / (n + 2)], ids=["gn", "gran", "pgn", "own"])
@pytest.mark.parametrize("change", [*CURVED.values(), lambda net, h: net.side(h).relu()], ids=[*CURVED, "straight"])
@pytest.mark.filterwarnings("ignore::gnfast.FallbackWarning")
def test_the_norm_of_the_normalised_critic(change, method, impl, x):
    net = Critic(change)
    z = x.clone().requires_grad_()
    f, g = reference.value_and_input_grad(net, z)
    m = (g - float(method == "pgn")).norm(dim=1, keepdim=True)
    u = 1 - f if method == "pgn" else f
    f_hat = {"gran": f * m / (m**2 + 0.1), "gn": u / (m + u.abs()), "pgn": u / (m + u.abs())}.get(method, f / (m + 2))
    (of_f_hat,) = torch.autograd.grad(f_hat.sum(), z, create_graph=True)
    expected = of_f_hat.norm(dim=1)
    for seed in (x, x.clone().requires_grad_()):
        actual_f_hat, actual = gnfast.normalize_gradient(net, seed, method=method, impl=impl, return_grad_norm=True)
        assert relative_error(actual_f_hat, f_hat) < 1e-12
        assert relative_error(actual, expected) < 1e-12
    # Zeros where biases have no part in it.
    weights = list(net.first.parameters())
    wanted = torch.autograd.grad(expected.square().sum(), weights, materialize_grads=True)
    got = torch.autograd.grad(actual.square().sum(), weights, materialize_grads=True)
    assert all(relative_error(a, b) < 1e-10 for a, b in zip(got, wanted, strict=True))
    with torch.no_grad():
        f_hat_alone, alone = gnfast.normalize_gradient(net, x, method=method, impl=impl, return_grad_norm=True)
    assert not alone.requires_grad and not f_hat_alone.requires_grad
    assert relative_error(alone, expected) < 1e-12


@pytest.mark.parametrize("change", [*CURVED.values(), lambda net, h: h], ids=[*CURVED, "straight"])
@pytest.mark.parametrize("impl", ["auto", "reference"])
@pytest.mark.parametrize("method", ["gn", lambda f, n: f / (n + f.abs())], ids=["gn", "own"])
@pytest.mark.filterwarnings("ignore::gnfast.FallbackWarning")
def test_inference_mode(change, impl, method, x):
    net = Critic(change)
    expected = reference.normalize_gradient(net, x)
    with torch.inference_mode():
        for given in (x, x.clone()):
            f_hat, norm = gnfast.normalize_gradient(net, given, method=method, impl=impl, return_grad_norm=True)
            assert relative_error(f_hat, expected) < 1e-12 and not norm.requires_grad


@pytest.mark.parametrize(
    "change",
    {
        "gather": lambda h: h.gather(1, h.argsort(1)),
        "index_select": lambda h: h.index_select(1, h[0].argsort()),
        "gather between curves": lambda h: h.sin().gather(1, h.argsort(1)).cos(),
        "product": lambda h: h * h.detach(),
    }.items(),
    ids=lambda item: item[0],
)
def test_indices_made_in_inference_mode(change, x):
    """Values of x that an operation takes as constants are PyTorch's to make, and its autograd does not take these."""
    net = Critic(lambda net, h: change[1](h))
    expected = reference.value_and_input_grad(net, x)
    with torch.inference_mode():
        actual = gnfast.value_and_input_grad(net, x.clone(), strict=True)
    for a, b in zip(actual, expected, strict=True):
        assert relative_error(a, b) < 1e-12
