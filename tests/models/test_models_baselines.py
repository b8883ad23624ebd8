"""SN-GAN's baselines on weights, against the paper's formulas in float64: normalised, clipped, near orthonormal."""

import copy

import pytest
import torch
from torch import nn

import gnfast
from gnfast import models
from gnfast.models.baselines import clip_weights_, orthonormality, weight_norm_

KINDS = [("unit", False), ("unit", True), ("frobenius", False), ("frobenius", True)]


def layers() -> nn.Sequential:
    """Weights with more rows than columns, fewer, and as many; one that keeps its rows in the second dimension."""
    shapes = nn.Conv2d(2, 20, 3), nn.Conv2d(20, 3, 3), nn.ConvTranspose2d(3, 5, 2), nn.Linear(4, 4), nn.Embedding(3, 6)
    return nn.Sequential(*shapes).double()


def as_rows(layer: nn.Module, weight: torch.Tensor) -> torch.Tensor:
    return (weight.transpose(0, 1) if isinstance(layer, nn.ConvTranspose2d) else weight).flatten(1)


@pytest.mark.parametrize(("kind", "learn_scale"), KINDS)
def test_normalised_weights_and_their_gradients_are_the_papers(kind, learn_scale):
    net = layers()
    raw = [layer.weight.detach().clone() for layer in net]
    assert weight_norm_(net, kind, learn_scale) is net
    for layer, w in zip(net, raw, strict=True):
        held = layer.parametrizations.weight
        rows = as_rows(layer, w)
        norm = rows.norm(dim=1, keepdim=True) if kind == "unit" else rows.norm()
        gamma = torch.ones_like(norm)
        if learn_scale:
            assert held[0].gamma.numel() == norm.numel() and (held[0].gamma == 1).all(), "a number for each norm"
            gamma = 1 + torch.rand_like(norm)
            held[0].gamma.data.copy_(gamma.reshape(held[0].gamma.shape))
        applied = as_rows(layer, layer.weight)
        torch.testing.assert_close(applied, gamma * rows / norm, rtol=0, atol=1e-14)
        upstream = torch.randn_like(applied)
        applied.backward(upstream)
        # (36), with the norm of each row in place of the weight's for (25).
        unit = rows / norm
        along = (upstream * unit).sum(1, keepdim=True) if kind == "unit" else (upstream * unit).sum()
        expected = gamma / norm * (upstream - along * unit)
        torch.testing.assert_close(as_rows(layer, held.original.grad), expected, rtol=0, atol=1e-12)
        if learn_scale:
            torch.testing.assert_close(held[0].gamma.grad.flatten(), along.flatten(), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("kind", "learn_scale"), [*KINDS, ("learned", False)])
def test_four_passes_serve_normalised_critics(kind, learn_scale):
    critic = weight_norm_(models.build("dcgan", resolution=16, width=1 / 16)[1].double(), kind, learn_scale)
    x = torch.randn(5, 3, 16, 16, dtype=torch.float64)
    found = []
    for impl in ("auto", "reference"):
        critic.zero_grad()
        gnfast.normalize_gradient(critic, x, impl=impl, strict=impl == "auto").square().sum().backward()
        found.append([parameter.grad for parameter in critic.parameters()])
    assert max(grad.abs().max() for grad in found[0]) > 1e-3
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("kind", "learn_scale"), [*KINDS, ("learned", False)])
def test_normalised_networks_are_saved_copied_and_initialised(kind, learn_scale):
    net, other = (weight_norm_(layers(), kind, learn_scale) for _ in range(2))
    other.load_state_dict(net.state_dict())
    for name, value in copy.deepcopy(net).state_dict().items():
        assert torch.equal(value, other.state_dict()[name])
    models.initialise_(net, "orthogonal")
    rows = net[1].weight.flatten(1)
    expected = torch.eye(3, dtype=torch.float64) / (3 if kind == "frobenius" else 1)
    torch.testing.assert_close(rows @ rows.T, expected, rtol=0, atol=1e-12)


def test_a_weight_of_zeros_stays_zero():
    layer = weight_norm_(nn.Linear(3, 2), "frobenius")
    layer.weight = torch.zeros(2, 3)
    layer.weight.sum().backward()
    assert not layer.weight.any() and layer.parametrizations.weight.original.grad.isfinite().all()


def test_orthonormality_is_the_papers_formula():
    net = layers()
    expected = 0
    for layer in list(net)[:-1]:
        w = as_rows(layer, layer.weight)
        expected = expected + (w.T @ w - torch.eye(w.shape[1], dtype=w.dtype)).square().sum()
    weights = [layer.weight for layer in net]
    ours = torch.autograd.grad(value := orthonormality(net), weights, allow_unused=True)
    theirs = torch.autograd.grad(expected, weights, allow_unused=True)
    torch.testing.assert_close(value, expected, rtol=1e-13, atol=0)
    assert ours[-1] is theirs[-1] is None, "embeddings are left alone"
    for a, b in zip(ours[:-1], theirs[:-1], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    nn.init.orthogonal_(net[0].weight)
    torch.testing.assert_close(orthonormality(net[:1]).item(), 0.0, rtol=0, atol=1e-12)


def test_clipping_spares_biases_and_batch_norm():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ConvTranspose2d(2, 2, 3), nn.Linear(3, 3))
    for parameter in net.parameters():
        nn.init.normal_(parameter)
    before = {name: value.clone() for name, value in net.named_parameters()}
    assert clip_weights_(net, 0.1) is net
    for name, value in net.named_parameters():
        clipped = name in ("0.weight", "2.weight", "3.weight")
        assert torch.equal(value, before[name].clamp(-0.1, 0.1) if clipped else before[name]), name
        assert before[name].abs().max() > 0.1


@pytest.mark.parametrize("function", [orthonormality, lambda net: clip_weights_(net, 1.0)])
def test_computed_weights_are_refused(function):
    with pytest.raises(ValueError, match="net: got parametrised weights"):
        function(weight_norm_(nn.Linear(2, 2)))
    with pytest.raises(ValueError, match="net: ReLU has no convolution"):
        function(nn.ReLU())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("rows",), "kind: got 'rows'"), (("learned", True), "learn_scale: got True, wanted False")],
)
def test_wrong_kinds_say_what_was_wanted(arguments, message):
    with pytest.raises(ValueError, match=message):
        weight_norm_(nn.Linear(2, 2), *arguments)
