"""Rescaling: f becomes c · f, f̂ stays, weights get their target size, and what cannot be done is left untouched."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gnfast
from gnfast import UnsupportedError, models
from tests.engine.test_engine import NETWORKS, Called, ResNet
from tests.oracle import relative_error


def branches(net, x):
    """An identity shortcut, a concatenation, a branch that ends in an activation, a maximum."""
    h = net.stem(x).relu()
    h = h + F.leaky_relu(net.conv(h), 0.1)
    h = torch.cat([h, net.side(h).abs()], 1)
    h = torch.maximum(net.top(h), F.max_pool2d(h, 3, 1))
    return net.out(2 * h.mean((2, 3)))


CRITICS = {
    "mlp": NETWORKS["mlp"],
    "cnn": NETWORKS["cnn"],
    "resnet": ResNet,
    "branches": lambda: Called(
        branches,
        stem=nn.Conv2d(3, 4, 3, padding=1),
        conv=nn.Conv2d(4, 4, 3, padding=1),
        side=nn.Conv2d(4, 2, 1),
        top=nn.Conv2d(6, 6, 3),
        out=nn.Linear(6, 1),
    ),
    "without bias": NETWORKS["cnn-without-bias"],
    "shipped resnet": lambda: models.build("resnet", resolution=32, width=0.1)[1],
}


@pytest.mark.parametrize("norm", [None, 0.7])
@pytest.mark.parametrize("name", CRITICS)
def test_f_is_scaled_and_f_hat_is_not(name, norm):
    net = CRITICS[name]().double()
    x = torch.randn(4, 3, *((32, 32) if "shipped" in name else (5, 7)), dtype=torch.float64)
    before, f_hat = net(x), gnfast.normalize_gradient(net, x, strict=True)
    factor = gnfast.rescale_(net, x, norm=norm)
    assert factor > 0 and abs(factor - 1) > 1e-3
    assert relative_error(net(x), factor * before) < 1e-12
    assert relative_error(gnfast.normalize_gradient(net, x, strict=True), f_hat) < 1e-12
    sizes = [
        p.norm() if norm else p.std() * (p[0, 0].numel() * sum(p.shape[:2])) ** 0.5 / 2
        for p in net.parameters()
        if p.dim() > 1
    ]
    # The layers that take a ratio at the end of a branch have another size.
    exact = sum(abs(size.item() - (norm or 1)) < 1e-9 for size in sizes)
    assert exact >= len(sizes) - {"resnet": 2, "branches": 3, "shipped resnet": 4}.get(name, 0)


def test_doing_it_again_changes_nothing(x):
    net = ResNet().double()
    for _ in range(3):
        gnfast.rescale_(net, x)
    # Ratios at the ends of branches are taken relative to what was there, so they may settle first.
    again = copy.deepcopy(net.state_dict())
    gnfast.rescale_(net, x)
    assert all(relative_error(again[k], v) < 1e-9 for k, v in net.state_dict().items())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (NETWORKS["arithmetic"], "not positively homogeneous"),
        (NETWORKS["shared"], "used by another layer"),
        (NETWORKS["spectral-norm"], "parametrised"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(105, 3), nn.Hardtanh(), nn.Linear(3, 1)), "hardtanh in .* '2'"),
        (lambda: Called(lambda net, x: F.linear(x.flatten(1), net.weight), weight=torch.zeros(1, 105)), "no scale"),
    ],
)
def test_what_is_not_homogeneous_is_refused_untouched(make, message, x):
    net = make().double()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(UnsupportedError, match=message):
        gnfast.rescale_(net, x)
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
