"""Sign bits: every implementation against PyTorch's own operations and against words made from 0/1 digits."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gnfast.kernels import backends, leaky_relu_mask, leaky_relu_pack

OPERATION = "sign_bits"
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SLOPES = [0.0, 0.2]
SIZES = [0, 1, 31, 32, 33, 100_003]  # the last: several threads, partial word and vector
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
INF, NAN = float("inf"), float("nan")
SPECIAL = [NAN, -NAN, INF, -INF, 0.0, -0.0, 1e-45, -1e-45, 6e-8, -6e-8, 3e38, -3e38]

has_operators = pytest.mark.skipif(backends()["leaky_relu_pack"]["cpu"] != "cpp", reason="the C++ library is not built")
pytestmark = [
    pytest.mark.usefixtures("routed"),
    pytest.mark.parametrize("device", DEVICES),
    pytest.mark.parametrize("implementation", [pytest.param("operators", marks=has_operators), "torch"]),
]


def values(numel: int, dtype: torch.dtype, device: str) -> Tensor:
    x = torch.randn(numel, dtype=torch.float64).to(dtype)
    special = torch.tensor(SPECIAL, dtype=torch.float64).to(dtype)
    # At both ends: full words and the rest are different code.
    head = x[: len(special)]
    head.copy_(special[: len(head)])
    tail = x[len(special) :][-len(special) :]
    tail.copy_(special[: len(tail)])
    return x.to(device)


def contiguous(x: Tensor) -> Tensor:
    return x.view(1, -1)


def channels_last(x: Tensor) -> Tensor:
    numel = x.numel() // 12 * 12
    return x[:numel].view(1, -1, 3, 4).contiguous(memory_format=torch.channels_last)


def permuted(x: Tensor) -> Tensor:
    return x[: x.numel() // 15 * 15].view(3, 5, -1).permute(2, 0, 1)


def offset(x: Tensor) -> Tensor:
    """Starts one element into a storage: dense, but not aligned to a vector."""
    return torch.cat([x.new_full((1,), NAN), x])[1:]


def poison(like: Tensor) -> None:
    """Leaves NaN in the memory that the next allocations of this size get."""
    blocks = [torch.full((like.numel(),), NAN, dtype=like.dtype, device=like.device) for _ in range(3)]
    blocks += [torch.full(((like.numel() + 31) // 32,), -1, dtype=torch.int32, device=like.device) for _ in range(3)]


def physical(x: Tensor) -> Tensor:
    return x.as_strided((x.numel(),), (1,))


def assert_identical(actual: Tensor, expected: Tensor) -> None:
    """The same bits, signs of zero included; a NaN equals any other."""
    assert actual.shape == expected.shape
    assert actual.stride() == expected.stride() or actual.numel() == 0
    assert actual.dtype == expected.dtype
    nan = torch.isnan(expected)
    assert torch.equal(torch.isnan(actual), nan)
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[actual.element_size()]
    actual, expected = (physical(x.masked_fill(nan, 0)).view(integer) for x in (actual, expected))
    assert torch.equal(actual, expected)


def oracle_words(x: Tensor) -> Tensor:
    """The documented layout, from 0/1 digits."""
    positive = (physical(x) > 0).to(torch.int64).cpu()
    digits = F.pad(positive, (0, -positive.numel() % 32)).view(-1, 32)
    words = (digits << torch.arange(32)).sum(1)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32).to(x.device)


@pytest.mark.parametrize("slope", SLOPES)
@pytest.mark.parametrize("layout", [contiguous, channels_last, permuted, offset], ids=lambda layout: layout.__name__)
@pytest.mark.parametrize("numel", SIZES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_matches_pytorch(device, dtype, numel, layout, slope):
    x = layout(values(numel, dtype, device))
    t = layout(values(numel, dtype, device).flip(0))
    original_x, original_t = x.clone(), t.clone()
    expected_y = torch.relu(x) if slope == 0 else F.leaky_relu(x, slope)
    expected_bits = oracle_words(x)
    zero = torch.zeros((), dtype=dtype, device=device)
    expected_out = torch.where(x > 0, t, zero if slope == 0 else t * slope)

    poison(x)
    y, bits = leaky_relu_pack(x, slope)
    assert_identical(y, expected_y)
    assert torch.equal(bits, expected_bits)
    assert bits.dtype == torch.int32

    poison(t)
    assert_identical(leaky_relu_mask(t, bits, slope), expected_out)

    assert_identical(x, original_x)
    assert_identical(t, original_t)

    y, bits = leaky_relu_pack(x, slope, inplace=True)
    assert y is x
    assert_identical(x, expected_y)
    assert torch.equal(bits, expected_bits)
    assert leaky_relu_mask(t, bits, slope, inplace=True) is t
    assert_identical(t, expected_out)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_slope_zero_selects(device, dtype):
    x = torch.full((40,), -1.0, dtype=dtype, device=device)
    t = torch.tensor([INF, -INF, NAN, -1.0] * 10, dtype=dtype, device=device)
    _, bits = leaky_relu_pack(x)
    assert_identical(leaky_relu_mask(t, bits), torch.zeros_like(t))


def test_mask_takes_another_dtype(device):
    x = values(100, torch.bfloat16, device)
    _, bits = leaky_relu_pack(x)
    t = torch.randn(100, device=device)
    assert_identical(leaky_relu_mask(t, bits), torch.where(x > 0, t, 0.0))


@pytest.mark.parametrize("slope", SLOPES)
def test_mask_is_the_derivative(device, slope):
    x = torch.randn(3, 5, 7, device=device, requires_grad=True)
    cotangent = torch.randn_like(x)
    (expected,) = torch.autograd.grad(F.leaky_relu(x, slope), x, cotangent)
    with torch.no_grad():
        _, bits = leaky_relu_pack(x, slope)
        assert torch.equal(leaky_relu_mask(cotangent, bits, slope), expected)


def test_says_what_it_wants(device):
    with pytest.raises(TypeError, match=r"x: got .*[Ii]nt.*, wanted float32"):
        leaky_relu_pack(torch.zeros(3, dtype=torch.int32, device=device))
    for gaps in (torch.zeros(4, 6, device=device)[:, ::2], torch.zeros(1, 3, device=device).expand(2, 3)):
        with pytest.raises(ValueError, match=r"x: got sizes .* wanted a dense tensor"):
            leaky_relu_pack(gaps)
        with pytest.raises(ValueError, match=r"x: got sizes .* wanted a dense tensor"):
            leaky_relu_pack(gaps, inplace=True)
    t = torch.zeros(33, device=device)
    with pytest.raises(ValueError, match=r"bits: got .*wanted 2.* words for t's 33 elements"):
        leaky_relu_mask(t, torch.zeros(1, dtype=torch.int32, device=device))
    with pytest.raises(TypeError, match=r"bits: got .*, wanted int32"):
        leaky_relu_mask(t, torch.zeros(2, dtype=torch.int64, device=device))


@pytest.mark.parametrize("slope", SLOPES)
@pytest.mark.parametrize("inplace", [False, True], ids=["out-of-place", "in-place"])
def test_operators_are_well_formed(device, implementation, inplace, slope):
    if implementation == "torch":
        pytest.skip("not a registered operator")
    operators = torch.ops.gnfast
    suffix = "_" if inplace else ""
    x = torch.randn(2, 3, 5, 7, device=device).contiguous(memory_format=torch.channels_last)
    _, bits = leaky_relu_pack(x)
    torch.library.opcheck(getattr(operators, "leaky_relu_pack" + suffix).default, (x, slope))
    torch.library.opcheck(getattr(operators, "leaky_relu_mask" + suffix).default, (x, bits, slope))


@pytest.mark.parametrize("inplace", [False, True], ids=["out-of-place", "in-place"])
def test_traces_without_graph_breaks(device, inplace):
    def function(x, t):
        y, bits = leaky_relu_pack(x * 2, 0.1, inplace)
        return y, leaky_relu_mask(t + 1, bits, 0.1, inplace)

    x, t = torch.randn(2, 5, 9, device=device)
    # The first call imports the kernels, which cannot be traced.
    expected = function(x, t)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for actual, wanted in zip(compiled(x, t), expected, strict=True):
        assert_identical(actual, wanted)


def test_portable_kernels(run_portable):
    run_portable(__file__, "cpu-operators and (33 or selects)")
