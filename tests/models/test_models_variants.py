"""Variants of the networks: their widths, the critic's activation, its normalised features, its initialisation."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from gnfast.config.config import Config
from gnfast.models import REGISTRY, build
from gnfast.train.networks import build_networks
from tests.oracle import assert_matches_double_backward

CNNS = ["dcgan", "sngan-cnn", "small", "layered-5"]


def arguments(name: str) -> dict:
    resolution = 64 if name in ("sngan-concat", "sngan-projection") else 32
    return {"resolution": resolution, "z_dim": 7, "classes": 3 if REGISTRY[name].conditional else 0}


def shapes(net: nn.Module) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in net.state_dict().items()}


@pytest.mark.parametrize("name", REGISTRY)
def test_each_network_has_its_own_width(name):
    with torch.device("meta"):
        narrow, wide = (build(name, **arguments(name), width=width) for width in (0.1, 0.4))
        mixed = build(name, **arguments(name), width=0.2, width_g=2.0, width_d=0.5)
    assert shapes(mixed[0]) == shapes(wide[0]) != shapes(narrow[0])
    assert shapes(mixed[1]) == shapes(narrow[1]) != shapes(wide[1])


@pytest.mark.parametrize(("name", "before"), [("sngan-cnn", 256), ("dcgan", 512)])
def test_the_last_convolution_is_widened_on_both_sides(name, before):
    with torch.device("meta"):
        (_, usual), (_, widened) = (build(name, resolution=48, last_width=factor) for factor in (1.0, 4.0))
    convolutions = [[m for m in critic.modules() if isinstance(m, nn.Conv2d)] for critic in (usual, widened)]
    assert [m.weight.shape for m in convolutions[0][:5]] == [m.weight.shape for m in convolutions[1][:5]]
    assert convolutions[1][5].weight.shape == (4 * before, 256, 4, 4)
    assert convolutions[1][6].weight.shape == (4 * 512, 4 * before, 3, 3)
    assert widened.linear.in_features == 4 * usual.linear.in_features


class Called(TorchFunctionMode):
    """The names of the functions of PyTorch that run."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.names.add(getattr(function, "__name__", ""))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", REGISTRY)
def test_the_activation_takes_the_place_of_every_other(name):
    given = arguments(name)
    _, critic = build(name, **given, width=0.05, activation="softplus-20")
    x, labels = (
        torch.randn(2, 3, given["resolution"], given["resolution"]),
        [torch.tensor([0, 2])] * REGISTRY[name].conditional,
    )
    with Called() as called:
        critic(x, *labels)
    assert "softplus" in called.names
    assert not {"relu", "relu_", "leaky_relu", "leaky_relu_", "clamp", "maximum"} & called.names
    assert {m.beta for m in critic.modules() if isinstance(m, nn.Softplus)} == {20}
    with torch.device("meta"):
        assert shapes(critic) == shapes(build(name, **given, width=0.05)[1])


@pytest.mark.parametrize("kind", ["batch", "layer"])
@pytest.mark.parametrize("name", CNNS)
def test_a_cnn_has_its_norms_between_convolution_and_activation(name, kind):
    """The whole forward once more by hand: no norm after the first convolution, and no gain."""
    torch.manual_seed(0)
    _, critic = build(name, resolution=32, width=0.1, norm_d=kind)
    critic.double()
    with torch.no_grad():
        for parameter in critic.parameters():
            parameter.normal_(std=0.3)
    x = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    axes = (0, 2, 3) if kind == "batch" else (1, 2, 3)
    slope = 0.0 if name.startswith("layered") else 0.1
    biases = [bias for key, bias in critic.named_parameters() if key.startswith("main") and bias.ndim == 1]
    h = x
    convolutions = [m for m in critic.modules() if isinstance(m, nn.Conv2d)]
    # A convolution's bias and, but for the first, the norm's.
    assert len(biases) == 2 * len(convolutions) - 1
    for index, convolution in enumerate(convolutions):
        h = F.conv2d(h, convolution.weight, convolution.bias, convolution.stride, 1)
        if index:
            centred = h - h.mean(axes, keepdim=True)
            h = centred / (centred.square().mean(axes, keepdim=True) + 1e-5).sqrt()
            h = h + biases[2 * index][:, None, None]
        h = torch.where(h > 0, h, slope * h)
    torch.testing.assert_close(critic(x), critic.linear(h.flatten(1)), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["sngan-resnet", "mimicry-resnet", "biggan"])
def test_a_residual_critic_has_a_norm_before_each_activation_but_the_first(name):
    _, critic = build(name, **arguments(name), width=0.1, norm_d="layer")
    places = [key for key, m in critic.named_modules() if isinstance(m, nn.GroupNorm)]
    activations = [key for key, m in critic.named_modules() if isinstance(m, nn.ReLU)]
    assert [key.removesuffix(".0.norm") for key in places] == [key.removesuffix(".1") for key in activations[1:]]
    assert activations[0] == "model.0.residual.1"


def test_a_critic_with_layer_norm_takes_six_passes():
    torch.manual_seed(0)
    _, critic = build("small", resolution=16, width=0.3, norm_d="layer")
    assert_matches_double_backward(critic.double(), torch.randn(3, 3, 16, 16, dtype=torch.float64))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name": "resnet", "last_width": 2.0}, "last_width: resnet has no last convolution to widen alone, got 2.0"),
        ({"name": "dcgan", "width_g": 0.0}, "width_g: got 0.0, wanted a positive factor"),
        ({"name": "dcgan", "width_d": -1.0}, "width_d: got -1.0, wanted a positive factor"),
        ({"name": "dcgan", "last_width": float("nan")}, "last_width: got nan, wanted a positive factor"),
        ({"name": "dcgan", "activation": "tanh"}, "activation: got 'tanh', wanted one of default, relu, leaky-relu"),
        ({"name": "dcgan", "norm_d": "group"}, "norm_d: got 'group', wanted one of none, batch, layer"),
    ],
)
def test_bad_variants_say_what_was_wanted(given, message):
    with pytest.raises(ValueError, match=message):
        build(**given, resolution=32)


SETTINGS = Config(data="", resolution=16, model="small", width=0.3, method="none")


def test_the_settings_of_a_run_reach_its_networks():
    changes = {"width_g": 2.0, "width_d": 0.5, "activation": "elu", "norm_d": "layer"}
    generator, critic = build_networks(dataclasses.replace(SETTINGS, **changes))
    expected = build("small", resolution=16, width=0.3, **changes)
    assert (shapes(generator), shapes(critic)) == tuple(map(shapes, expected))
    assert sum(isinstance(m, nn.ELU) for m in critic.modules()) == 4
    cnn = dataclasses.replace(SETTINGS, model="sngan-cnn", last_width=3.0)
    assert shapes(build_networks(cnn)[1]) == shapes(build("sngan-cnn", resolution=16, width=0.3, last_width=3.0)[1])


def test_the_critic_can_be_initialised_alone():
    generator, critic = build_networks(dataclasses.replace(SETTINGS, init_d="orthogonal"))
    plain, usual = build_networks(SETTINGS)
    assert all(map(torch.equal, generator.state_dict().values(), plain.state_dict().values()))
    assert shapes(critic) == shapes(usual)
    for layer in critic.modules():
        if isinstance(layer, nn.Conv2d):
            rows = layer.weight.flatten(1).double()
            rows = rows if rows.shape[0] <= rows.shape[1] else rows.T
            torch.testing.assert_close(rows @ rows.T, torch.eye(len(rows), dtype=torch.float64), rtol=0, atol=1e-5)


@pytest.mark.parametrize("changes", [{"method": "gn"}, {"penalty": "1-gp"}])
def test_batch_norm_in_a_normalised_or_penalised_critic_is_refused(changes):
    with pytest.raises(ValueError, match="--norm-d: got 'batch', wanted none or layer with --method or --penalty"):
        dataclasses.replace(SETTINGS, norm_d="batch", **changes)
    dataclasses.replace(SETTINGS, norm_d="layer", **changes)


@pytest.mark.parametrize("changes", [{"norm_d": "layer"}, {"activation": "softplus"}])
def test_a_critic_that_is_not_homogeneous_is_not_rescaled(changes):
    dataclasses.replace(SETTINGS, method="gn", rescale="initial", activation="leaky-relu")
    with pytest.raises(
        ValueError, match="--rescale: got 'initial', wanted none with --norm-d or a curved --activation"
    ):
        dataclasses.replace(SETTINGS, method="gn", rescale="initial", **changes)
