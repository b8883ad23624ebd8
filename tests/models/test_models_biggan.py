"""The BigGAN pairs: parameter counts, what is spectrally normalised, and forwards written out once more by hand."""

import copy
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gnfast
from gnfast.models import build
from tests.models.test_models import conv, count, features


def make(name: str = "biggan", resolution: int = 32, width: float = 1 / 32, z_dim: int = 8):
    torch.manual_seed(0)
    generator, critic = build(name, resolution=resolution, classes=5, width=width, z_dim=z_dim)
    return generator.double(), critic.double()


@pytest.mark.parametrize("name", ["biggan", "biggan-faster"])
def test_parameter_counts_at_32_are_the_published_ones(name):
    with torch.device("meta"):
        pair = build(name, resolution=32, classes=10)
    assert tuple(map(count, pair)) == (4_304_387, 4_207_361)


@pytest.mark.parametrize(
    ("resolution", "z_dim", "generator", "critic", "downs"),
    [
        (64, 120, [1024, 512, 256, 128, 64], [64, 128, 256, 512, 1024], 4),
        (128, 128, [1024, 1024, 512, 256, 128, 64], [64, 128, 256, 512, 1024, 1024], 5),
    ],
)
def test_parameter_counts_with_attention_follow_from_the_layer_lists(resolution, z_dim, generator, critic, downs):
    with torch.device("meta"):
        pair = build("biggan-faster", resolution=resolution, classes=1000, z_dim=z_dim)

    def attention(width):
        return 2 * width * (width // 8) + 2 * width * (width // 2) + 1

    part = z_dim // len(generator)
    g = 1000 * 128 + (part + 1) * generator[0] * 16 + attention(generator[4])
    for i, o in pairwise(generator):
        g += 2 * (128 + part) * (i + o) + conv(i, o, 3) + conv(o, o, 3) + conv(i, o, 1)
    g += 2 * generator[-1] + conv(generator[-1], 3, 3)
    d = conv(3, critic[0], 3) + conv(critic[0], critic[0], 3) + conv(3, critic[0], 1) + attention(critic[0])
    for k, (i, o) in enumerate(pairwise(critic), start=1):
        d += conv(i, o, 3) + conv(o, o, 3) + (conv(i, o, 1) if k < downs or i != o else 0)
    d += critic[-1] + 1 + 1000 * critic[-1]
    assert tuple(map(count, pair)) == (g, d)


def test_critic_equals_the_formula():
    _, critic = make()
    x, y = torch.randn(3, 3, 32, 32, dtype=torch.float64), torch.tensor([3, 0, 3])
    projected = critic.linear.weight + critic.embedding.weight[y]
    expected = (projected * features(critic, x).sum((2, 3))).sum(1, keepdim=True) + critic.linear.bias
    torch.testing.assert_close(critic(x, y), expected, rtol=1e-12, atol=1e-12)


def test_generator_equals_the_formula():
    """With batch statistics, and every normalised weight written as W / (uᵀWv)."""
    generator, _ = make()
    generator.train()
    for module in generator.modules():
        if isinstance(module, nn.utils.parametrizations._SpectralNorm):
            module.eval()
    z, y = torch.randn(6, 8, dtype=torch.float64), torch.tensor([3, 0, 3, 1, 4, 2])

    def weight(layer):
        matrix = layer.parametrizations.weight.original
        norm = layer.parametrizations.weight[0]
        return matrix / (norm._u @ matrix.flatten(1) @ norm._v)

    def apply(layer, h):
        return F.conv2d(h, weight(layer), layer.bias, padding=layer.padding)

    def normalize(h, norm):
        h = (h - h.mean((0, 2, 3), keepdim=True)) / (h.var((0, 2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()
        return h * (1 + norm.gain.weight[y])[:, :, None, None] + norm.bias.weight[y][:, :, None, None]

    def up(h):
        return h.repeat_interleave(2, 2).repeat_interleave(2, 3)

    h = (z @ weight(generator.linear).T + generator.linear.bias).reshape(6, -1, 4, 4)
    for block in generator.blocks:
        r = apply(block.residual1[2], up(torch.relu(normalize(h, block.norm1))))
        h = apply(block.residual2[1], torch.relu(normalize(r, block.norm2))) + apply(block.shortcut[1], up(h))
    norm = generator.output[0]
    h = F.batch_norm(h, None, None, norm.weight, norm.bias, training=True)
    expected = torch.tanh(apply(generator.output[2], torch.relu(h)))
    torch.testing.assert_close(generator(z, y), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("name", "resolution", "blocks"), [("biggan", 32, 10), ("biggan-faster", 32, 0)])
def test_what_is_spectrally_normalised(name, resolution, blocks):
    generator, critic = make(name, resolution)
    norms = {
        layer: module
        for layer, module in generator.named_modules()
        if isinstance(module, nn.utils.parametrizations._SpectralNorm)
    }
    places = {layer.split(".parametrizations")[0] for layer in norms}
    inside = {f"blocks.{k}.{part}" for k in range(3) for part in ("residual1.2", "residual2.1", "shortcut.1")}
    assert places == {"linear", "output.2"} | (inside if blocks else set())
    assert {norm.eps for norm in norms.values()} == {1e-6}
    assert not any(isinstance(m, nn.utils.parametrizations._SpectralNorm) for m in critic.modules())


def test_initialisation_is_xavier_uniform():
    torch.manual_seed(0)
    for net in build("biggan", resolution=32, classes=10, width=0.25):
        for layer in net.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear | nn.Embedding):
                weight = layer.parametrizations.weight.original if hasattr(layer, "parametrizations") else layer.weight
                bound = (6 / sum(nn.init._calculate_fan_in_and_fan_out(weight))) ** 0.5
                assert weight.abs().max() <= bound
                assert weight.abs().max() > 0.9 * bound
                assert getattr(layer, "bias", None) is None or not layer.bias.any()


def test_generator_trains_copies_and_rewrites():
    generator, critic = make()
    critic.requires_grad_(False)
    z, y = torch.randn(5, 8, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 4])
    gnfast.normalize_gradient(critic, generator(z, y), y).mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in generator.parameters())
    assert generator.blocks[0].norm1.gain.weight.grad.any()
    twin = copy.deepcopy(generator).eval()
    images = twin(z, y)
    assert torch.equal(images, generator.eval()(z, y))
    torch.testing.assert_close(gnfast.rewrite(twin)(z, y), images, rtol=1e-10, atol=1e-12)
