"""The networks match the published ones: parameter counts, layer order, initialisation, shapes."""

import pytest
import torch
from torch import nn

from gnfast.models import REGISTRY, build, dcgan


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def conv(i: int, o: int, k: int) -> int:
    """The parameters of a convolution."""
    return i * o * k * k + o


@pytest.mark.parametrize(
    ("name", "resolution", "generator", "critic"),
    [
        ("dcgan", 32, 3_813_379, 5_860_865),
        ("dcgan", 48, 5_134_339, 5_871_105),
        ("sngan-cnn", 32, 3_813_379, 2_935_873),
        ("sngan-cnn", 48, 5_134_339, 2_946_113),
        ("resnet", 32, 4_276_739, 1_053_825),
        ("resnet", 48, 4_878_083, 4_859_073),
        ("resnet", 128, 32_150_787, 38_419_137),
        ("resnet", 256, 37_135_107, 43_401_409),
    ],
)
def test_parameter_counts_are_the_published_ones(name, resolution, generator, critic):
    with torch.device("meta"):
        g, d = build(name, resolution=resolution)
    assert (count(g), count(d)) == (generator, critic)


@pytest.mark.parametrize(
    ("name", "resolution", "channels"),
    [
        ("dcgan", 16, 1),
        ("dcgan", 24, 3),
        ("dcgan", 32, 3),
        ("sngan-cnn", 48, 3),
        ("resnet", 32, 1),
        ("resnet", 48, 3),
        ("resnet", 64, 3),
        ("resnet", 128, 1),
        ("resnet", 256, 3),
        ("sngan-resnet", 32, 3),
        ("sngan-resnet", 48, 1),
        ("sngan-resnet", 64, 3),
        ("sngan-resnet", 128, 3),
        ("mimicry-resnet", 32, 3),
        ("mimicry-resnet", 48, 1),
        ("mimicry-resnet", 64, 3),
        ("mimicry-resnet", 128, 3),
        ("biggan", 32, 3),
        ("biggan", 32, 1),
        ("biggan-faster", 32, 3),
        ("biggan-faster", 64, 3),
        ("biggan-faster", 128, 1),
    ],
)
def test_shapes_and_range(name, resolution, channels):
    labels, classes = ((torch.tensor([0, 4, 2]),), 5) if REGISTRY[name].conditional else ((), 0)
    g, d = build(name, resolution=resolution, channels=channels, z_dim=7, width=0.07, classes=classes)
    images = g(torch.randn(3, 7), *labels)
    assert images.shape == (3, channels, resolution, resolution)
    assert images.abs().max() <= 1
    assert d(images, *labels).shape == (3, 1)


def test_dcgan_critic_layers_are_the_codes():
    _, d = build("dcgan", resolution=32)
    convs = [(m.in_channels, m.out_channels, m.kernel_size[0], m.stride[0]) for m in d.main if isinstance(m, nn.Conv2d)]
    assert convs == [
        (3, 64, 3, 1),
        (64, 128, 4, 2),
        (128, 128, 3, 1),
        (128, 256, 4, 2),
        (256, 256, 3, 1),
        (256, 512, 4, 2),
        (512, 512, 3, 1),
    ]
    assert [m.negative_slope for m in d.main if isinstance(m, nn.LeakyReLU)] == [0.1] * 7


def test_resnet_critic_shortcuts():
    _, d = build("resnet", resolution=32)
    kinds = [[type(m).__name__ for m in block.shortcut] for block in list(d.model)[:4]]
    assert kinds == [["AvgPool2d", "Conv2d"], ["Conv2d", "AvgPool2d"], [], []]
    assert not any(getattr(m, "inplace", False) for m in d.modules())


@pytest.mark.parametrize(("name", "gain"), [("dcgan", None), ("resnet", 2**0.5)])
def test_initialisation(name, gain):
    torch.manual_seed(0)
    for net in build(name, resolution=32, width=0.25):
        for module in net.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
                assert not module.bias.any()
                std = 0.02 if gain is None else gain / nn.init._calculate_correct_fan(module.weight, "fan_in") ** 0.5
                # Three standard errors of a sample standard deviation.
                assert abs(module.weight.std() / std - 1) < 3 / (2 * module.weight.numel()) ** 0.5 + 1e-3


def features(critic: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What a residual critic of 32 pixels sums or averages over space: the block order written out by hand."""
    pool, relu = nn.functional.avg_pool2d, torch.relu
    first, *blocks = list(critic.model)[:4]
    h = pool(first.residual[2](relu(first.residual[0](x))), 2) + first.shortcut[1](pool(x, 2))
    for block, down in zip(blocks, (True, False, False), strict=True):
        r = block.residual[3](relu(block.residual[1](relu(h))))
        h = pool(r, 2) + pool(block.shortcut[0](h), 2) if down else r + h
    return relu(h)


def test_resnet_critic_forward_equals_the_formula():
    torch.manual_seed(0)
    _, d = build("resnet", resolution=32, width=0.03)
    d.double()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(d(x), d.linear(features(d, x).mean((2, 3))), rtol=1e-12, atol=1e-12)


def test_width_scales_hidden_channels_only():
    g, d = build("dcgan", resolution=32, width=0.5)
    assert d.main[0].weight.shape == (32, 3, 3, 3)
    assert g.main[-2].weight.shape == (32, 3, 3, 3)
    assert dcgan.WIDTHS == (64, 128, 256, 512)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "vgg", "resolution": 32}, "model: got 'vgg'"),
        ({"name": "resnet", "resolution": 96}, "resolution: resnet takes 32, 48, 64, 128 or 256, got 96"),
        ({"name": "dcgan", "resolution": 20}, "multiples of 8"),
        ({"name": "dcgan", "resolution": 32, "width": 0.0}, "width: got 0.0"),
        ({"name": "dcgan", "resolution": 32, "classes": 10}, "classes: dcgan has no class-conditional form, got 10"),
        ({"name": "biggan", "resolution": 32}, "classes: biggan is class-conditional, got 0"),
        ({"name": "biggan", "resolution": 64, "classes": 10}, "resolution: biggan takes 32, got 64"),
        ({"name": "biggan-faster", "resolution": 48, "classes": 10}, "biggan-faster takes 32 or 64 or 128, got 48"),
        ({"name": "biggan-faster", "resolution": 64, "classes": 10, "z_dim": 4}, "z_dim: got 4, wanted at least 5"),
    ],
)
def test_bad_arguments_say_what_was_wanted(arguments, message):
    with pytest.raises(ValueError, match=message):
        build(**arguments)


def test_sngan_resnets_differ_where_the_paper_does():
    _, critic = build("sngan-resnet", resolution=48)
    first, *blocks = list(critic.model)[:5]
    convs = [
        [(m.in_channels, m.out_channels) for m in b.residual if isinstance(m, nn.Conv2d)] for b in (first, *blocks)
    ]
    assert convs[:2] == [[(3, 64), (64, 64)], [(64, 64), (64, 128)]] and convs[-1] == [(512, 512), (512, 1024)]
    assert [any(isinstance(m, nn.AvgPool2d) for m in b.residual) for b in blocks] == [True, True, True, False]
    x = torch.randn(2, 3, 48, 48)
    features = critic.model[:-1](x)
    assert torch.equal(critic(x), critic.linear(features.sum((2, 3))))
    for weight, gain in ((first.residual[0].weight, 2**0.5), (first.shortcut[1].weight, 1), (critic.linear.weight, 1)):
        fan_in, fan_out = weight[0].numel(), weight.shape[0] * weight[0, 0].numel()
        assert weight.abs().max().item() == pytest.approx(gain * (6 / (fan_in + fan_out)) ** 0.5, rel=0.05)
    with torch.device("meta"):
        pair = build("sngan-resnet", resolution=32)
    assert tuple(map(count, pair)) == (4_276_739, 1_053_825), "32 pixels: the same layers as GN-GAN's"
