"""The BigGAN pairs: parameter counts, what is spectrally normalised, and forwards written out once more by hand."""

import copy
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gnfast
from gnfast.models import biggan, build


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def conv(i: int, o: int, k: int) -> int:
    return i * o * k * k + o


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


@pytest.mark.parametrize(
    ("name", "resolution", "channels"),
    [
        ("biggan", 32, 3),
        ("biggan", 32, 1),
        ("biggan-faster", 32, 3),
        ("biggan-faster", 64, 3),
        ("biggan-faster", 128, 1),
    ],
)
def test_shapes_and_range(name, resolution, channels):
    generator, critic = build(name, resolution=resolution, channels=channels, z_dim=13, width=1 / 32, classes=5)
    y = torch.tensor([0, 4, 2])
    images = generator(torch.randn(3, 13), y)
    assert images.shape == (3, channels, resolution, resolution) and images.abs().max() <= 1
    assert critic(images, y).shape == (3, 1)


def test_critic_equals_the_formula():
    _, critic = make()
    x, y = torch.randn(3, 3, 32, 32, dtype=torch.float64), torch.tensor([3, 0, 3])
    first, *blocks = list(critic.model)[:4]
    h = F.avg_pool2d(first.residual[2](torch.relu(first.residual[0](x))), 2) + first.shortcut[1](F.avg_pool2d(x, 2))
    for block, down in zip(blocks, (True, False, False), strict=True):
        r = block.residual[3](torch.relu(block.residual[1](torch.relu(h))))
        h = F.avg_pool2d(r, 2) + F.avg_pool2d(block.shortcut[0](h), 2) if down else r + h
    h = torch.relu(h).sum((2, 3))
    expected = torch.stack(
        [
            critic.linear.weight[0] @ row + critic.linear.bias[0] + critic.embedding.weight[k] @ row
            for k, row in zip(y, h, strict=True)
        ]
    )
    torch.testing.assert_close(critic(x, y), expected[:, None], rtol=1e-12, atol=1e-12)


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


def test_attention_equals_the_formula():
    torch.manual_seed(0)
    attention = biggan.Attention(16).double()
    with torch.no_grad():
        attention.gamma.fill_(0.3)
    x = torch.randn(3, 16, 6, 4, dtype=torch.float64)
    q = torch.einsum("oc,bchw->bohw", attention.q.weight[:, :, 0, 0], x).reshape(3, 2, 24)
    k, v = (
        F.max_pool2d(torch.einsum("oc,bchw->bohw", conv.weight[:, :, 0, 0], x), 2).reshape(3, -1, 6)
        for conv in (attention.k, attention.v)
    )
    weights = torch.einsum("bci,bcj->bij", q, k).softmax(2)
    mixed = torch.einsum("bij,bcj->bci", weights, v).reshape(3, 8, 6, 4)
    expected = x + 0.3 * torch.einsum("oc,bchw->bohw", attention.o.weight[:, :, 0, 0], mixed)
    torch.testing.assert_close(attention(x), expected, rtol=1e-12, atol=1e-12)


def test_parts_of_the_latent_vector_go_to_the_blocks():
    generator, _ = make("biggan-faster", 64, z_dim=23)
    generator.eval()
    z, y = torch.randn(1, 23, dtype=torch.float64), torch.tensor([1])
    seen = []
    for block in generator.blocks:
        block.norm1.register_forward_pre_hook(lambda module, args: seen.append(args[1]))
    images = generator(z, y)
    label = generator.shared.weight[1]
    expected = [torch.cat([label, z[0, 4 * k : 4 * k + 4]])[None] for k in (1, 2, 3, 4)]
    assert len(seen) == 4 and all(torch.equal(a, b) for a, b in zip(seen, expected, strict=True))
    z[:, 20:] += 1
    assert torch.equal(generator(z, y), images), "what remains after five parts of four is not used"


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
