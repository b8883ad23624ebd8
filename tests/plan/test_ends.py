"""Plans with fewer kernels at their ends: which operations are left, and the numbers of double backward."""

from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gnfast
from gnfast import reference
from gnfast.engine import autograd
from gnfast.kernels import backend
from gnfast.kernels.join import plain
from tests.engine.test_engine import Called
from tests.oracle import assert_matches_double_backward, outputs_and_gradients, relative_error


@pytest.fixture(autouse=True)
def fused(monkeypatch):
    """Plans as for a GPU."""
    monkeypatch.setattr(plain, "FUSES", True)


@pytest.fixture(params=[False, True], ids=["as it comes", "channels_last"])
def layout(request, monkeypatch):
    """Whether images and kernels are stored in channels_last, as on a GPU."""
    if request.param:
        monkeypatch.setitem(autograd._CHANNELS_LAST_DTYPES, "cpu", (torch.float64, torch.float32))


def critic(tail, features, outputs=1):
    """A convolution, a ReLU, and `tail` of the 5 × 6 × 4 map that they make of (B, 3, 6, 4)."""

    def forward(net, x):
        return tail(net, F.relu(net.conv(x)))

    return Called(forward, conv=nn.Conv2d(3, 5, 3, padding=1), linear=nn.Linear(features, outputs))


def pooled(net, x):
    """Two shortcuts of pooled images, one of which keeps its bias, and a weight that is used otherwise as well."""
    h = F.relu(net.conv(x))
    h = F.avg_pool2d(net.conv(x) + h, 2) + net.pixels(F.avg_pool2d(x, 2))
    h = F.relu(h) + F.conv2d(F.avg_pool2d(x, 2), net.pixels.weight)
    h = F.relu(h + F.conv2d(x, net.pixels.weight)[:, :, ::2, 1::2])
    return net.linear(h.flatten(1))


def twice(net, h):
    """One weight for a map and for a vector."""
    return net.linear(h.flatten(1)) + net.linear(h.flip(3).flatten(1).relu() * 2)


def read_twice(net, h):
    """The vector that the layer takes is read by something else as well."""
    vector = h.flatten(1)
    return net.linear(vector) + vector.abs().sum(1, True)


MAPS = {
    "flattened": (critic(lambda net, h: net.linear(h.flatten(1)), 120), "linear of a map"),
    "view": (critic(lambda net, h: net.linear(h.view(len(h), -1)).view(-1), 120), "linear of a map"),
    "mean": (critic(lambda net, h: net.linear(h.mean((2, 3))), 5), "linear of a map"),
    "pooled to one": (critic(lambda net, h: net.linear(F.adaptive_avg_pool2d(h, 1).flatten(1)), 5), "linear of a map"),
    "sum": (critic(lambda net, h: net.linear(h.sum((2, 3), keepdim=True).flatten(1)), 5), "linear of a map"),
    "twice": (critic(twice, 120), "linear of a map"),
    "hidden": (critic(lambda net, h: F.relu(net.linear(h.flatten(1))).sum(1), 120, 7), "linear of a map"),
    "wide": (critic(lambda net, h: F.relu(net.linear(h.flatten(1))).sum(1), 120, 9), "linear"),
    "pixels in rows": (critic(lambda net, h: net.linear(h.flatten(2)).sum(1), 24), "linear"),
    "sums in rows": (critic(lambda net, h: net.linear(h.sum((2, 3), keepdim=True)).sum((1, 2)), 1), "linear"),
    "rows": (critic(lambda net, h: net.linear(h).sum((1, 2)), 4), "linear"),
    "of one axis": (critic(lambda net, h: net.linear(h.mean(3)).sum(1), 6), "linear"),
    "read twice": (critic(read_twice, 120), "linear"),
}


def assert_like_double_backward(net, x):
    """With a trained and with a frozen network, of odd batches."""
    assert_matches_double_backward(net, x)
    net.requires_grad_(False)
    assert_matches_double_backward(net, x)
    net.requires_grad_(True)


@pytest.mark.usefixtures("layout")
@pytest.mark.parametrize("name", MAPS)
def test_linear_layers_of_maps(name):
    net, label = MAPS[name]
    net, x = net.double(), torch.randn(5, 3, 6, 4, dtype=torch.float64)
    assert label in [node.op.label() for node in gnfast.trace(net, x).nodes]
    assert_like_double_backward(net, x)


def hidden(net, x):
    return F.leaky_relu(net.hidden(F.relu(net.conv(x)).flatten(1)), 0.2)


# A network's last steps; whether pass 2 begins at an activation, with the last layer's weight as the cotangent.
LAST = {
    "vector": (lambda net, x: net.last(hidden(net, x)), True),
    "map": (lambda net, x: net.of_map(F.relu(net.conv(x)).flatten(1)), True),
    "sum": (lambda net, x: net.of_mean((F.relu(net.conv(x)) + net.conv(x)).relu().mean((2, 3))), True),
    "its factor read twice": (lambda net, x: net.last(hidden(net, x) * net.last.weight), False),
    "no activation": (lambda net, x: net.last(net.hidden(F.relu(net.conv(x)).flatten(1))), False),
    "another activation": (lambda net, x: net.last(net.hidden(F.relu(net.conv(x)).flatten(1)).abs()), False),
    "two logits": (lambda net, x: net.last(h := hidden(net, x)) + net.last(h * 2), False),
    "a vector of them": (lambda net, x: net.last(hidden(net, x)).squeeze(1), False),
    "rows": (lambda net, x: net.last(hidden(net, x)[:, None]).sum(1), False),
    "no layer": (lambda net, x: hidden(net, x).sum(1), False),
    "of the images": (lambda net, x: net.of_images(x.flatten(1)), False),
    "of an activation of the images": (lambda net, x: net.of_images(x.relu().flatten(1)), False),
}


def last(name):
    sizes = {"hidden": (120, 9), "last": (9, 1), "of_map": (120, 1), "of_mean": (5, 1), "of_images": (72, 1)}
    layers = {name: nn.Linear(*size) for name, size in sizes.items()}
    return Called(LAST[name][0], conv=nn.Conv2d(3, 5, 3, padding=1), **layers).double()


def check_last(name, batch=5):
    """Whichever of the last layer's parameters are trained; for a batch of one nothing is expanded."""
    net, x = last(name), torch.randn(batch, 3, 6, 4, dtype=torch.float64)
    assert gnfast.trace(net, x).takes_ones == LAST[name][1]
    assert_like_double_backward(net, x)
    for frozen in ("weight", "bias"):
        for layer in (net.last, net.of_map, net.of_mean):
            layer.weight.requires_grad_(frozen != "weight")
            layer.bias.requires_grad_(frozen != "bias")
        assert_matches_double_backward(net, x)


@pytest.mark.usefixtures("layout")
@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("name", LAST)
def test_last_layers(name, batch):
    check_last(name, batch)


@pytest.mark.interpreted
@pytest.mark.usefixtures("layout")
@pytest.mark.parametrize("name", [name for name, (_, ones) in LAST.items() if ones])
def test_interpreted_kernels_at_last_layers(name, monkeypatch):
    for operation in ("join", "scaled_sums", "head", "operands"):
        monkeypatch.setitem(backend.CHOSEN, (operation, "cpu"), ("triton",))
    check_last(name)


def test_a_rounding_by_the_network_stays():
    net = critic(lambda net, h: net.linear(h.mean((2, 3)).half().double()), 5).double()
    x = torch.randn(5, 3, 6, 4, dtype=torch.float64)
    assert relative_error(gnfast.value_and_input_grad(net, x, strict=True)[0], net(x)) < 1e-12


@pytest.mark.usefixtures("layout")
def test_pixels_of_pooled_images():
    parts = {"conv": nn.Conv2d(3, 4, 3, padding=1), "pixels": nn.Conv2d(3, 4, 1), "linear": nn.Linear(24, 1)}
    net, x = Called(pooled, **parts).double(), torch.randn(3, 3, 4, 6, dtype=torch.float64)
    labels = [node.op.label() for node in gnfast.trace(net, x).nodes]
    assert labels.count("conv2d s2") + labels.count("conv2d s2 + add + relu (fused)") == 2
    assert labels.count("avg_pool2d 2") == 1, "that of h"
    assert_like_double_backward(net, x)


def test_pixels_with_a_dilation_that_means_nothing():
    pixels = nn.Conv2d(3, 4, 1, dilation=2)
    x = torch.randn(3, 3, 8, 6, dtype=torch.float64)
    for layers in ((nn.AvgPool2d(2), pixels), (pixels, nn.AvgPool2d(2))):
        net = nn.Sequential(*layers, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1)).double()
        assert "avg_pool2d 2" not in [node.op.label() for node in gnfast.trace(net, x).nodes]
        assert_like_double_backward(net, x)


def test_wide_maps_are_pooled_before_their_pixels_are_convolved():
    net = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(5, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(16, 1)).double()
    x = torch.randn(3, 5, 4, 4, dtype=torch.float64)
    assert "avg_pool2d 2" in [node.op.label() for node in gnfast.trace(net, x).nodes]
    assert_like_double_backward(net, x)


@pytest.mark.usefixtures("layout")
@pytest.mark.parametrize("way", ["one reader", "two readers", "another reader"])
def test_images_converted_at_once(way):
    """x in float32, a network in float64."""

    def forward(net, x):
        h = net.conv(x.double())
        if way != "one reader":
            h = h + (x.double() if way == "two readers" else x.abs().double())[:, :1]
        return net.linear(F.relu(h).flatten(1))

    net = Called(forward, conv=nn.Conv2d(3, 5, 3, padding=1), linear=nn.Linear(120, 1)).double()
    x = torch.randn(5, 3, 6, 4)
    assert (gnfast.trace(net, x).entry is None) == (way == "another reader")
    assert_matches_double_backward(net, x, tolerance=1e-6)


# x in float32 as it comes, with gaps, with its axes in another order, and the same for all samples.
IMAGES = {
    "dense": lambda x: x,
    "sliced": lambda x: x.repeat_interleave(2, 3)[..., ::2],
    "transposed": lambda x: x.mT.contiguous().mT,
    "expanded": lambda x: x[:1].expand_as(x),
}


@pytest.mark.interpreted
@pytest.mark.usefixtures("layout")
@pytest.mark.parametrize("kind", IMAGES)
def test_interpreted_conversion_of_images(kind, monkeypatch):
    monkeypatch.setitem(backend.CHOSEN, ("operands", "cpu"), ("triton",))
    kernels = backend.implementation("operands", "cpu")
    layers = {"conv": nn.Conv2d(3, 5, 3, padding=1), "linear": nn.Linear(120, 1)}
    net = Called(lambda net, x: net.linear(F.relu(net.conv(x.double())).flatten(1)), **layers).double()
    with mock.patch.object(kernels, "_launch", wraps=kernels._launch) as launch:
        assert_matches_double_backward(net, IMAGES[kind](torch.randn(5, 3, 6, 4)), tolerance=1e-6)
    (image, *_), _ = launch.call_args_list[0].args
    assert (image.source.dtype, image.dtype) == (torch.float32, torch.float64)


@pytest.mark.usefixtures("layout")
def test_under_autocast_errors_are_those_of_double_backward():
    def forward(net, x):
        h = F.relu(net.conv(x)) + net.pixels(F.avg_pool2d(x, 1))
        return net.linear(F.avg_pool2d(h, 2).sum((2, 3)))

    errors = torch.zeros(2)
    for seed in range(6):
        torch.manual_seed(seed)
        parts = {"conv": nn.Conv2d(3, 5, 3, padding=1), "pixels": nn.Conv2d(3, 5, 1), "linear": nn.Linear(5, 1)}
        net, x = Called(forward, **parts), torch.randn(6, 3, 6, 4)
        truth = outputs_and_gradients(reference.normalize_gradient, net.double(), x.double())
        net.float()
        for way, function in enumerate((gnfast.normalize_gradient, reference.normalize_gradient)):
            with torch.autocast("cpu", torch.bfloat16):
                seen = outputs_and_gradients(function, net, x)
            assert all(value.dtype == torch.float32 for value in seen.values())
            errors[way] += sum(relative_error(seen[key].double(), value) ** 2 for key, value in truth.items())
    assert errors[0] <= 2 * errors[1]
