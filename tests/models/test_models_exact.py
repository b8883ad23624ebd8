"""Every shipped critic without curvature is exact in four passes, in float64, at small width and odd batch sizes."""

import pytest
import torch

import gnfast
from gnfast import models
from tests.oracle import assert_matches_double_backward, assert_same, outputs_and_gradients

# name, resolution, width, batch
CRITICS = [
    ("dcgan", 32, 1 / 16, 3),
    ("sngan-cnn", 48, 1 / 8, 1),
    ("resnet", 32, 1 / 16, 5),
    ("resnet", 48, 1 / 16, 3),
    ("resnet", 64, 1 / 32, 3),
    ("resnet", 128, 1 / 32, 3),
    ("resnet", 256, 1 / 32, 1),
    ("sngan-resnet", 48, 1 / 16, 3),
    ("sngan-resnet", 64, 1 / 32, 3),
    ("sngan-resnet", 128, 1 / 32, 1),
    ("gulrajani-resnet", 32, 1 / 16, 3),
    ("mimicry-resnet", 32, 1 / 16, 5),
    ("mimicry-resnet", 48, 1 / 32, 3),
    ("mimicry-resnet", 64, 1 / 32, 3),
    ("mimicry-resnet", 128, 1 / 32, 1),
    ("small", 16, 1 / 4, 7),
    ("biggan", 32, 1 / 32, 5),
    ("biggan-faster", 32, 1 / 32, 3),
    ("sngan-concat", 64, 1 / 32, 3),
    ("sngan-concat", 128, 1 / 32, 1),
    ("sngan-projection", 64, 1 / 32, 3),
    ("sngan-projection", 128, 1 / 32, 1),
]


def make(name: str, resolution: int, width: float, batch: int):
    """A critic whose biases are not zero, in double precision, with images and labels."""
    torch.manual_seed(sum(map(ord, name)) + resolution)
    classes = 4 if models.REGISTRY[name].conditional else 0
    _, critic = models.build(name, resolution=resolution, width=width, classes=classes, z_dim=8)
    critic.double()
    with torch.no_grad():
        for parameter in critic.parameters():
            if parameter.ndim == 1:
                parameter.normal_(std=0.1)
    x = torch.randn(batch, 3, resolution, resolution, dtype=torch.float64)
    return critic, x, (torch.randint(classes, (batch,)),) if classes else ()


@pytest.mark.parametrize(("name", "resolution", "width", "batch"), CRITICS)
def test_critic_matches_double_backward(name, resolution, width, batch):
    critic, x, labels = make(name, resolution, width, batch)
    assert "Exact in four passes" in str(gnfast.trace(critic, x, *labels))
    seen = outputs_and_gradients(gnfast.reference.normalize_gradient, critic, x, *labels)
    idle = [key for key, value in seen.items() if value is None or value.norm() < 1e-12]
    assert not idle, "a gradient that is zero tests nothing"
    assert_matches_double_backward(critic, x, *labels)


@pytest.mark.parametrize("name", ["gran", "pgn"])
def test_labels_go_through_every_method(name):
    critic, x, labels = make("biggan", 32, 1 / 32, 5)
    functions = gnfast.normalize_gradient, gnfast.reference.normalize_gradient
    assert_same(*(outputs_and_gradients(function, critic, x, *labels, method=name) for function in functions))


def test_labels_as_a_keyword():
    critic, x, (y,) = make("biggan", 32, 1 / 32, 3)
    assert torch.equal(gnfast.normalize_gradient(critic, x, y=y), gnfast.normalize_gradient(critic, x, y))


@pytest.mark.parametrize("resolution", [64, 128])
def test_attention_takes_six_passes_below(resolution):
    critic, x, labels = make("biggan-faster", resolution, 1 / 32, 3)
    with torch.no_grad():
        critic.model[1].gamma.fill_(0.7)
    assert "six passes" in str(gnfast.trace(critic, x, *labels))
    assert_matches_double_backward(critic, x, *labels)


@pytest.mark.parametrize("layers", [3, 4, 6, 9])
@pytest.mark.parametrize("activation", ["relu", "leaky-relu"])
def test_layered_critics_match_double_backward(layers, activation):
    torch.manual_seed(layers)
    critic = models.layered_critic(16, 1, layers, 1 / 16, activation).double()
    # N(0, 0.02) leaves a critic this narrow with gradients near the smallest that the comparison takes seriously.
    models.initialise_(critic, "kaiming-normal")
    assert_matches_double_backward(critic, torch.randn(5, 1, 16, 16, dtype=torch.float64))


def test_weight_normalised_critic_matches_double_backward():
    critic, x, _ = make("dcgan", 32, 1 / 16, 3)
    models.initialise_(critic, "kaiming-normal")
    assert_matches_double_backward(models.weight_norm_(critic), x)


def test_spectrally_normalised_mimicry_critic_matches_double_backward():
    critic, x, _ = make("mimicry-resnet", 32, 1 / 16, 3)
    gnfast.spectral_norm_(critic).eval()
    assert_matches_double_backward(critic, x)
