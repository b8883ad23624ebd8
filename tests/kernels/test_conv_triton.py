"""Convolutions in Triton against `torch.convolution` in float64, joined ones against the plain twin of the joins."""

import contextlib
import itertools
import os

import pytest
import torch

from gnfast.kernels.join import plain as plain_join
from gnfast.kernels.sign_bits.plain import from_words

conv_triton = pytest.importorskip("gnfast.kernels.conv.triton")

CONFIGURATIONS = list(conv_triton.CONFIGURATIONS)
# (B, C_in, H, W), C_out, kernel, stride, padding
CASES = {
    "3x3": ((2, 32, 7, 5), 32, (3, 3), (1, 1), (1, 1)),
    "first layer": ((2, 3, 6, 5), 32, (3, 3), (1, 1), (1, 1)),
    "one channel": ((2, 1, 6, 5), 1, (3, 3), (1, 1), (2, 2)),
    "blocks of channels": ((2, 96, 3, 5), 32, (3, 1), (1, 1), (1, 0)),
    "blocks of positions and outputs": ((2, 3, 5, 9), 96, (1, 3), (1, 1), (0, 1)),
    "4x4 stride 2": ((1, 5, 8, 10), 32, (4, 4), (2, 2), (1, 1)),
    "2x4 stride 2, odd": ((3, 32, 5, 7), 32, (2, 4), (2, 2), (0, 1)),
    "3x3 stride 2": ((2, 32, 7, 6), 3, (3, 3), (2, 2), (1, 1)),
    "3x3 stride 3": ((1, 5, 11, 10), 32, (3, 3), (3, 3), (0, 0)),
    "5x2 stride (2, 1)": ((2, 32, 9, 7), 17, (5, 2), (2, 1), (2, 0)),
    "1x1": ((2, 64, 5, 3), 32, (1, 1), (1, 1), (0, 0)),
    "1x1 stride 2": ((2, 17, 5, 6), 32, (1, 1), (2, 2), (0, 0)),
    "1x1 stride (3, 2), padding": ((2, 3, 5, 6), 1, (1, 1), (3, 2), (2, 1)),
    "one position": ((5, 16, 2, 2), 64, (2, 2), (1, 1), (0, 0)),
}
HALF = ["2x4 stride 2, odd", "1x1", "1x1 stride (3, 2), padding"]
LARGE = {
    "critic": ((64, 128, 32, 32), 128, (3, 3), (1, 1), (1, 1)),
    "critic, first layer": ((8, 3, 64, 64), 64, (3, 3), (1, 1), (1, 1)),
    "critic, last layer": ((64, 256, 8, 8), 256, (3, 3), (1, 1), (1, 1)),
    "critic, folded pooling": ((32, 64, 32, 32), 128, (4, 4), (2, 2), (1, 1)),
    "critic, shortcut": ((64, 128, 16, 16), 256, (1, 1), (1, 1), (0, 0)),
    "wide": ((16, 96, 17, 23), 480, (3, 3), (2, 2), (1, 1)),
}
POINTWISE = ((1, 1), (0, 0), (1, 1), False, (0, 0), 1)
"""The arguments of a 1×1 convolution."""
# terms or cotangents of y besides the convolution's, biases, cotangents of s, slope, whether s is kept
JOINS = [(0, 1, 0, 0.2, False), (1, 2, 1, 0.0, True), (0, 0, 2, -0.3, True), (1, 1, 2, 0.1, False)]
# The element that products are made in.
PRECISIONS = {"ieee": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@contextlib.contextmanager
def precision_of(name):
    """float32 convolutions of PyTorch and of the kernels in that precision."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = name == "tf32"
    try:
        yield PRECISIONS[name]
    finally:
        torch.backends.cudnn.allow_tf32 = before


def poisoned(function, *given):
    """What a function returns where fresh memory holds NaN, and integers their largest value."""
    torch.use_deterministic_algorithms(True)
    try:
        return function(*given)
    finally:
        torch.use_deterministic_algorithms(False)


class Problem:
    """A convolution with everything that can be joined to it, and what PyTorch makes of it in two precisions."""

    def __init__(self, case, dtype, device, weight_layout):
        self.dtype, self.device = dtype, device
        self.shape, outputs, kernel, stride, padding = case
        self.arguments = (stride, padding, (1, 1), False, (0, 0), 1)
        self.x, self.tangent = self.made(self.shape), self.made(self.shape)
        self.weight = self.made((outputs, self.shape[1], *kernel)) / (self.shape[1] * kernel[0] * kernel[1]) ** 0.5
        if weight_layout == "contiguous":
            self.weight = self.weight.contiguous()
        elif weight_layout == "strided":
            self.weight = self.weight.permute(2, 0, 3, 1).contiguous().permute(1, 3, 0, 2)
        self.biases = [self.made((outputs,)), self.made((outputs,)).float()]
        self.out_shape = tuple(self.conv(self.x, wide=False).shape)
        self.cotangent = self.made(self.out_shape)
        self.terms = [self.made(self.out_shape)]
        self.scale = torch.randn(self.shape[0], device=device)

    def made(self, shape):
        t = torch.randn(shape, dtype=torch.float64, device=self.device).to(self.dtype)
        return t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t

    def conv(self, x, wide, bias=None):
        given = [None if t is None else t.double() if wide else t.to(self.dtype) for t in (x, self.weight, bias)]
        return channels_last(torch.convolution(*given, *self.arguments))

    def input_grad(self, wide):
        given = [t.double() if wide else t for t in (self.cotangent, self.x, self.weight)]
        mask = (True, False, False)
        return channels_last(torch.ops.aten.convolution_backward(*given, None, *self.arguments, mask)[0])


def channels_last(t):
    return t.contiguous(memory_format=torch.channels_last)


def widened(tensors, wide):
    return [t.double() if wide else t for t in tensors]


def assert_within_budget(actual, expected, plain):
    """At most twice the error of plain PyTorch, both against float64."""
    assert actual.dtype == plain.dtype and actual.shape == expected.shape
    assert actual.is_contiguous(memory_format=torch.channels_last)
    error = (actual.double() - expected).norm()
    assert error <= 2 * (plain.double() - expected).norm() + 1e-7 * expected.norm()


def check_convolution(problem, configuration):
    """The convolution with and without bias, the data gradient and its squares."""
    p = problem
    assert conv_triton.supports(p.dtype, p.weight, p.arguments)
    for bias in (None, p.biases[1]):
        y = poisoned(conv_triton.conv2d, p.x, p.weight, bias, p.arguments, configuration)
        assert_within_budget(y, p.conv(p.x, True, bias), p.conv(p.x, False, bias))
    expected, plain = p.input_grad(True), p.input_grad(False)
    given = p.cotangent, p.shape, p.weight, p.arguments
    grad, sums = poisoned(conv_triton.conv2d_input_grad_squares, *given, 1.0, configuration)
    assert_within_budget(grad, expected, plain)
    assert sums.dtype == torch.float64
    squares, plain_squares = ((grad.double() - 1).square().sum((1, 2, 3)) for grad in (expected, plain))
    assert (sums.sum(1) - squares).norm() <= 2 * (plain_squares - squares).norm() + 1e-6 * squares.norm()
    assert_within_budget(poisoned(conv_triton.conv2d_input_grad, *given, configuration), expected, plain)


def check_joins(problem, configuration, join, nearly_zero):
    """The three joins with given numbers of summands against the twin on float64 sums.

    Sums as small as `nearly_zero` may have either sign."""
    p = problem
    terms, biases, after, slope, keep_sum = join
    if conv_triton.supports_join(p.out_shape[1]):
        check_join_forward(p, configuration, p.terms[:terms], p.biases[:biases], slope, keep_sum, nearly_zero)
    bits = torch.randint(-(2**31), 2**31 - 1, (-(-p.x.numel() // 32),), device=p.device).to(torch.int32)
    of_y, of_sum = [p.made(p.shape) for _ in range(terms)], [p.made(p.shape) for _ in range(after)]
    expected, plain = (
        plain_join.pullback([grad, *widened(of_y, wide)], widened(of_sum, wide), bits, grad.stride(), slope, None)
        for wide, grad in ((wide, p.input_grad(wide)) for wide in (True, False))
    )
    given = p.cotangent, p.shape, p.weight, p.arguments, of_y, of_sum, bits, slope, configuration
    assert_within_budget(poisoned(conv_triton.conv_input_grad_join, *given), expected, plain)


def check_join_forward(p, configuration, terms, biases, slope, keep_sum, nearly_zero):
    given = p.x, p.weight, p.arguments, terms, biases, slope, keep_sum, configuration
    y, total, bits = poisoned(conv_triton.conv_join_forward, *given)
    sums = [
        plain_join.forward([p.conv(p.x, wide), *widened(terms, wide)], biases, 1, slope, True, None)[1]
        for wide in (True, False)
    ]
    positive = from_words(bits, y)
    assert torch.equal(positive, sums[0] > 0) or sums[0][positive != (sums[0] > 0)].abs().max() <= nearly_zero
    expected, plain = (torch.where(positive, s, s * slope) for s in sums)
    assert_within_budget(y, expected, plain)
    if keep_sum:
        assert_within_budget(total, *sums)
    else:
        assert total is None

    for scale in (p.scale, None):
        given = p.tangent, p.weight, p.arguments, terms, biases, scale, bits, slope, keep_sum, configuration
        y, total = poisoned(conv_triton.conv_join_pushforward, *given)
        added = () if scale is None else biases, scale, 1, bits, slope, True, None
        (expected, wide_sum), (plain, plain_sum) = (
            plain_join.pushforward([p.conv(p.tangent, wide), *widened(terms, wide)], *added) for wide in (True, False)
        )
        assert_within_budget(y, expected, plain)
        if keep_sum:
            assert_within_budget(total, wide_sum, plain_sum)
        else:
            assert total is None


WEIGHT_LAYOUTS = ["channels_last", "contiguous", "strided"]


# bfloat16 is none of the interpreter's; float16 costs as much as float32, so that some cases must do.
@pytest.mark.interpreted
@pytest.mark.parametrize(("name", "precision"), [*((name, "ieee") for name in CASES), *((n, "fp16") for n in HALF)])
def test_interpreted_kernels(name, precision):
    index = list(CASES).index(name)
    with precision_of(precision) as dtype:
        problem = Problem(CASES[name], dtype, "cpu", WEIGHT_LAYOUTS[index % 3])
        check_convolution(problem, CONFIGURATIONS[index % 2])
        check_joins(problem, CONFIGURATIONS[index % 2], JOINS[index % 4], 1e-5)


@pytest.mark.interpreted
@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_interpreted_configurations(configuration):
    index = CONFIGURATIONS.index(configuration)
    with precision_of("ieee") as dtype:
        # Several blocks of channels, and a reduction over taps and channels at once.
        for channels in (64, 5):
            case = ((1, channels, 4, 3), 32, (2, 1), (1, 1), (1, 0))
            problem = Problem(case, dtype, "cpu", "channels_last")
            # The interpreter is slow: every second configuration has its joins with the one, the others with the other.
            if channels % 2 == index % 2:
                check_joins(problem, configuration, JOINS[(index // 2 + channels) % 4], 1e-5)
            else:
                check_convolution(problem, configuration)


@pytest.mark.interpreted
def test_interpreted_at_zero_and_beyond():
    """What a sum is made of: zeros, NaN, infinities and denormals."""
    values = [0.0, -0.0, float("nan"), float("inf"), -float("inf"), 1e-45, -1e-45, 3.0]
    term = torch.tensor(values * 8).reshape(2, 1, 1, 32).repeat(1, 3, 1, 1).permute(0, 3, 1, 2)
    zero = channels_last(torch.zeros(term.shape))
    term = channels_last(term)
    weight = torch.ones(32, 32, 1, 1)

    def assert_same(actual, expected):
        torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)

    for slope in (0.0, 0.2):
        y, total, bits = plain_join.forward([zero, term], (), 1, slope, True, None)
        result = conv_triton.conv_join_forward(zero, weight, POINTWISE, [term], (), slope, True, "64x64x64")
        for actual, expected in zip(result, (y, total, bits), strict=True):
            assert_same(actual, expected)
        # Shifted, so that all values meet both signs.
        bits = bits.roll(1) ^ 0b1011
        expected = plain_join.pushforward([zero, term], (), None, 1, bits, slope, True, None)
        given = (zero, weight, POINTWISE, [term], (), None, bits, slope, True, "64x64x64")
        for left, right in zip(conv_triton.conv_join_pushforward(*given), expected, strict=True):
            assert_same(left, right)
        expected = plain_join.pullback([zero, term], [], bits, zero.stride(), slope, None)
        given = (zero, term.shape, weight, POINTWISE, [term], (), bits, slope, "64x64x64")
        assert_same(conv_triton.conv_input_grad_join(*given), expected)


@pytest.mark.interpreted
def test_interpreted_squares_beyond_float32():
    cotangent = channels_last(torch.tensor([1e25, -3e25, 1e-25, 3e-25]).reshape(2, 1, 2, 1))
    weight = torch.ones(1, 1, 1, 1)
    with precision_of("ieee"):
        _, sums = conv_triton.conv2d_input_grad_squares(cotangent, (2, 1, 2, 1), weight, POINTWISE, 0.0, "64x64x64")
    expected = cotangent.double().square().sum((1, 2, 3))
    torch.testing.assert_close(sums.sum(1), expected, rtol=1e-12, atol=0)


@pytest.mark.interpreted
def test_interpreted_tf32_rounds_to_nearest():
    """Factors halfway between two TF32 numbers go up, NaN and infinity stay what they are."""
    values = torch.tensor([1 + 2**-11, 1 + 2**-12, -1 - 2**-11, 2.0, float("inf"), float("nan")])
    # The NaN that a GPU makes.
    values[5] = torch.tensor(0x7FFFFFFF, dtype=torch.int32).view(torch.float32)
    x = channels_last(values.reshape(6, 1, 1, 1))
    with precision_of("tf32"):
        y = conv_triton.conv2d(x, torch.ones(1, 1, 1, 1), None, POINTWISE, "64x64x64")
    expected = torch.tensor([1 + 2**-10, 1.0, -1 - 2**-10, 2.0, float("inf"), float("nan")])
    torch.testing.assert_close(y.flatten(), expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.interpreted
def test_interpreted_long_addresses(monkeypatch):
    monkeypatch.setattr(conv_triton, "WIDE_FROM", 0)
    with precision_of("ieee") as dtype:
        problem = Problem(CASES["1x1 stride 2"], dtype, "cpu", "channels_last")
        check_convolution(problem, "64x64x64")
        check_joins(problem, "64x64x64", JOINS[1], 1e-5)


@pytest.mark.interpreted
def test_interpreted_without_samples():
    weight, arguments = torch.randn(32, 3, 3, 3), ((1, 1), (1, 1), (1, 1), False, (0, 0), 1)
    x, y = channels_last(torch.empty(0, 3, 5, 7)), channels_last(torch.empty(0, 32, 5, 7))
    assert conv_triton.conv2d(x, weight, None, arguments, "64x64x64").shape == y.shape
    grad, sums = conv_triton.conv2d_input_grad_squares(y, x.shape, weight, arguments, 0.0, "64x64x64")
    assert grad.shape == x.shape and len(sums) == 0
    assert len(conv_triton.conv_join_forward(x, weight, arguments, (), (), 0.2, False, "64x64x64")[2]) == 0


def test_what_is_tried():
    assert conv_triton.promising(64 * 32 * 32, 3) == ["128x16x64"]
    assert conv_triton.promising(64 * 32 * 32, 128)[0] in ("128x128x32", "128x128x64")
    assert all(conv_triton.CONFIGURATIONS[name][1] == 64 for name in conv_triton.promising(64 * 32 * 32, 48))
    # Sixteen pixels: a large tile would leave most of a GPU idle.
    assert "128x128x64" not in conv_triton.promising(64 * 16, 512)
    for positions, channels in itertools.product((1, 100, 5000, 10**6), (1, 17, 64, 1000)):
        assert 1 <= len(conv_triton.promising(positions, channels)) <= 4


def test_what_is_supported():
    weight, plain = torch.empty(8, 4, 3, 3), ((2, 1), (1, 0), (1, 1), False, (0, 0), 1)
    assert conv_triton.supports(torch.float32, weight, plain)
    assert conv_triton.supports(torch.bfloat16, weight.bfloat16(), plain)
    assert not conv_triton.supports(torch.float64, weight.double(), plain)
    assert not conv_triton.supports(torch.float16, weight, plain)
    assert not conv_triton.supports(torch.float32, weight[0], ((1,), (0,), (1,), False, (0,), 1))
    for place, value in ((2, (2, 1)), (3, True), (5, 2)):
        changed = (*plain[:place], value, *plain[place + 1 :])
        assert not conv_triton.supports(torch.float32, weight, changed)
    assert [channels for channels in (1, 3, 32, 48, 64) if conv_triton.supports_join(channels)] == [32, 64]


# Signs may differ where a sum is as small as the products' errors.
NEARLY_ZERO = {"ieee": 1e-4, "tf32": 2e-2, "fp16": 1e-4, "bf16": 1e-4}


# Compiling takes seconds per case: all of them on demand only, otherwise each configuration, precision and large case.
EVERYTHING = os.environ.get("GNFAST_ALL_KERNELS", "0") not in ("", "0")
DRAWN = [
    *((list(LARGE)[k % len(LARGE)], configuration, "bf16") for k, configuration in enumerate(CONFIGURATIONS)),
    ("critic, last layer", "128x64x64", "tf32"),
    ("critic, first layer", "64x64x64", "ieee"),
    ("critic, folded pooling", "128x128x64", "fp16"),
    ("3x3 stride 3", "64x64x64", "bf16"),
    ("5x2 stride (2, 1)", "128x128x32", "tf32"),
]
ALL = list(itertools.product([*CASES, *LARGE], CONFIGURATIONS, PRECISIONS))


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "configuration", "precision"), ALL if EVERYTHING else DRAWN)
def test_kernels(name, configuration, precision):
    cases = {**CASES, **LARGE}
    index = list(cases).index(name)
    with precision_of(precision) as dtype:
        problem = Problem(cases[name], dtype, "cuda", WEIGHT_LAYOUTS[index % 3] if name in CASES else "channels_last")
        check_convolution(problem, configuration)
        for join in JOINS if EVERYTHING else JOINS[1:2]:
            check_joins(problem, configuration, join, NEARLY_ZERO[precision])
