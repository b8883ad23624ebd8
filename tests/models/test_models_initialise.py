"""Initialisation by name, critics of a given depth, and weight normalisation of a whole network."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

import gnfast
from gnfast import models


def every_kind() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(12, 20, 3),
        nn.BatchNorm2d(20),
        nn.ConvTranspose2d(20, 16, 4, bias=False),
        nn.Flatten(),
        nn.Linear(40, 30),
        nn.Embedding(10, 40),
    )


@pytest.mark.parametrize("scheme", ["kaiming-normal", "xavier-uniform", "normal"])
def test_scheme_has_its_spread_in_every_layer(scheme):
    torch.manual_seed(0)
    net = every_kind()
    assert models.initialise_(net, scheme) is net
    for layer in net:
        if not hasattr(layer, "weight") or isinstance(layer, nn.BatchNorm2d):
            continue
        fan_in = layer.weight[0].numel()
        fan_out = layer.weight.shape[0] * layer.weight[0, 0].numel()
        std = {"kaiming-normal": (2 / fan_in) ** 0.5, "xavier-uniform": (2 / (fan_in + fan_out)) ** 0.5, "normal": 0.02}
        # Four standard errors of the standard deviation of normal samples; uniform ones have less.
        assert abs(layer.weight.std() / std[scheme] - 1) < 4 / math.sqrt(2 * layer.weight.numel())
        assert abs(layer.weight.mean()) < 4 * std[scheme] / math.sqrt(layer.weight.numel())
        bounded = bool(layer.weight.abs().max() <= std[scheme] * 3**0.5)
        assert bounded == (scheme == "xavier-uniform"), "uniform numbers end at √3 standard deviations"
        assert getattr(layer, "bias", None) is None or not layer.bias.any()
    assert net[1].weight.eq(1).all(), "batch norm stays"


def test_orthogonal_rows():
    net = models.initialise_(nn.Sequential(nn.Conv2d(4, 8, 3)), "orthogonal")
    rows = net[0].weight.flatten(1).double()
    torch.testing.assert_close(rows @ rows.T, torch.eye(8, dtype=torch.float64), rtol=0, atol=1e-6)


def test_default_changes_nothing():
    net = every_kind()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = torch.get_rng_state()
    models.initialise_(net, "default")
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())


def test_a_seed_gives_the_same_network_with_and_without_spectral_norm():
    plain, normalized = every_kind()[:1], gnfast.spectral_norm_(every_kind()[:1])
    for net in (plain, normalized):
        torch.manual_seed(3)
        models.initialise_(net, "kaiming-normal")
    assert torch.equal(normalized[0].parametrizations.weight.original, plain[0].weight)
    for _ in range(50):
        weight = normalized[0].weight
    assert torch.linalg.matrix_norm(weight.flatten(1), 2).item() == pytest.approx(1, rel=1e-3)


def test_an_unknown_scheme_says_what_there_is():
    with pytest.raises(ValueError, match="scheme: got 'glorot', wanted one of default, kaiming-normal, xavier-uniform"):
        models.initialise_(every_kind(), "glorot")


@pytest.mark.parametrize("layers", [3, 5, 6, 7, 9])
def test_layered_critic_has_the_layers_of_the_code(layers):
    critic = models.layered_critic(layers=layers)
    shapes = [(m.in_channels, m.out_channels, m.kernel_size[0], m.stride[0]) for m in critic.main[::2]]
    expected = {
        3: [(3, 128, 4, 2), (128, 256, 4, 2), (256, 512, 4, 2)],
        5: [(3, 64, 3, 1), (64, 128, 4, 2), (128, 128, 3, 1), (128, 256, 4, 2), (256, 512, 4, 2)],
    }
    assert len(shapes) == layers
    assert shapes == expected.get(layers, shapes)
    assert [o for _, o, k, _ in shapes if k == 4] == [128, 256, 512]
    assert [o for _, o, k, _ in shapes if k == 3] == sorted(o for _, o, k, _ in shapes if k == 3)
    assert all(i == o for (_, i, _, _), (o, _, _, _) in pairwise(shapes))
    assert critic.linear.in_features == 512 * 4 * 4
    assert critic(torch.zeros(2, 3, 32, 32)).shape == (2, 1)


@pytest.mark.parametrize("layers", range(3, 10))
def test_layered_pairs_have_as_many_convolutions_in_each_network(layers):
    generator, critic = models.build(f"layered-{layers}", resolution=16, width=1 / 8, z_dim=5)
    kinds = nn.Conv2d | nn.ConvTranspose2d
    assert [sum(isinstance(m, kinds) for m in net.modules()) for net in (generator, critic)] == [layers, layers]
    # From the smallest map up: 3x3 convolutions keep the width, of which the later stages have as many or more.
    ours = [m for m in generator.main if isinstance(m, kinds)]
    stages = [[m for m in ours if m.in_channels == width] for width in (16, 8, 4)]
    assert [len(stage) for stage in stages] == [layers // 3, (layers + 1) // 3, (layers + 2) // 3]
    assert [stage[-1].out_channels for stage in stages] == [8, 4, 3]
    assert all(m.kernel_size == (3, 3) and m.out_channels == m.in_channels for stage in stages for m in stage[:-1])
    images = generator(torch.randn(2, 5))
    assert images.shape == (2, 3, 16, 16)
    assert critic(images).shape == (2, 1)


@pytest.mark.parametrize(
    ("activation", "formula"),
    [
        ("relu", lambda x: x.clamp(min=0)),
        ("leaky-relu", lambda x: torch.where(x > 0, x, 0.1 * x)),
        ("elu", lambda x: torch.where(x > 0, x, x.exp() - 1)),
        ("softplus", lambda x: (1 + x.exp()).log()),
        ("softplus-20", lambda x: (1 + (20 * x).exp()).log() / 20),
    ],
)
def test_activations_are_what_their_names_say(activation, formula):
    critic = models.layered_critic(16, 1, 4, 1 / 16, activation).double()
    x = torch.linspace(-2, 2, 21, dtype=torch.float64)
    for layer in critic.main[1::2]:
        torch.testing.assert_close(layer(x), formula(x), rtol=1e-9, atol=1e-12)
    plan = str(gnfast.trace(critic, torch.randn(3, 1, 16, 16, dtype=torch.float64)))
    assert ("Exact in four passes" in plan) == (activation in ("relu", "leaky-relu"))


def test_a_sharp_softplus_is_nearly_a_relu():
    torch.manual_seed(0)
    relu = models.layered_critic(16, 1, 3, 1 / 8)
    models.initialise_(relu, "kaiming-normal")
    x = torch.randn(4, 1, 16, 16)
    gaps = []
    for name in ("softplus", "softplus-20"):
        soft = models.layered_critic(16, 1, 3, 1 / 8, name)
        soft.load_state_dict(relu.state_dict())
        gaps.append((soft(x) - relu(x)).abs().max().item())
    assert gaps[1] < 0.1 * gaps[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"resolution": 20}, "resolution: got 20, wanted a multiple of 8"),
        ({"layers": 2}, "layers: got 2, wanted at least 3"),
        ({"width": 0.0}, "width: got 0.0"),
        ({"activation": "tanh"}, "activation: got 'tanh', wanted one of relu, leaky-relu, elu, softplus, softplus-20"),
    ],
)
def test_bad_critics_say_what_was_wanted(arguments, message):
    with pytest.raises(ValueError, match=message):
        models.layered_critic(**arguments)


def test_weight_norm_keeps_the_function_and_normalises_per_output():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ConvTranspose2d(5, 4, 3), nn.Flatten(), nn.Linear(256, 2)).double()
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    expected = net(x)
    assert models.weight_norm_(net) is net
    torch.testing.assert_close(net(x), expected, rtol=1e-12, atol=1e-12)
    lengths = [layer.parametrizations.weight.original0.numel() for layer in net if hasattr(layer, "weight")]
    assert lengths == [5, 4, 2], "one length for each output channel"


def test_weight_norm_of_nothing():
    with pytest.raises(ValueError, match="net: ReLU has no convolution"):
        models.weight_norm_(nn.ReLU())
