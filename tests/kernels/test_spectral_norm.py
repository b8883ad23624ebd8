"""Spectral-norm operations: every implementation against formulas on explicit matrices in double precision."""

import math

import pytest
import torch
from torch import Tensor

from gnfast.kernels import backends, spectral_norm_backward, spectral_norm_iterate, spectral_norm_scale
from gnfast.kernels.spectral.plain import as_matrix

OPERATION = "spectral"
NAN = float("nan")
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
EPS = 1e-12

has_operators = pytest.mark.skipif(backends()["spectral_norm"]["cpu"] != "cpp", reason="the C++ library is not built")
pytestmark = [
    pytest.mark.usefixtures("routed"),
    pytest.mark.parametrize("device", DEVICES),
    pytest.mark.parametrize(
        "implementation",
        [pytest.param("operators", marks=has_operators), "torch", pytest.param("triton", marks=pytest.mark.gpu)],
    ),
]


def channels_last(*shape: int) -> Tensor:
    layout = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
    return torch.randn(shape, dtype=torch.float64).contiguous(memory_format=layout)


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


# id -> weight and the dimension of its rows
WEIGHTS = {
    "linear": lambda: (randn(19, 37), 0),
    "linear, one output": lambda: (randn(1, 4099), 0),
    "linear, one input": lambda: (randn(131, 1), 0),
    "linear, transposed in memory": lambda: (randn(301, 45).t(), 0),
    "embedding, several blocks of rows": lambda: (randn(1031, 130), 0),
    "conv": lambda: (randn(37, 19, 3, 3), 0),
    "conv, channels_last": lambda: (channels_last(37, 19, 3, 5), 0),
    "conv 3d, channels_last": lambda: (channels_last(7, 5, 2, 3, 4), 0),
    "conv, 1x1": lambda: (randn(9, 70, 1, 1), 0),
    "transposed conv": lambda: (randn(19, 37, 4, 5), 1),
    "transposed conv, channels_last": lambda: (channels_last(19, 37, 4, 5), 1),
    "transposed conv, one input": lambda: (randn(1, 5, 4, 4), 1),
    "last dimension": lambda: (randn(5, 6, 7), 2),
    "reversed in memory": lambda: (randn(5, 4, 3, 6).permute(3, 2, 1, 0), 0),
    "gaps in memory": lambda: (randn(23, 50)[:, ::2], 0),
    "expanded": lambda: (randn(1, 8).expand(5, 8), 0),
    "one entry": lambda: (randn(1, 1), 0),
}


def poison(like: list[Tensor], dtype: torch.dtype) -> None:
    """Leaves NaN in the memory that the next allocations of these sizes get."""
    kept = [torch.full((w.numel(),), NAN, dtype=d, device=w.device) for w in like for d in (dtype, torch.float32)]
    del kept


def unit_vectors(weights: list[Tensor], dims: list[int]) -> tuple[list[Tensor], list[Tensor]]:
    pairs = [[randn(size) for size in sides(w, dim)] for w, dim in zip(weights, dims, strict=True)]
    return [[(x / x.norm()).to(weights[0]) for x in vectors] for vectors in zip(*pairs, strict=True)]


def oracle(weight: Tensor, v: Tensor, u: Tensor, dim: int, iterations: int) -> tuple[Tensor, Tensor, Tensor]:
    """u, v and σ in double, as the formulas say."""
    matrix, u, v = as_matrix(weight.double(), dim), u.double(), v.double()
    for _ in range(iterations):
        u = matrix @ v
        u = u / max(u.norm(), EPS)
        v = matrix.T @ u
        v = v / max(v.norm(), EPS)
    return u, v, u @ (matrix @ v)


# Relative, of norms.
TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def assert_close(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    difference = (actual.double().cpu() - expected.double().cpu()).norm()
    assert difference <= TOLERANCE[dtype] * expected.double().norm().cpu()


def check(weights: list[Tensor], dims: list[int], iterations: list[int], coeffs: list[float]) -> None:
    dtype = weights[0].dtype
    u, v = unit_vectors(weights, dims)
    expected = [oracle(*each) for each in zip(weights, v, u, dims, iterations, strict=True)]
    before = [x.clone() for x in (*u, *v)]

    poison(weights, dtype)
    vectors, sigma = spectral_norm_iterate(weights, u, v, dims, iterations, [EPS] * len(dims))
    assert vectors.dtype == sigma.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    parts = iter(vectors.split([n for w, dim in zip(weights, dims, strict=True) for n in sides(w, dim)]))
    for i, (u_i, v_i, sigma_i) in enumerate(expected):
        for used, state, wanted in ((next(parts), u[i], u_i), (next(parts), v[i], v_i)):
            assert_close(used, wanted, torch.float32 if dtype != torch.float64 else dtype)
            assert_close(state, wanted, dtype)
            if iterations[i] == 0:
                assert any(torch.equal(state, x) for x in before if x.shape == state.shape)
        assert_close(sigma[i], sigma_i, torch.float32 if dtype != torch.float64 else dtype)

    poison(weights, dtype)
    originals = [w.clone() for w in weights]
    for weight, normalized, (_, _, sigma_i), k in zip(
        weights, spectral_norm_scale(weights, sigma, coeffs), expected, coeffs, strict=True
    ):
        assert normalized.dtype == dtype
        assert normalized.stride() == torch.empty_like(weight).stride()
        assert_close(normalized, k * weight.double() / sigma_i, dtype)

    grads = [torch.randn(w.shape, dtype=torch.float64, device=w.device).to(dtype) for w in weights]
    grads[-1] = grads[-1].mT.contiguous().mT
    poison(weights, dtype)
    results = spectral_norm_backward(grads, weights, vectors, sigma, dims, coeffs)
    for i, (u_i, v_i, _) in enumerate(expected):
        w = weights[i].double().detach().requires_grad_()
        sigma_i = u_i @ (as_matrix(w, dims[i]) @ v_i)
        (wanted,) = torch.autograd.grad(coeffs[i] * w / sigma_i, w, grads[i].double())
        assert results[i].stride() == torch.empty_like(weights[i]).stride()
        # A matrix of one row or column has no gradient but across it; what is left then is rounding.
        scale = max(wanted.norm().item(), (coeffs[i] / sigma_i).abs().item() * grads[i].double().norm().item())
        assert (results[i].double() - wanted).norm().item() <= TOLERANCE[dtype] * scale
    for weight, original in zip(weights, originals, strict=True):
        assert torch.equal(weight, original)


def sides(weight: Tensor, dim: int) -> tuple[int, int]:
    return weight.shape[dim], weight.numel() // weight.shape[dim]


def made(name: str, dtype: torch.dtype, device: str) -> tuple[Tensor, int]:
    weight, dim = WEIGHTS[name]()
    if 0 in weight.stride():
        return weight[:1].to(dtype).to(device).expand(weight.shape), dim
    # `to` keeps the strides of dense tensors alone.
    return torch.empty_strided(weight.shape, weight.stride(), dtype=dtype, device=device).copy_(weight), dim


@pytest.mark.parametrize("iterations", [0, 1, 3], ids="{} iterations".format)
@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_weight(device, dtype, name, iterations):
    weight, dim = made(name, dtype, device)
    check([weight], [dim], [iterations], [0.7])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_many_weights(device, dtype):
    weights, dims = zip(*(made(name, dtype, device) for name in WEIGHTS), strict=True)
    check(list(weights), list(dims), [i % 4 for i in range(len(dims))], [0.25 * (1 + i % 5) for i in range(len(dims))])


def test_more_weights_than_one_launch_takes(device):
    weights = [torch.randn(3 + i % 5, 4 + i % 7, device=device) for i in range(131)]
    check(weights, [i % 2 for i in range(131)], [1] * 131, [1.0] * 131)


def test_eps(device):
    """Norms below eps divide as eps."""
    weight = torch.full((3, 4), 1e-9, dtype=torch.float64, device=device)
    u, v = torch.ones(3).to(weight), torch.ones(4).to(weight) / 2
    wv = weight @ v
    eps = 1e-6
    wtu = weight.T @ (wv / eps)
    vectors, sigma = spectral_norm_iterate([weight], [u], [v], [0], [1], [eps])
    assert_close(vectors, torch.cat([wv / eps, wtu / eps]), torch.float64)
    assert_close(sigma, (wv / eps) @ weight @ (wtu / eps), torch.float64)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_zero_and_nan(device, dtype):
    zero, nan = torch.zeros(5, 7, dtype=dtype, device=device), torch.ones(5, 7, dtype=dtype, device=device)
    fine = torch.ones(5, 7, dtype=dtype, device=device)
    nan[3, 2] = NAN
    weights = [zero, nan, fine]
    u, v = unit_vectors(weights, [0] * 3)
    vectors, sigma = spectral_norm_iterate(weights, u, v, [0] * 3, [1] * 3, [EPS] * 3)
    assert sigma[0] == 0
    assert torch.equal(vectors[:12], torch.zeros_like(vectors[:12]))
    assert sigma[1].isnan()
    assert vectors[12:24].isnan().all()
    normalized = spectral_norm_scale(weights, sigma, [1.0] * 3)
    assert normalized[0].isnan().all()
    assert normalized[1].isnan().all()
    assert_close(normalized[2], fine / math.sqrt(35), dtype)


def test_says_what_it_wants(device, implementation):
    w, u, v = torch.randn(3, 4, device=device), torch.randn(3, device=device), torch.randn(4, device=device)
    if implementation != "operators":
        pytest.skip("only the operators check their arguments")
    ones = [torch.ones(size, device=device) for size in range(8)]
    iterate, scale, backward = spectral_norm_iterate, spectral_norm_scale, spectral_norm_backward
    for function, arguments, error, message in [
        (iterate, ([w.long()], [u], [v], [0], [1], [EPS]), TypeError, "weights: got Long, wanted float32"),
        (iterate, ([w, w.double()], [u] * 2, [v] * 2, [0] * 2, [1] * 2, [EPS] * 2), TypeError, "got Float and Double"),
        (iterate, ([w[0]], [u], [v], [0], [1], [EPS]), ValueError, r"weights: got sizes \[4\], wanted 2 dimensions"),
        (iterate, ([w], [u], [v], [2], [1], [EPS]), ValueError, "dims: got 2, wanted 0 to 1"),
        (iterate, ([w], [v], [u], [0], [1], [EPS]), ValueError, r"u: got sizes \[4\] .* wanted 3 contiguous"),
        (iterate, ([w], [u.double()], [v], [0], [1], [EPS]), TypeError, "u: got Double, wanted Float"),
        (iterate, ([w], [u], [v], [0], [1], []), ValueError, "eps: got 0 entries for 1 weights"),
        (scale, ([w], ones[2], [1.0]), ValueError, r"sigma: got sizes \[2\] .* wanted 1 contiguous"),
        (backward, ([w.mT], [w], ones[7], ones[1], [0], [1.0]), ValueError, r"got Float of sizes \[4, 3\]"),
    ]:
        with pytest.raises(error, match=message):
            function(*arguments)


def test_operators_are_well_formed(device, implementation):
    if implementation != "operators":
        pytest.skip("not a registered operator")
    weights = [torch.randn(6, 5, device=device), torch.randn(3, 4, 3, 3, device=device)]
    u, v = unit_vectors(weights, [0, 1])
    operators = torch.ops.gnfast
    arguments = (weights, u, v, [0, 1], [1, 0], [EPS, EPS])
    torch.library.opcheck(operators.spectral_norm_iterate.default, arguments)
    vectors, sigma = spectral_norm_iterate(*arguments)
    torch.library.opcheck(operators.spectral_norm_scale.default, (weights, sigma, [1.0, 2.0]))
    grads = [torch.randn_like(w) for w in weights]
    torch.library.opcheck(
        operators.spectral_norm_backward.default, (grads, weights, vectors, sigma, [0, 1], [1.0, 2.0])
    )


def test_independent_of_threads(device, implementation):
    """The same bits with any number of threads, and twice."""
    names = ["embedding, several blocks of rows", "conv, channels_last", "transposed conv"]
    weights, dims = (list(each) for each in zip(*(made(n, torch.float32, device) for n in names), strict=True))
    start = unit_vectors(weights, dims)
    grads = [torch.randn_like(w) for w in weights]
    if implementation == "torch":
        pytest.skip("PyTorch's products depend on the threads")
    threads = torch.get_num_threads()
    try:
        seen = []
        for count in (1, 2, 3, 3):
            torch.set_num_threads(count)
            u, v = ([x.clone() for x in vectors] for vectors in start)
            vectors, sigma = spectral_norm_iterate(weights, u, v, dims, [2] * 3, [EPS] * 3)
            seen.append([vectors, sigma, *spectral_norm_backward(grads, weights, vectors, sigma, dims, [1.0] * 3)])
    finally:
        torch.set_num_threads(threads)
    for other in seen[1:]:
        assert all(torch.equal(a, b) for a, b in zip(seen[0], other, strict=True))


def test_portable_kernels(run_portable):
    run_portable(__file__, "operators and cpu and (many_weights or zero or threads)")
