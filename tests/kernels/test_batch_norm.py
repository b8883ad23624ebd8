"""Batch norm of several batches with gain, offset and ReLU: the twin against PyTorch, the kernels against the twin."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from gnfast import InputError
from gnfast.kernels import batch_norm
from gnfast.kernels.batch_norm import Running, plain

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
# groups, samples in each, channels and places: odd ones, less than a tile and more than one, single channels, vectors.
SHAPES = {
    "odd": (3, 2, 5, 7, 3),
    "one group": (1, 3, 70, 5, 9),
    "more than a tile": (2, 2, 65, 9, 11),
    "one channel": (5, 3, 1, 4, 5),
    "one place": (2, 5, 70, 1, 1),
    "vectors": (3, 5, 37),
    "sequences": (2, 3, 6, 11),
    "a long chunk": (1, 2, 3, 40, 40),
}
# weight and bias: of all samples, of each, none.
AFFINE = {"all": (1, 1), "each": (2, 2), "none": (0, 0), "weight": (1, 0), "bias of each": (0, 2), "both": (1, 2)}


def made(name, affine, dtype, layout="channels_last", device="cpu", seed=0):
    """groups, x, weight, bias, dy."""
    groups, samples, channels, *places = SHAPES[name]
    draw = torch.Generator().manual_seed(seed)

    def random(*size):
        return torch.randn(size, generator=draw, dtype=torch.float64)

    x, dy = random(groups * samples, channels, *places) * 2 + 3, random(groups * samples, channels, *places)
    if x.dim() == 4:
        x = x.contiguous(memory_format=LAYOUTS[layout])
    sizes = {1: (channels,), 2: (groups * samples, channels)}
    weight, bias = (random(*sizes[kind]) + 0.3 if kind else None for kind in AFFINE[affine])
    # Parameters of half-width networks are float32, as under autocast.
    of_parameters = torch.float64 if dtype == torch.float64 else torch.float32
    parameters = (t if t is None else t.to(device, of_parameters) for t in (weight, bias))
    return groups, x.to(device, dtype), *parameters, dy.to(device, dtype)


def running(channels, momentum, cumulative, like):
    draw = torch.Generator().manual_seed(5)
    mean, var = torch.randn(2, channels, generator=draw, dtype=torch.float64).to(like.device, like.dtype)
    return Running(mean, var.abs(), momentum, cumulative)


def in_pytorch(groups, x, weight, bias, relu, averages=None):
    """The same by PyTorch's batch norm, one group after the other."""
    parts, momentum = [], None if averages is None else averages.momentum
    for part in x.chunk(groups):
        buffers = (None, None) if averages is None else averages[:2]
        parts.append(F.batch_norm(part, *buffers, training=True, momentum=momentum or 0.0, eps=1e-3))
        if averages is not None and averages.cumulative:
            momentum = momentum / (1 + momentum)
    y = torch.cat(parts)
    for t, combine in ((weight, torch.mul), (bias, torch.add)):
        if t is not None:
            y = combine(y, t.reshape(*t.shape, *[1] * (x.dim() - 2)))
    return y.relu() if relu else y


def results(groups, x, weight, bias, dy, relu, averages, implementation):
    """y, means, 1/σ, gradients, averages."""
    _, mean, rstd = implementation.statistics(x, groups, 1e-3, averages, None, (1, 1))
    y = implementation.normalise(x, mean, rstd, weight, bias, relu, x.dtype)
    return y, mean, rstd, *implementation.gradients(dy, x, mean, rstd, weight, bias, relu), averages.mean, averages.var


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("affine", "relu"), list(itertools.product(AFFINE, (True, False))))
@pytest.mark.parametrize("name", SHAPES)
def test_twin_matches_double_backward(name, affine, relu, layout):
    groups, x, weight, bias, dy = made(name, affine, torch.float64, layout)
    for momentum, cumulative in ((0.3, False), (1 / 4, True)):
        ours, theirs = (running(x.shape[1], momentum, cumulative, x) for _ in range(2))
        leaves = [t for t in (x, weight, bias) if t is not None]
        for leaf in leaves:
            leaf.requires_grad_()
        expected = in_pytorch(groups, x, weight, bias, relu, theirs)
        grads = torch.autograd.grad(expected, leaves, dy)
        with torch.no_grad():
            actual = results(groups, x, weight, bias, dy, relu, ours, plain)
        found = actual[0], *(t for t in actual[3:6] if t is not None), *actual[6:]
        for left, right in zip(found, (expected, *grads, *theirs[:2]), strict=True):
            torch.testing.assert_close(left, right, rtol=1e-11, atol=1e-11)
        assert actual[0].stride() == actual[3].stride() == x.stride()


def check_kernels(name, affine, relu, dtype, layout, device):
    from gnfast.kernels.batch_norm import triton

    groups, x, weight, bias, dy = made(name, affine, dtype, layout, device)
    averages = [running(x.shape[1], 1 / 3, relu, weight if weight is not None else x) for _ in range(2)]
    if len(dy) % 2:
        # A gradient that lies in another way.
        dy = dy.contiguous()
    actual, expected = (
        results(groups, x, weight, bias, dy, relu, own, module)
        for own, module in zip(averages, (triton, plain), strict=True)
    )
    for index, (left, right) in enumerate(zip(actual, expected, strict=True)):
        if right is None:
            assert left is None
            continue
        assert left.dtype == right.dtype and left.stride() == right.stride()
        rounding = torch.finfo(right.dtype if index < 6 else averages[0].mean.dtype).eps
        tolerance = 16 * max(rounding, torch.finfo(mean_dtype(dtype)).eps) * max(1, right.abs().max().item())
        # Errors of x grow as 1/σ does; sums are of up to 3200 entries.
        steepest = max(1, expected[2].max().item())
        tolerance *= {0: steepest, 2: steepest, 3: 4 * steepest, 4: 32, 5: 32}.get(index, 1)
        torch.testing.assert_close(left, right, rtol=0, atol=tolerance, msg=f"result {index}")


def mean_dtype(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


DTYPES = [torch.float64, torch.float32, torch.float16]


SUMS = {
    "each pixel to 2×3": ((6, 5, 4, 3), (2, 3)),
    "each pixel to 2×2, many channels": ((4, 66, 5, 7), (2, 2)),
    "as it is": ((6, 9, 8, 9), (1, 1)),
    "vectors": ((6, 7), (1, 1)),
}


def check_sum(name, dtype, layout, device, module):
    """The sum, its statistics, and the averages, against those of the sum by PyTorch."""
    size, factor = SUMS[name]
    whole = tuple(n * m for n, m in zip(size, (1, 1, *factor), strict=False))
    more, x = (torch.randn(s, dtype=torch.float64).to(device, dtype) for s in (size, whole))
    if len(size) == 4:
        x, more = x.contiguous(memory_format=LAYOUTS[layout]), more.contiguous(memory_format=torch.channels_last)
    exact = mean_dtype(dtype)
    ours, theirs = (running(size[1], 0.3, False, torch.empty(0, dtype=exact, device=device)) for _ in range(2))
    actual = *module.statistics(x, 2, 1e-3, ours, more, factor), *ours[:2]
    repeated = F.interpolate(more, scale_factor=tuple(map(float, factor))) if factor != (1, 1) else more
    expected = *plain.statistics(x + repeated, 2, 1e-3, theirs, None, (1, 1)), *theirs[:2]
    assert torch.equal(actual[0], expected[0]) and actual[0].stride() == x.stride()
    for left, right in zip(actual[1:], expected[1:], strict=True):
        tolerance = 32 * torch.finfo(exact).eps
        torch.testing.assert_close(left, right, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", SUMS)
def test_sums_by_the_twin(name, dtype, layout):
    check_sum(name, dtype, layout, "cpu", plain)


@pytest.mark.interpreted
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
@pytest.mark.parametrize("name", SUMS)
def test_interpreted_sums(name, dtype):
    from gnfast.kernels.batch_norm import triton

    for layout in LAYOUTS:
        check_sum(name, dtype, layout, "cpu", triton)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", SUMS)
def test_sums(name, dtype):
    from gnfast.kernels.batch_norm import triton

    for layout in LAYOUTS:
        check_sum(name, dtype, layout, "cuda", triton)


@pytest.mark.interpreted
def test_interpreted_in_large_tensors(monkeypatch):
    """Those of 2³¹ entries and more, whose places take 64 bits."""
    from gnfast.kernels.batch_norm import triton

    original = triton._tile
    monkeypatch.setattr(triton, "_tile", lambda *given: original(*given) | {"WIDE": True})
    check_kernels("odd", "each", True, torch.float64, "channels_last", "cpu")
    check_sum("each pixel to 2×3", torch.float64, "contiguous", "cpu", triton)


@pytest.mark.interpreted
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_interpreted_kernels_match_the_twin(name, dtype):
    # The interpreter is slow: in each dtype some combinations, all of them over the shapes.
    start = (list(SHAPES).index(name) + DTYPES.index(dtype)) % 6
    for index, (affine, relu) in list(enumerate(itertools.product(AFFINE, (True, False))))[start::6]:
        check_kernels(name, affine, relu, dtype, list(LAYOUTS)[index % 3 % 2], "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [*DTYPES, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_kernels_match_the_twin(name, dtype, layout):
    for affine, relu in itertools.product(AFFINE, (True, False)):
        check_kernels(name, affine, relu, dtype, layout, "cuda")


def check_a_mean_far_from_0(module, device):
    """Digits that float32 has are not lost to squares: σ is 1 at a mean of 1000."""
    x = (torch.randn(6, 5, 31, 33, dtype=torch.float64) + 1000).float()
    _, mean, rstd = module.statistics(x.to(device), 2, 0.0, None, None, (1, 1))
    var, exact = torch.var_mean(x.double().unflatten(0, (2, 3)), (1, 3, 4), correction=0)
    torch.testing.assert_close(mean.cpu().double(), exact, rtol=2e-7, atol=0)
    torch.testing.assert_close(rstd.cpu().double(), var.rsqrt(), rtol=1e-6, atol=0)


@pytest.mark.interpreted
def test_interpreted_kernels_keep_digits():
    from gnfast.kernels.batch_norm import triton

    check_a_mean_far_from_0(triton, "cpu")


@pytest.mark.gpu
def test_kernels_keep_digits():
    from gnfast.kernels.batch_norm import triton

    check_a_mean_far_from_0(triton, "cuda")


def check_nan(module, device):
    """It passes both ways, as through PyTorch's batch norm and ReLU, and channels without it are left alone."""
    x = torch.randn(4, 3, 2, 5, dtype=torch.float64, device=device)
    x[1, 1, 0, 2], x[2, 2, 1, 1] = float("nan"), float("inf")
    leaves = [t.requires_grad_() for t in (x, *torch.randn(2, 3, dtype=torch.float64, device=device))]
    dy = torch.randn_like(x)
    y = F.batch_norm(x, None, None, *leaves[1:], training=True).relu()
    expected = y.detach(), *torch.autograd.grad(y, leaves, dy)
    with torch.no_grad():
        _, mean, rstd = module.statistics(x, 1, 1e-5, None, None, (1, 1))
        given = x, mean, rstd, *leaves[1:], True
        actual = module.normalise(*given, x.dtype), *module.gradients(dy, *given)
    assert [t.isnan().any().item() for t in expected] == [True, True, True, False] and not expected[2][0].isnan()
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-11, equal_nan=True)


def test_nan_passes_the_twin():
    check_nan(plain, "cpu")


@pytest.mark.interpreted
def test_nan_passes_interpreted_kernels():
    from gnfast.kernels.batch_norm import triton

    check_nan(triton, "cpu")


@pytest.mark.gpu
def test_nan_passes_kernels():
    from gnfast.kernels.batch_norm import triton

    check_nan(triton, "cuda")


def test_what_has_no_variance_is_refused():
    for size, groups in (((4, 3), 4), ((5, 3, 2), 2), ((0, 3, 4, 4), 1), ((4,), 1)):
        with pytest.raises(InputError, match="equal parts of 2 values or more"):
            batch_norm.statistics(torch.randn(size), groups, 1e-5)
    for size, factor in (((4, 3, 2, 2), (1, 1)), ((4, 3, 2, 3), (2, 2)), ((4, 3), (2, 2)), ((4, 2, 2, 2), (2, 2))):
        with pytest.raises(InputError, match="more: got"):
            batch_norm.statistics(torch.randn(4, 3, 4, 4), 2, 1e-5, None, torch.randn(size), factor)
