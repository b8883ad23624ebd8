"""Normalisers: formulas, partial derivatives, limits, gradient norms, heads of the user's own."""

import dataclasses
import re
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gnfast
from gnfast import Head, InputError, heads, reference
from tests.engine.test_engine import NETWORKS, Called, ResNet
from tests.oracle import assert_same, loss_of, outputs_and_gradients

METHODS = {name: {} for name in heads.METHODS}
METHODS |= {f"{name}, options": {"method": name, "tau": 1.2, "eps": 0.03} for name in ("gran", "gran-shift")}


def options_of(name):
    return {"method": name, **METHODS[name]}


@pytest.fixture(params=METHODS)
def options(request):
    return options_of(request.param)


def assert_both(fast, oracle, net, x):
    assert_same(*(outputs_and_gradients(function, net, x) for function in (fast, oracle)))


@pytest.mark.parametrize("network", ["mlp", "cnn", "resnet", "output-b-1-1-1", "arithmetic"])
def test_every_method_matches_double_backward(options, network, x):
    fast = partial(gnfast.normalize_gradient, strict=True, **options)
    assert_both(fast, partial(reference.normalize_gradient, **options), NETWORKS[network]().double(), x)


def normalized_by_autograd(net, x, **options):
    """f̂ and ‖∇ₓf̂‖ where nothing is known but f̂'s formula: third derivatives when it is differentiated."""
    x = x if x.requires_grad else x.requires_grad_()
    f_hat = reference.normalize_gradient(net, x, **options)
    (g,) = torch.autograd.grad(f_hat.sum(), x, create_graph=True)
    return f_hat, g.flatten(1).norm(dim=1)


def test_norm_of_the_normalised_critics_gradient(options, x):
    fast = partial(gnfast.normalize_gradient, strict=True, return_grad_norm=True, **options)
    net = ResNet().double()
    assert_both(fast, partial(normalized_by_autograd, **options), net, x)
    with torch.no_grad():
        norm = fast(net, x)[1]
    assert not norm.requires_grad and norm.shape == (4,)
    if options["method"] in ("gn", "pgn-table"):
        assert norm.max() <= 1, "GN's bound"


POINTS = torch.tensor([[-3.0, -0.2, 0.7, 1.0, 5.0, 1e3], [1e-3, 0.3, 1.0, 2.5, 1e3, 7.0]], dtype=torch.float64)


def assert_partials(head):
    f, m = POINTS

    def by_autograd(f, m):
        f, m = f.clone().requires_grad_(), m.clone().requires_grad_()
        return torch.autograd.grad(head.value(f, m).sum(), [f, m])

    wanted = by_autograd(f, m)
    # What its terms cancel to is as exact as it is the same for neighbours.
    around = [by_autograd(f * (1 + k * 2**-52), m * (1 - k * 2**-52)) for k in (-3, -2, -1, 1, 2, 3)]
    for place, actual in enumerate(head.partials(f, m)):
        noise = torch.stack([(near[place] - wanted[place]).abs() for near in around]).amax(0)
        assert ((actual - wanted[place]).abs() <= 1e-12 * wanted[place].abs() + noise).all()


def test_partials_are_those_of_the_value(options):
    assert_partials(heads.find(**options))


def test_partials_that_are_right_where_autograds_cancel():
    def partials(f, n):
        h = torch.hypot(f, n)
        return (n / h) ** 2 / h, -f * n / h**3

    assert_partials(Head("angle", lambda f, n: f / torch.hypot(f, n), partials))


@pytest.mark.parametrize("at", range(6))
@pytest.mark.parametrize("place", [0, 1])
def test_a_partial_that_is_slightly_wrong_at_one_point_is_seen(options, place, at):
    head = heads.find(**options)

    def partials(f, m):
        found = [partial.clone() for partial in head.partials(f, m)]
        found[place][at] *= 1 + 1e-9
        return found

    if head.partials(*POINTS)[place][at]:
        with pytest.raises(AssertionError):
            assert_partials(dataclasses.replace(head, partials=partials))


def test_known_norms():
    f, n = torch.tensor([2.0, -0.5]), torch.tensor([3.0, 0.1])
    g = torch.zeros(2, 4)
    g[:, 1] = n
    torch.testing.assert_close(heads.normalized_grad_norm(heads.GN, f, g), (n / (n + f.abs())) ** 2)
    expected = n**2 / (1.2 * (n**2 + 0.1))
    torch.testing.assert_close(heads.normalized_grad_norm(heads.gran(1.2, 0.1), f, g), expected)
    torch.testing.assert_close(heads.normalized_grad_norm(heads.gran_shift(1.2, 0.1), f, g), n / (1.2 * (n + 0.1)))


AT_ZERO = {
    "gn": (lambda f: f.sign()),
    "gn0": (lambda f: torch.where(f == 0, 0, f * torch.inf)),
    "gn1": (lambda f: f),
    "gran": torch.zeros_like,
    "gran-shift": (lambda f: f / 0.1),
    "pgn": None,
    "pgn-table": (lambda f: (1 - f).sign()),
}


@pytest.mark.parametrize("impl", ["auto", "reference"])
@pytest.mark.parametrize("method", heads.METHODS)
@pytest.mark.parametrize("bias", [0.0, 1.0, -2.0])
def test_dead_critics_have_defined_values_and_gradients(method, bias, impl, x):
    def dead(net, x):
        return F.relu(net.conv(x)).sum((1, 2, 3)) + net.bias

    net = Called(dead, conv=nn.Conv2d(3, 4, 3), bias=torch.tensor(bias))
    nn.init.constant_(net.conv.bias, -100.0)
    net, x = net.double(), x.requires_grad_()
    f_hat, norm = gnfast.normalize_gradient(net, x, method=method, impl=impl, return_grad_norm=True)
    if AT_ZERO[method] is not None:
        expected = AT_ZERO[method](torch.full_like(f_hat, bias))
        assert torch.equal(f_hat, expected)
    (f_hat.clamp(-5, 5).sum() + norm.sum()).backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters()) and torch.isfinite(x.grad).all()
    assert method not in ("gn", "gn0", "gran") or not any(p.grad.any() for p in net.parameters())
    assert not norm.isnan().any() and not f_hat.isnan().any()
    f, n = gnfast.value_and_grad_norm(net, x, impl=impl)
    (f.sum() + n.sum()).backward()
    assert not n.any() and all(torch.isfinite(p.grad).all() for p in net.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("size", [1e-25, 1e-6, 1.0, 1e4, 1e25])
def test_extreme_norms_keep_their_precision(options, dtype, size):
    if not torch.finfo(dtype).tiny < size < torch.finfo(dtype).max:
        pytest.skip("outside the dtype's range")
    torch.manual_seed(0)
    f = (torch.randn(5, 1) * min(size, 100.0)).to(dtype).requires_grad_()
    g = (torch.randn(5, 3, 4) * size / 3).to(dtype).requires_grad_()
    head = heads.find(**options)
    f_hat, exact = heads.apply_head(head, f, g), heads.apply_head(head, f.double(), g.double())
    assert f_hat.dtype == dtype and torch.isfinite(f_hat).all()
    bound, smallest = 8 * torch.finfo(dtype).eps, 2 * torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    torch.testing.assert_close(f_hat.double(), exact, rtol=bound, atol=smallest)
    for actual, wanted in zip(*(torch.autograd.grad(out.sum(), [f, g]) for out in (f_hat, exact)), strict=True):
        if wanted.isfinite().all():
            atol = max(bound * wanted.abs().max().item(), smallest)
            torch.testing.assert_close(actual, wanted, rtol=bound, atol=atol)


USERS = {
    "function": lambda f, n: f / (n + 0.3).sqrt(),
    "head of the norm": Head("mine", lambda f, n: f.tanh() / (1 + n)),
    "head of the gradient": Head(
        "entries",
        lambda f, g: f / (1 + g.abs().flatten(1).sum(1)).reshape(f.shape[0], *[1] * (f.dim() - 1)),
        takes_gradient=True,
    ),
    "another centre": Head("centred", lambda f, m: f / (1 + m), centre=-0.5),
}


@pytest.mark.parametrize("name", USERS)
@pytest.mark.parametrize("network", ["cnn", "output-b-1-1-1"])
def test_a_users_own_head(name, network, x):
    method = USERS[name]

    fast = partial(gnfast.normalize_gradient, method=method, strict=True, return_grad_norm=True)

    def oracle(net, x):
        x = x if x.requires_grad else x.requires_grad_()
        f, g = reference.value_and_input_grad(net, x)
        head = method if isinstance(method, Head) else Head("", method)
        measure = g
        if not head.takes_gradient:
            measure = (g - head.centre).flatten(1).norm(dim=1).reshape(-1, *[1] * (f.dim() - 1))
        f_hat = head.value(f, measure)
        return f_hat, torch.autograd.grad(f_hat.sum(), x, create_graph=True)[0].flatten(1).norm(dim=1)

    assert_both(fast, oracle, NETWORKS[network]().double(), x)


def test_the_module_takes_methods_too(options, x):
    net = ResNet().double()
    normalized = gnfast.GradientNorm(net, strict=True, **options)
    assert torch.equal(normalized(x), gnfast.normalize_gradient(net, x, **options))
    assert repr(options["method"]) in repr(normalized)
    f_hat, norm = normalized(x, return_grad_norm=True)
    torch.testing.assert_close(f_hat, normalized(x), rtol=1e-14, atol=0)
    assert norm.shape == (4,)


@pytest.mark.filterwarnings("error::gnfast.FallbackWarning")
def test_maps_of_outputs_for_every_method(options, x):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.LeakyReLU(0.2), nn.Conv2d(4, 1, 2)).double()
    assert_both(*(partial(way.normalize_gradient, **options) for way in (gnfast, reference)), net, x)
    with pytest.raises(InputError, match="return_grad_norm: wanted one logit"):
        gnfast.normalize_gradient(net, x, return_grad_norm=True, **options)


def test_the_reference_is_differentiable_twice(options, x):
    net = NETWORKS["cnn"]().double()
    f_hat, norm = gnfast.normalize_gradient(net, x, impl="reference", return_grad_norm=True, **options)
    (gradient,) = torch.autograd.grad(loss_of(f_hat, norm), net[0].weight, create_graph=True)
    gradient.square().sum().backward()
    assert torch.isfinite(net[0].weight.grad).all() and net[0].weight.grad.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "sn"}, "method: got 'sn', wanted one of gn, gn0"),
        ({"method": 3}, "method: got a int"),
        ({"tau": 2.0}, "tau: method 'gn' does not take it"),
        ({"method": "gran", "eps": 0.0}, "eps: got 0.0, wanted a positive number"),
        ({"method": "gran", "tau": -1.0}, "tau: got -1.0"),
        ({"method": "gran-shift", "eps": -0.1}, "eps: got -0.1, wanted a positive number"),
        ({"method": "gran-shift", "tau": float("nan")}, "tau: got nan"),
        ({"method": "gn1", "eps": 1.0}, "eps: method 'gn1' does not take it"),
        ({"method": heads.GN, "tau": 1.0}, "tau: only named methods"),
        ({"method": lambda f, n: f.sum()}, r"method: <lambda> returned shape"),
    ],
)
def test_bad_methods(options, message, x):
    net = ResNet().double()
    with pytest.raises(InputError, match=message):
        gnfast.normalize_gradient(net, x, **options)
    if callable(options.get("method")) and not isinstance(options["method"], Head):
        return
    with pytest.raises(InputError, match=message):
        gnfast.GradientNorm(net, **options)


def test_every_method_is_where_users_read_of_them():
    docs = Path(__file__).parents[2] / "docs"
    options = re.search("`--method .*`", (docs / "training.md").read_text())[0]
    for place, text, names in (
        ("docstring of normalize_gradient", gnfast.normalize_gradient.__doc__, r'"([\w-]+)"'),
        ("docstring of the reference", reference.normalize_gradient.__doc__, r'"([\w-]+)"'),
        ("docs/algorithm.md", (docs / "algorithm.md").read_text(), r"\n\| `([\w-]+)` \|"),
        ("docs/training.md", options, r"[\w-]+"),
    ):
        assert heads.METHODS.keys() - re.findall(names, text) == set(), place


def test_the_reference_refuses_what_it_has_no_formula_of(x):
    with pytest.raises(InputError, match=r"^method: got 'no-such', wanted one of ") as raised:
        reference.normalize_gradient(nn.Flatten(), x, method="no-such")
    assert {*str(raised.value).partition("wanted one of ")[2].split(", ")} == {*heads.METHODS}


@pytest.mark.parametrize("method", heads.METHODS)
def test_nan_is_not_hidden(method):
    head, nan, one = heads.find(method), torch.tensor([torch.nan]), torch.ones(1)
    for f, m in ((nan, one), (one, nan)):
        assert head.value(f, m).isnan().all()
        assert all(partial.isnan().all() for partial in head.partials(nan, nan))


@pytest.mark.parametrize("impl", ["auto", "reference"])
@pytest.mark.parametrize("call", [gnfast.normalize_gradient, gnfast.penalties.r1])
@pytest.mark.parametrize(
    "forward",
    [lambda f: f[:1], lambda f: f.repeat(2, 1), lambda f: f.mean()],
    ids=["fewer", "more", "mean"],
)
def test_a_row_for_each_sample_is_asked_for(forward, call, impl):
    class Net(nn.Module):
        def forward(self, x):
            return forward(x.sum(1, keepdim=True))

    shapes = r"got (\([14], 1\)|a number) from the network for x of \(2, 5\)"
    with pytest.raises(InputError, match=rf"net: {shapes}, wanted a row for each sample, such as one logit"):
        call(Net(), torch.randn(2, 5), impl=impl)
