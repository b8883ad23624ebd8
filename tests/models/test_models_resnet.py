"""The ResNets of 64 pixels and more, and mimicry's: parameters counted from their layer lists, forwards by hand."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from gnfast.models import build
from tests.models.test_models import conv, count


def generator_count(start: int, widths: list[int], z_dim: int = 128) -> int:
    """A linear layer, blocks of BN-conv3-BN-conv3 with a 1x1 shortcut, BN and conv3 at the end."""
    total = (z_dim + 1) * start**2 * widths[0]
    for i, o in pairwise(widths):
        total += 2 * i + conv(i, o, 3) + 2 * o + conv(o, o, 3) + conv(i, o, 1)
    return total + 2 * widths[-1] + conv(widths[-1], 3, 3)


def critic_count(widths: list[int], downs: int, hidden: str) -> int:
    total = conv(3, widths[0], 3) + conv(widths[0], widths[0], 3) + conv(3, widths[0], 1)
    for k, (i, o) in enumerate(pairwise(widths), start=1):
        h = i if hidden == "in" else o
        total += conv(i, h, 3) + conv(h, o, 3) + (conv(i, o, 1) if k < downs or i != o else 0)
    return total + widths[-1] + 1


@pytest.mark.parametrize(
    ("name", "resolution", "start", "generator", "critic", "downs", "hidden"),
    [
        ("resnet", 64, 4, [1024, 512, 256, 128, 64], [64, 128, 256, 512, 1024], 5, "out"),
        ("gulrajani-resnet", 32, 4, [256] * 4, [128] * 4, 2, "in"),
        ("sngan-resnet", 48, 6, [512, 256, 128, 64], [64, 128, 256, 512, 1024], 4, "in"),
        ("sngan-resnet", 64, 4, [1024, 512, 256, 128, 64], [64, 128, 256, 512, 1024], 5, "in"),
        ("sngan-resnet", 128, 4, [1024, 1024, 512, 256, 128, 64], [64, 128, 256, 512, 1024, 1024], 5, "in"),
        ("mimicry-resnet", 32, 4, [256] * 4, [128] * 4, 2, "in"),
        ("mimicry-resnet", 48, 6, [512, 256, 128, 64], [64, 128, 256, 512, 1024], 4, "in"),
        ("mimicry-resnet", 64, 4, [1024, 512, 256, 128, 64], [64, 128, 256, 512, 1024], 5, "in"),
        ("mimicry-resnet", 128, 4, [1024, 1024, 512, 256, 128, 64], [64, 128, 256, 512, 1024, 1024], 5, "in"),
    ],
)
def test_parameter_counts_follow_from_the_layer_lists(name, resolution, start, generator, critic, downs, hidden):
    with torch.device("meta"):
        pair = build(name, resolution=resolution)
    assert [*map(count, pair)] == [generator_count(start, generator), critic_count(critic, downs, hidden)]


@pytest.mark.parametrize(
    ("resolution", "downs", "blocks"), [(32, 2, 4), (48, 4, 5), (64, 5, 5), (128, 5, 6)], ids=lambda v: str(v)
)
def test_mimicry_critic_equals_its_code_with_the_relu_in_place(resolution, downs, blocks):
    """Blocks as mimicry computes them: an in-place ReLU on the block's input first, then the shortcut of that input."""
    torch.manual_seed(0)
    _, critic = build("mimicry-resnet", resolution=resolution, width=1 / 32)
    critic.double()
    pool = nn.functional.avg_pool2d
    x = torch.randn(3, 3, resolution, resolution, dtype=torch.float64)
    first, *rest = list(critic.model)[:blocks]
    h = pool(first.residual[2](torch.relu_(first.residual[0](x))), 2) + first.shortcut[1](pool(x, 2))
    for k, block in enumerate(rest, start=1):
        residual = block.residual[2](torch.relu_(block.residual[0](torch.relu_(h))))
        shortcut = block.shortcut[0](h) if len(block.shortcut) else h
        h = pool(residual, 2) + pool(shortcut, 2) if k < downs else residual + shortcut
    expected = critic.linear(torch.relu_(h).sum((2, 3)))
    torch.testing.assert_close(critic(x), expected, rtol=1e-12, atol=1e-12)
    assert not any(getattr(module, "inplace", False) for module in critic.modules())


def test_mimicry_initialisation_is_xavier_with_pytorchs_biases():
    torch.manual_seed(0)
    for net in build("mimicry-resnet", resolution=32, width=0.25):
        for name, layer in net.named_modules():
            if not isinstance(layer, nn.Conv2d | nn.Linear):
                continue
            fan_in, fan_out = nn.init._calculate_fan_in_and_fan_out(layer.weight)
            bound = (2**0.5 if "residual" in name else 1) * (6 / (fan_in + fan_out)) ** 0.5
            assert layer.weight.abs().max() <= bound
            if layer.weight.numel() > 1000:
                assert layer.weight.abs().max() > 0.99 * bound
            assert layer.bias.any() and layer.bias.abs().max() <= fan_in**-0.5


def test_resnet_critic_of_128_halves_five_times_and_keeps_4x4():
    _, critic = build("resnet", resolution=128, width=1 / 64)
    seen = []
    for block in list(critic.model)[:6]:
        block.register_forward_hook(lambda module, args, output: seen.append(tuple(output.shape[1:])))
    critic(torch.zeros(1, 3, 128, 128))
    assert seen == [(1, 64, 64), (2, 32, 32), (4, 16, 16), (8, 8, 8), (16, 4, 4), (16, 4, 4)]
