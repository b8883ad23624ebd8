"""SN-GAN's class-conditional pairs: parameters counted from their layers, forwards by hand, classifier gradients."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gnfast
from gnfast.models import REGISTRY, build
from gnfast.models.biggan import ConditionalBatchNorm
from tests.models.test_models import conv, count
from tests.models.test_models_resnet import critic_count, generator_count
from tests.oracle import assert_matches_double_backward, relative_error

G = {32: (4, [256] * 4), 64: (4, [1024, 512, 256, 128, 64]), 128: (4, [1024, 1024, 512, 256, 128, 64])}
D = {32: ([128] * 4, 2), 64: ([64, 128, 256, 512, 1024], 5), 128: ([64, 128, 256, 512, 1024, 1024], 5)}
# Of the fourth block with 128 more channels, hidden ones as many as come in; and of the same block without them.
JOINED, PLAIN = (conv(i, i, 3) + conv(i, 512, 3) + conv(i, 512, 1) for i in (256 + 128, 256))


@pytest.mark.parametrize(
    ("name", "resolution", "classes", "label"),
    [
        ("sngan-concat", 64, 1000, 1000 * 128 + JOINED - PLAIN),
        ("sngan-concat", 128, 1000, 1000 * 128 + JOINED - PLAIN),
        ("sngan-projection", 64, 1000, 1000 * 1024),
        ("sngan-projection", 128, 1000, 1000 * 1024),
        ("sngan-ac", 32, 10, 10 * (128 + 1)),
    ],
)
def test_parameter_counts_follow_from_the_layer_lists(name, resolution, classes, label):
    start, widths = G[resolution]
    # Two norms in each block, with a gain and a bias for each class in place of one for all.
    norms = sum(widths[:-1]) + sum(widths[1:])
    generator = generator_count(start, widths) + 2 * (classes - 1) * norms
    with torch.device("meta"):
        pair = build(name, resolution=resolution, classes=classes)
    assert [*map(count, pair)] == [generator, critic_count(*D[resolution], "in") + label]


def make(name: str, resolution: int):
    """A pair whose parameters are not those of the start, images and labels, in float64."""
    torch.manual_seed(1)
    pair = [net.double() for net in build(name, resolution=resolution, classes=4, width=1 / 16, z_dim=6)]
    with torch.no_grad():
        for net in pair:
            for parameter in net.parameters():
                parameter.normal_(std=0.2)
    x = torch.randn(3, 3, resolution, resolution, dtype=torch.float64)
    return *pair, x, torch.tensor([2, 0, 2])


def features(blocks: list[nn.Module], downs: int, h: torch.Tensor, embedded: torch.Tensor | None = None):
    """The map before the pool: blocks of ReLU-conv-ReLU-conv with a 1x1 shortcut, the first without its first ReLU."""
    pool = F.avg_pool2d
    for k, block in enumerate(blocks):
        if k == 3 and embedded is not None:
            h = torch.cat([h, embedded[:, :, None, None] + 0 * h[:, :1]], 1)
        c1, c2 = [m for m in block.residual if isinstance(m, nn.Conv2d)]
        shortcuts = [m for m in block.shortcut if isinstance(m, nn.Conv2d)]
        r = c2(c1(h if k == 0 else h.relu()).relu())
        if k == 0:
            h = pool(r, 2) + shortcuts[0](pool(h, 2))
            continue
        s = shortcuts[0](h) if shortcuts else h
        h = pool(r, 2) + pool(s, 2) if k < downs else r + s
    return h.relu()


@pytest.mark.parametrize("resolution", [64, 128])
def test_the_concatenated_critic_equals_the_formula(resolution):
    _, critic, x, y = make("sngan-concat", resolution)
    blocks, downs = list(critic.model)[: len(D[resolution][0])], D[resolution][1]
    h = features(blocks, downs, x, critic.embedding.weight[y])
    expected = h.sum((2, 3)) @ critic.linear.weight.T + critic.linear.bias
    torch.testing.assert_close(critic(x, y), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("resolution", [64, 128])
def test_the_projecting_critic_equals_the_formula(resolution):
    _, critic, x, y = make("sngan-projection", resolution)
    h = features(list(critic.model)[: len(D[resolution][0])], D[resolution][1], x).sum((2, 3))
    expected = ((critic.linear.weight + critic.embedding.weight[y]) * h).sum(1, keepdim=True) + critic.linear.bias
    torch.testing.assert_close(critic(x, y), expected, rtol=1e-12, atol=1e-12)


def test_the_classifying_critic_equals_the_formula():
    _, critic, x, y = make("sngan-ac", 32)
    h = features(list(critic.model)[:4], 2, x).mean((2, 3))
    for ours, layer in ((critic(x, y), critic.linear), (critic.classify(x), critic.classifier)):
        torch.testing.assert_close(ours, h @ layer.weight.T + layer.bias, rtol=1e-12, atol=1e-12)
    assert torch.equal(critic(x, y), critic(x, y.flip(0) * 0)), "the logit does not see the label"
    assert critic.classify(x).shape == (3, 4)
    assert [name for name, family in REGISTRY.items() if family.classifier] == ["sngan-ac"]


def test_the_generator_equals_the_formula():
    generator, _, _, y = make("sngan-ac", 32)
    z = torch.randn(3, 6, dtype=torch.float64)

    def norm(h, gain, bias):
        h = (h - h.mean((0, 2, 3), keepdim=True)) / (h.var((0, 2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()
        return (h * gain[..., None, None] + bias[..., None, None]).relu()

    def conditional(h, layer):
        return norm(h, 1 + layer.gain.weight[y], layer.bias.weight[y])

    def up(h):
        return h.repeat_interleave(2, 2).repeat_interleave(2, 3)

    h = generator.linear(z).reshape(3, -1, 4, 4)
    for block in generator.blocks:
        c1, c2, c3 = (m for m in block.modules() if isinstance(m, nn.Conv2d))
        h = c2(conditional(c1(up(conditional(h, block.norm1))), block.norm2)) + c3(up(h))
    last = generator.output[0]
    expected = generator.output[2](norm(h, last.weight, last.bias)).tanh()
    torch.testing.assert_close(generator(z, y), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["sngan-concat", "sngan-projection", "sngan-ac"])
def test_it_starts_as_the_pair_without_labels_does(name):
    torch.manual_seed(0)
    resolution = 32 if name == "sngan-ac" else 64
    for net in build(name, resolution=resolution, classes=300, width=0.25):
        conditions = [part for m in net.modules() if isinstance(m, ConditionalBatchNorm) for part in (m.gain, m.bias)]
        assert not any(part.weight.any() for part in conditions)
        for key, layer in net.named_modules():
            if isinstance(layer, nn.Conv2d | nn.Linear | nn.Embedding) and layer not in conditions:
                bound = (6 / sum(nn.init._calculate_fan_in_and_fan_out(layer.weight))) ** 0.5
                bound *= 2**0.5 if "residual" in key else 1
                # The largest of the least weights, 64, is within a tenth with probability 0.999.
                assert 0.9 * bound < layer.weight.abs().max() <= bound * (1 + 1e-6), key
                assert getattr(layer, "bias", None) is None or not layer.bias.any()


def test_logit_and_classes_have_the_gradients_of_double_backward():
    _, critic, x, y = make("sngan-ac", 32)
    assert_matches_double_backward(critic, x, y)
    found = []
    for engine in (gnfast, gnfast.reference):
        critic.zero_grad()
        strict = {"strict": True} if engine is gnfast else {}
        scores = engine.normalize_gradient(critic, x, y, **strict)
        (scores.square().sum() + F.cross_entropy(critic.classify(x), y)).backward()
        found.append([parameter.grad.clone() for parameter in critic.parameters()])
    assert all(grad.any() for grad in found[1])
    assert max(map(relative_error, *found)) <= 1e-10


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("sngan-concat", {"resolution": 32, "classes": 4}, "sngan-concat takes 64 or 128, got 32"),
        ("sngan-ac", {"resolution": 48, "classes": 4}, "sngan-ac takes 32, got 48"),
        ("sngan-projection", {"resolution": 64}, "classes: sngan-projection is class-conditional, got 0"),
    ],
)
def test_bad_arguments_say_what_was_wanted(name, given, message):
    with pytest.raises(ValueError, match=message):
        build(name, **given)
