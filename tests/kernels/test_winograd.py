"""Winograd convolutions: values, both gradients and the choice of algorithm against PyTorch's own, in float64."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from gnfast import models, normalize_gradient
from gnfast.engine.reference import normalize_gradient as double_backward
from gnfast.kernels import winograd
from gnfast.kernels.winograd import conv2d, conv2d_input_grad, conv2d_weight_grad
from tests.oracle import outputs_and_gradients
from tests.processes import assert_passes_on, run_python

NHWC = torch.channels_last
NAN = float("nan")
CASES = {"3x3": (3, 1), "4x4 stride 2": (4, 2), "4x4": (4, 1)}
OPERATORS = ["winograd_conv2d", "winograd_conv2d_input_grad", "winograd_conv2d_weight_grad"]
# Batch, input and output channels, height, width: odd everything, less than a tile, less than a group of tiles, more
# than one chunk of tiles, more channels than one product takes at once, and than one block of kernels; enough tiles
# for several sums, and rows of tiles that a product leaves out longer than a chunk. Vectors of 16 floats serve where
# both numbers of channels are multiples of 16.
SIZES = [
    (1, 8, 8, 4, 4),
    (1, 8, 16, 5, 7),
    (3, 24, 8, 9, 6),
    (2, 40, 32, 11, 12),
    (5, 16, 72, 4, 4),
    (2, 32, 24, 33, 17),
    (1, 264, 16, 6, 6),
    (1, 520, 528, 4, 5),
    (11, 8, 16, 27, 30),
    (9, 8, 16, 5, 40),
    (1, 16, 16, 5, 7),
    (3, 48, 32, 9, 6),
    (5, 16, 144, 4, 4),
    (2, 32, 80, 33, 17),
    (1, 272, 64, 6, 6),
    (11, 16, 32, 27, 30),
    (9, 16, 32, 5, 40),
]
ENABLED = pytest.mark.skipif(not winograd.enabled("cpu"), reason="needs the C++ library and a processor with AVX2")


def arguments(stride: int = 1, padding: int = 0, dilation: int = 1, transposed: bool = False, groups: int = 1):
    return (stride,) * 2, (padding,) * 2, (dilation,) * 2, transposed, (0, 0), groups


def last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=NHWC)


def make(case: str, sizes: tuple[int, ...], padding: int, dtype: torch.dtype = torch.float32):
    """x, weight, bias, a cotangent and the arguments of the convolution."""
    kernel, stride = CASES[case]
    batch, channels, out_channels, height, width = sizes
    torch.manual_seed(0)
    x = last(torch.randn(batch, channels, height, width, dtype=dtype))
    weight = last(torch.randn(out_channels, channels, kernel, kernel, dtype=dtype))
    bias = torch.randn(out_channels, dtype=dtype)
    y = F.conv2d(x, weight, bias, stride, padding)
    return x, weight, bias, last(torch.randn(y.shape, dtype=dtype)), arguments(stride, padding)


def by_pytorch(x, weight, bias, cotangent, arguments):
    """y and the gradients with respect to x and the weight."""
    grads = torch.ops.aten.convolution_backward(cotangent, x, weight, None, *arguments, (True, True, False))
    return torch.convolution(x, weight, bias, *arguments), *grads[:2]


def by_gnfast(x, weight, bias, cotangent, arguments):
    """The same."""
    return (
        conv2d(x, weight, bias, arguments),
        conv2d_input_grad(cotangent, torch.empty_like(x), weight, arguments),
        conv2d_weight_grad(cotangent, x, weight, arguments),
    )


def called_by_gnfast(*given):
    """`by_gnfast`, and which operators ran."""
    with Called() as called:
        return by_gnfast(*given), called.names


def doubled(*values):
    return [v.double() if isinstance(v, Tensor) else v for v in values]


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return ((actual.double() - expected).norm() / expected.norm()).item()


def poison(*sizes: int) -> None:
    """Leaves NaN in the memory that the next allocations of these sizes get."""
    for size in sizes:
        torch.full((size,), NAN)


class Called(TorchDispatchMode):
    """Records which of gnfast's operators run."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "gnfast":
            self.names.append(func._opname)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def any_size(monkeypatch):
    """Winograd however small the problem."""
    monkeypatch.setattr(winograd, "_MIN_POSITIONS", 0)
    monkeypatch.setattr(winograd, "_MIN_SIDE", 0)


@ENABLED
@pytest.mark.usefixtures("any_size")
@pytest.mark.parametrize("padding", [0, 1, 2, 3])
@pytest.mark.parametrize("sizes", SIZES, ids=lambda sizes: "x".join(map(str, sizes)))
@pytest.mark.parametrize("case", CASES)
def test_matches_float64(case, sizes, padding):
    given = make(case, sizes, padding)
    expected = by_pytorch(*doubled(*given))
    poison(*(16 * part.numel() for part in given[:4]), *(part.numel() for part in expected))
    actual, called = called_by_gnfast(*given)
    assert called == OPERATORS
    for name, a, b in zip(OPERATORS, actual, expected, strict=True):
        assert a.shape == b.shape, name
        assert a.dtype == torch.float32
        assert a.is_contiguous(memory_format=NHWC), name
        assert relative_error(a, b) < 1e-6, name


@ENABLED
@pytest.mark.parametrize("offset", [0.0, 1.0], ids=["centred", "with a mean"])
@pytest.mark.parametrize(
    "channels_and_size", [(64, 32), (128, 16), (256, 8)], ids=lambda value: "x".join(map(str, value))
)
@pytest.mark.parametrize("case", CASES)
def test_error_within_twice_pytorchs(case, channels_and_size, offset):
    channels, size = channels_and_size
    x, weight, bias, cotangent, args = make(case, (16, channels, channels, size, size), 1)
    given = (x + offset, weight, bias, cotangent, args)
    truth = by_pytorch(*doubled(*given))
    ours, called = called_by_gnfast(*given)
    assert called == OPERATORS
    for name, a, b, exact in zip(OPERATORS, ours, by_pytorch(*given), truth, strict=True):
        assert relative_error(a, exact) <= 2 * relative_error(b, exact), name
        largest = [(r.double() - exact).abs().max().item() for r in (a, b)]
        assert largest[0] <= 2 * largest[1], name


@ENABLED
@pytest.mark.parametrize("case", CASES)
def test_bits_do_not_depend_on_threads_or_runs(case):
    given = make(case, (13, 72, 40, 19, 20), 1)
    threads = torch.get_num_threads()
    try:
        runs = []
        for count in (1, 1, 2, 3):
            torch.set_num_threads(count)
            runs.append(by_gnfast(*given))
    finally:
        torch.set_num_threads(threads)
    for run in runs[1:]:
        for a, b in zip(runs[0], run, strict=True):
            assert torch.equal(a, b)


@ENABLED
@pytest.mark.parametrize("case", CASES)
def test_samples_do_not_touch_each_other(case):
    x, weight, bias, cotangent, args = make(case, (65, 8, 16, 5, 6), 1)
    y, input_grad, _ = by_gnfast(x, weight, bias, cotangent, args)
    x[7], cotangent[7] = NAN, NAN
    spoilt_y, spoilt_grad, _ = by_gnfast(x, weight, bias, cotangent, args)
    others = torch.arange(65) != 7
    assert spoilt_y[7].isnan().all()
    assert spoilt_grad[7].isnan().all()
    assert torch.equal(spoilt_y[others], y[others])
    assert torch.equal(spoilt_grad[others], input_grad[others])


LAYOUTS = {
    "contiguous": Tensor.contiguous,
    "channels_last": last,
    "strided": lambda x: last(x.repeat_interleave(2, 3))[..., ::2],
}


@ENABLED
def test_strided_bias():
    x, weight, bias, _, args = make("3x3", (8, 16, 24, 9, 10), 1)
    assert torch.equal(conv2d(x, weight, bias.repeat_interleave(2)[::2], args), conv2d(x, weight, bias, args))


@ENABLED
@pytest.mark.parametrize("weight_layout", LAYOUTS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES)
def test_layouts(case, layout, weight_layout):
    x, weight, _, cotangent, args = make(case, (8, 16, 24, 9, 10), 1)
    expected = by_gnfast(x, weight, None, cotangent, args)
    assert relative_error(expected[0], torch.convolution(*doubled(x, weight), None, *args)) < 1e-6
    x, cotangent, weight = LAYOUTS[layout](x), LAYOUTS[layout](cotangent), LAYOUTS[weight_layout](weight)
    actual, called = called_by_gnfast(x, weight, None, cotangent, args)
    assert called == OPERATORS
    for a, b in zip(actual, expected, strict=True):
        assert torch.equal(a, b)
    if "strided" not in (layout, weight_layout):
        theirs = by_pytorch(x, weight, None, cotangent, args)
        assert [a.stride() for a in actual[:2]] == [t.stride() for t in theirs[:2]]
        assert actual[2].stride() == weight.stride()


# Everything else is PyTorch's own work, bit for bit.
ELSEWHERE = {
    "odd input channels": ((4, 9, 16, 12, 12), 3, {"padding": 1}),
    "three input channels": ((4, 3, 16, 12, 12), 3, {"padding": 1}),
    "odd output channels": ((4, 16, 9, 12, 12), 3, {"padding": 1}),
    "1x1": ((4, 16, 16, 12, 12), 1, {}),
    "5x5": ((4, 16, 16, 12, 12), 5, {"padding": 2}),
    "3x3 stride 2": ((4, 16, 16, 12, 13), 3, {"stride": 2, "padding": 1}),
    "4x4 stride 3": ((4, 16, 16, 22, 22), 4, {"stride": 3, "padding": 1}),
    "dilation": ((4, 16, 16, 12, 12), 3, {"dilation": 2, "padding": 2}),
    "groups": ((8, 16, 16, 8, 8), 3, {"padding": 1, "groups": 2}),
    "transposed": ((8, 16, 16, 8, 8), 3, {"padding": 1, "transposed": True}),
    "few positions": ((1, 16, 16, 7, 9), 3, {"padding": 1}),
    "no samples": ((0, 16, 16, 8, 8), 3, {"padding": 1}),
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_other_convolutions_are_pytorchs(name):
    (batch, channels, out_channels, height, width), kernel, options = ELSEWHERE[name]
    args = arguments(**options)
    x = last(torch.randn(batch, channels, height, width))
    weight = last(torch.randn(out_channels, channels // args[-1], kernel, kernel))
    cotangent = last(torch.randn(torch.convolution(x, weight, None, *args).shape))
    assert_pytorchs(x, weight, cotangent, args)


# Maps of H×H with padding p, and what Winograd's algorithm does of a 4×4 convolution with stride 1 on them.
@ENABLED
@pytest.mark.parametrize(
    ("batch", "size", "padding", "served"),
    [
        (8, 8, 1, OPERATORS),
        (8, 5, 1, OPERATORS),
        (16, 4, 1, OPERATORS),
        (7, 5, 1, OPERATORS[2:]),
        (32, 5, 0, OPERATORS[2:]),
        (256, 4, 0, OPERATORS[2:]),
        (1, 8, 1, []),
    ],
)
def test_maps_of_4x4_convolutions(batch, size, padding, served):
    """Few positions, or outputs of one or two pixels, are PyTorch's, but for the weight's gradient."""
    assert called_by_gnfast(*make("4x4", (batch, 16, 16, size, size), padding))[1] == served


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_other_dtypes_are_pytorchs(dtype):
    x, weight, _, cotangent, args = make("3x3", (8, 16, 16, 8, 8), 1, dtype)
    assert_pytorchs(x, weight, cotangent, args)


def test_other_dimensions_are_pytorchs():
    one = (1,), (1,), (1,), False, (0,), 1
    assert_pytorchs(torch.randn(8, 16, 64), torch.randn(16, 16, 3), torch.randn(8, 16, 64), one)


def assert_pytorchs(x, weight, cotangent, args):
    actual, called = called_by_gnfast(x, weight, None, cotangent, args)
    assert called == []
    expected = by_pytorch(x, weight, None, cotangent, args)
    for a, b in zip(actual, expected, strict=True):
        assert a.stride() == b.stride()
        assert torch.equal(a, b)


@ENABLED
@pytest.mark.parametrize("family", ["dcgan", "resnet"])
def test_critics_gradients_within_twice_pytorchs_error(family):
    torch.manual_seed(0)
    _, net = models.build(family, resolution=32)
    net = net.to(memory_format=NHWC)
    x = (torch.rand(8, 3, 32, 32) * 2 - 1).to(memory_format=NHWC)

    truth = outputs_and_gradients(double_backward, copy.deepcopy(net).double(), x.double())
    with Called() as called:
        ours = outputs_and_gradients(normalize_gradient, net, x)
    assert set(OPERATORS) <= set(called.names)
    theirs = outputs_and_gradients(double_backward, net, x)
    # All at once: single gradients are dominated by which pre-activations rounding puts on the other side of zero.
    ours, theirs, truth = (torch.cat([t.flatten().double() for t in s.values()]) for s in (ours, theirs, truth))
    assert relative_error(ours, truth) <= 2 * relative_error(theirs, truth)


@ENABLED
@pytest.mark.parametrize("case", CASES)
def test_operators_conform(case):
    kernel, stride = CASES[case]
    x, weight, bias, cotangent, _ = make(case, (2, 8, 16, 9, 7), 1)
    forward, input_grad, weight_grad = (getattr(torch.ops.gnfast, name).default for name in OPERATORS)
    for operator, given in (
        (forward, (x, weight, bias, stride, 1)),
        (forward, (x, weight, None, stride, 1)),
        (input_grad, (cotangent, weight, stride, 1, 9, 7)),
        (weight_grad, (cotangent, x, kernel, stride, 1)),
        (torch.ops.gnfast.winograd_conv2d_weight_grad_.default, (torch.ones_like(weight), cotangent, x, stride, 1)),
    ):
        torch.library.opcheck(operator, given, test_utils=("test_schema", "test_faketensor"))


@ENABLED
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_weight_gradients_are_added_to_a_total(case, layout):
    x, weight, _, cotangent, arguments = make(case, (8, 16, 24, 9, 10), 1)
    before = torch.randn_like(weight).contiguous(memory_format=layout)
    total, grad = before.clone(), conv2d_weight_grad(cotangent, x, weight, arguments)
    with Called() as called, FlopCounterMode(display=False) as counter:
        assert conv2d_weight_grad(cotangent, x, weight, arguments, total) is total
    assert torch.equal(total, before + grad)
    assert called.names == ["winograd_conv2d_weight_grad" + "_" * (layout is torch.channels_last)]
    assert counter.get_total_flops() == 2 * weight.numel() * cotangent[:, 0].numel()


@ENABLED
@pytest.mark.parametrize("case", CASES)
def test_flops_are_counted_as_pytorchs(case):
    given = make(case, (8, 16, 24, 9, 10), 1)
    counts = []
    for by in (by_gnfast, by_pytorch):
        with FlopCounterMode(display=False) as counter:
            by(*given)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


@ENABLED
def test_operators_refuse_what_does_not_fit():
    x, weight, bias, cotangent, _ = make("3x3", (2, 8, 16, 5, 6), 1)
    forward, input_grad, weight_grad = (getattr(torch.ops.gnfast, name) for name in OPERATORS)
    onto = torch.ops.gnfast.winograd_conv2d_weight_grad_
    for operator, given, error, message in (
        (forward, (x.double(), weight, bias, 1, 1), TypeError, "x: got Double, wanted float32"),
        (forward, (x.contiguous(), weight, bias, 1, 1), ValueError, r"x: got .* wanted .* channels_last"),
        (forward, (last(x[:, :3]), weight, bias, 1, 1), ValueError, r"x: got sizes \[2, 3, .* a multiple of 8"),
        (
            forward,
            (last(x.repeat(1, 2, 1, 1)), weight, bias, 1, 1),
            ValueError,
            r"x: .* wanted the weight's 8 channels",
        ),
        (forward, (x, weight, bias[:8], 1, 1), ValueError, r"bias: got Float of sizes \[8\], wanted float32 of \[16\]"),
        (forward, (x, weight, bias, 1, -1), ValueError, "padding: got -1, wanted 0 or more"),
        (forward, (x, weight, bias, 2, 1), ValueError, "stride: got 2 with a kernel of 3×3, wanted 1, or 2 with 4×4"),
        (weight_grad, (cotangent, x, 4, 3, 1), ValueError, "stride: got 3 with a kernel of 4×4, wanted 1, or 2 with"),
        (weight_grad, (cotangent, x, 2, 1, 1), ValueError, "kernel_size: got 2, wanted 3 or 4"),
        (
            weight_grad,
            (cotangent[:1], x, 3, 1, 1),
            ValueError,
            r"grad: got sizes \[1, .* wanted 2 samples of 5×6 pixels",
        ),
        (input_grad, (cotangent, weight, 1, 1, 6, 6), ValueError, r"grad: got .* wanted 2 samples of 6×6 pixels"),
        (onto, (last(weight[:8]), cotangent, x, 1, 1), ValueError, r"total: got sizes \[8, .* wanted \[16, 8, 3, 3\]"),
        (onto, (weight.contiguous(), cotangent, x, 1, 1), ValueError, r"total: got .* wanted .* channels_last"),
    ):
        with pytest.raises(error, match=message):
            operator(*given)


@ENABLED
@pytest.mark.skipif(not winograd.CAPABILITY.startswith("AVX512"), reason="needs a processor with AVX-512")
def test_narrower_vectors():
    assert_passes_on("avx2", __file__, "matches_float64 or layouts")


@pytest.mark.parametrize("variable", ["GNFAST_BACKEND=torch", "ATEN_CPU_CAPABILITY=default"])
def test_switched_off(variable):
    code = "from gnfast.kernels import winograd; print(winograd.enabled('cpu'))"
    run = run_python("-c", code, **dict([variable.split("=")]))
    assert run.stdout.split() == ["False"], run.stderr
