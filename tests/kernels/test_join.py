"""Fused steps between matrix products: the rewrite, the plain twin and the Triton kernels, against double backward."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gnfast
from gnfast import models
from gnfast.kernels.backend import implementation
from gnfast.kernels.join import join_pullback, join_pushforward, plain
from gnfast.kernels.sign_bits import plain as sign_bits
from gnfast.plan.ops.activation import LeakyReLU
from gnfast.plan.ops.conv import Conv
from gnfast.plan.ops.elementwise import Add
from gnfast.plan.ops.join import ConvJoin, Join
from tests.engine.test_engine import NETWORKS
from tests.oracle import assert_matches_double_backward

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


class Joints(nn.Module):
    """Sums and activations in every relation: shared sums, shared results, a sum of a tensor and itself, an output."""

    def __init__(self, channels=6):
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 1, bias=False)
        self.third = nn.Conv2d(channels, channels, 3, padding=1)
        self.linear = nn.Linear(channels, 9)
        self.out = nn.Linear(9, 1)

    def forward(self, x):
        stem = self.stem(x)
        h = F.leaky_relu(stem, 0.2)
        h = F.relu(self.first(h) + h)
        total = self.second(h) + self.third(h)
        h = F.relu(total) + total
        h = F.leaky_relu(h + h, -0.3) + F.relu(total + stem)
        g = F.relu(self.third(h) + self.first(h))
        h = F.relu(g + self.second(g))
        return self.out(F.leaky_relu(self.linear(h.mean((2, 3))), 0.1))


@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize("name", [*NETWORKS, "joints"])
def test_fused_plans_match_double_backward(name):
    net = (Joints() if name == "joints" else NETWORKS[name]()).double()
    assert_matches_double_backward(net, torch.randn(4, 3, 5, 7, dtype=torch.float64))


@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize("model", ["dcgan", "resnet", "sngan-resnet"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_fused_critics_match_double_backward(model, layout):
    _, critic = models.build(model, resolution=32, width=0.05)
    x = torch.randn(3, 3, 32, 32, dtype=torch.float64).contiguous(memory_format=LAYOUTS[layout])
    assert_matches_double_backward(critic.double().to(memory_format=LAYOUTS[layout]), x)


@pytest.mark.usefixtures("fused")
def test_frozen_parts_of_a_fused_plan():
    net = Joints().double()
    net.first.requires_grad_(False)
    net.third.weight.requires_grad_(False)
    net.stem.bias.requires_grad_(False)
    assert_matches_double_backward(net, torch.randn(4, 3, 5, 7, dtype=torch.float64))


@pytest.mark.usefixtures("fused")
def test_nothing_is_left_between_the_layers():
    _, critic = models.build("resnet", resolution=32, width=0.05)
    plan = gnfast.trace(critic, torch.empty(2, 3, 32, 32))
    ops = [type(node.op) for node in plan.nodes]
    assert ops.count(ConvJoin) == 8 and {LeakyReLU, Add, Join}.isdisjoint(ops)
    convs = [getattr(node.op, "conv", node.op) for node in plan.nodes]
    assert [conv.adds_bias for conv in convs if isinstance(conv, Conv)] == [False] * 10


def test_plans_are_not_fused_where_there_is_no_kernel():
    assert not implementation("join", "cpu").FUSES


# shape, axis of the biases, memory format: aligned and unaligned rows, both orders, vectors and sequences.
SHAPES = {
    "rows in a channel": ((2, 3, 8, 8), 1, torch.contiguous_format),
    "rows of channels": ((2, 64, 3, 5), 1, torch.channels_last),
    "odd": ((3, 5, 7, 9), 1, torch.contiguous_format),
    "odd channels last": ((3, 5, 7, 9), 1, torch.channels_last),
    "more than a block": ((3, 33, 5, 9), 1, torch.channels_last),
    "one channel": ((3, 1, 5, 7), 1, torch.contiguous_format),
    "one sample": ((1, 6, 5, 7), 1, torch.channels_last),
    "vectors": ((7, 37), 1, torch.contiguous_format),
    "sequences": ((3, 5, 11), 2, torch.contiguous_format),
    "no samples": ((0, 5, 3, 3), 1, torch.contiguous_format),
}
DTYPES = [torch.float64, torch.float32, torch.float16]


def assert_same(actual, expected):
    if expected is None:
        assert actual is None
        return
    assert actual.stride() == expected.stride() and actual.dtype == expected.dtype
    tolerance = {torch.float64: 1e-14, torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 1e-2}
    allowed = tolerance.get(expected.dtype, 0)
    torch.testing.assert_close(actual, expected, rtol=allowed, atol=allowed)


def check_join(shape, axis, layout, dtype, terms, biases, slope, keep_sum, device):
    """The Triton kernels against the twin: every output, with and without memory to write into."""
    from gnfast.kernels.join import triton as kernel

    def made(size=shape):
        t = torch.randn(size, dtype=torch.float64, device=device).to(dtype)
        return t.contiguous(memory_format=layout) if t.dim() == 4 else t

    values = [made() for _ in range(terms)]
    offsets = [made((shape[axis],)) for _ in range(biases)]
    scale = torch.randn(shape[0], dtype=torch.float32, device=device)
    expected = plain.forward(values, offsets, axis, slope, keep_sum, None)
    fresh = kernel.forward(values, offsets, axis, slope, keep_sum, None)
    copy = values[0].clone()
    inside = kernel.forward([copy, *values[1:]], offsets, axis, slope, keep_sum, copy)
    for actual in (fresh, inside):
        for left, right in zip(actual, expected, strict=True):
            assert_same(left, right)
    assert (inside[1] if keep_sum else inside[0]) is copy
    bits = expected[2]
    expected = plain.pushforward(values, offsets, scale, axis, bits, slope, keep_sum, None)
    for left, right in zip(
        kernel.pushforward(values, offsets, scale, axis, bits, slope, keep_sum, None), expected, strict=True
    ):
        assert_same(left, right)
    after = [made() for _ in range(2 if keep_sum else 0)]
    given = bits, values[0].stride(), slope
    for count in range(len(after) + 1):
        expected = plain.pullback(values, after[:count], *given, None)
        assert_same(kernel.pullback(values, after[:count], *given, None), expected)
        copy = values[0].clone()
        assert_same(kernel.pullback([copy, *values[1:]], after[:count], *given, copy), expected)
        if shape[0] > 1:
            check_shared(kernel, values, after[:count], *given)


def check_shared(kernel, values, after, bits, strides, slope):
    """A first cotangent that is the same for all samples is read as it is, and gives what its copy gives."""
    # Other samples' memory lies behind this one's: what is read beyond it is not NaN.
    shared = values[0][:1].expand_as(values[0])
    copied = torch.empty_strided(shared.shape, strides, dtype=shared.dtype, device=shared.device).copy_(shared)
    expected = kernel.pullback([copied, *values[1:]], after, bits, strides, slope, None)
    actual = kernel.pullback([shared, *values[1:]], after, bits, strides, slope, None)
    assert actual.stride() == strides and torch.equal(actual, expected)
    assert_same(plain.pullback([shared, *values[1:]], after, bits, strides, slope, None), expected)
    if len(values) > 1:
        # As the second one it is copied, as the first of `join_pullback` it is not.
        given = after, bits, strides, slope, None
        assert_same(join_pullback([*values[1:], shared], *given), expected)
        own = values[1].clone()
        assert_same(join_pullback([shared, own], *given[:-1], own), expected)


COMBINATIONS = [(1, 1, 0.0, False), (2, 2, 0.2, True), (2, 1, -0.5, False), (1, 0, 0.1, False), (2, 0, 0.0, True)]


@pytest.mark.interpreted
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_interpreted_kernels_match_the_twin(name, dtype):
    # The interpreter is slow: each combination with each shape, in one dtype, and in every dtype with some shape.
    start = (list(SHAPES).index(name) + DTYPES.index(dtype)) % 3
    for combination in COMBINATIONS[start::3]:
        check_join(*SHAPES[name], dtype, *combination, "cpu")


@pytest.mark.interpreted
@pytest.mark.parametrize("implementation", ["torch", "triton"])
def test_strides_of_axes_with_one_entry(implementation, use):
    """They say nothing of where entries lie: nothing is copied, read as the same for all samples, or written into."""
    use("join", "cpu", implementation)
    size = (4, 6, 1, 1)
    strides = torch.empty(size, memory_format=torch.channels_last).stride()
    values = [torch.randn(size, dtype=torch.float64) for _ in range(2)]
    assert values[0].stride() != strides
    bits = sign_bits.pack(torch.randn(size, dtype=torch.float64), 0.2)[1]
    like = [t.contiguous(memory_format=torch.channels_last).as_strided(size, strides) for t in values]
    before = [t.clone() for t in values]
    actual = join_pullback(values, [], bits, strides, 0.2, None)
    assert torch.equal(actual, join_pullback(like, [], bits, strides, 0.2, None))
    given = [torch.randn(6, dtype=torch.float64)], torch.randn(4), 1, bits, strides, 0.2, False, False
    actual, expected = (join_pushforward(terms, *given)[0] for terms in (values, like))
    assert torch.equal(actual, expected)
    assert all(map(torch.equal, values, before))


@pytest.mark.interpreted
def test_interpreted_at_zero_and_beyond():
    from gnfast.kernels.sign_bits import triton

    x = torch.tensor([0.0, -0.0, float("nan"), float("inf"), -float("inf"), 1e-45, -1e-45, 3.0] * 5)
    for slope in (0.0, 0.2):
        y, bits = sign_bits.pack(x, slope)
        actual, words = triton.pack(x, slope)
        torch.testing.assert_close(actual, y, rtol=0, atol=0, equal_nan=True)
        assert torch.equal(words, bits)
        expected = sign_bits.mask(x, bits, slope)
        torch.testing.assert_close(triton.mask(x, bits, slope), expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.interpreted
@pytest.mark.parametrize("layout", LAYOUTS)
def test_interpreted_kernels_under_the_engine(layout, use):
    use("join", "cpu", "triton")
    net = Joints().double().to(memory_format=LAYOUTS[layout])
    x = torch.randn(3, 3, 5, 7, dtype=torch.float64).contiguous(memory_format=LAYOUTS[layout])
    assert_matches_double_backward(net, x)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [*DTYPES, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_kernels_match_the_twin(name, dtype):
    for combination in COMBINATIONS:
        check_join(*SHAPES[name], dtype, *combination, "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("model", ["joints", "dcgan", "resnet", "sngan-resnet"])
def test_engine_with_kernels(model, layout):
    net = Joints() if model == "joints" else models.build(model, resolution=32, width=0.25)[1]
    net = net.double().cuda().to(memory_format=LAYOUTS[layout])
    size = 7 if model == "joints" else 32
    x = torch.randn(3, 3, size, size, dtype=torch.float64, device="cuda").contiguous(memory_format=LAYOUTS[layout])
    assert any(isinstance(node.op, (Join, ConvJoin)) for node in gnfast.trace(net, x).nodes)
    assert_matches_double_backward(net, x)
