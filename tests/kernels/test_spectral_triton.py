"""The Triton kernels of spectral normalisation in Triton's interpreter; `test_specialisations.py` compiles them."""

import pytest
import torch

from gnfast.kernels.spectral import plain

pytest.importorskip("triton")
EPS = 1e-12


def weights(dtype: torch.dtype) -> tuple[list[torch.Tensor], list[int]]:
    """Every order of memory that the kernels tell apart, odd sizes, more than one block of rows and columns."""
    channels_last = torch.randn(11, 6, 3, 5).contiguous(memory_format=torch.channels_last)
    made = [
        (torch.randn(19, 301), 0),
        (torch.randn(1, 37), 0),
        (channels_last, 0),
        (channels_last, 1),
        (torch.randn(6, 11, 4, 3), 1),
        (torch.randn(45, 21).t(), 0),
        (torch.randn(5, 4, 3, 6).permute(3, 2, 1, 0), 0),
        (torch.randn(23, 50)[:, ::2], 0),
    ]
    return [torch.empty_strided(w.shape, w.stride(), dtype=dtype).copy_(w) for w, _ in made], [dim for _, dim in made]


@pytest.mark.interpreted
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
def test_interpreted_kernels_match_the_plain_twin(dtype):
    from gnfast.kernels.spectral import triton as spectral_triton

    ws, dims = weights(dtype)
    u = [torch.randn(w.shape[dim]).to(dtype) for w, dim in zip(ws, dims, strict=True)]
    v = [torch.randn(w.numel() // w.shape[dim]).to(dtype) for w, dim in zip(ws, dims, strict=True)]
    u, v = ([x / x.norm() for x in vectors] for vectors in (u, v))
    iterations, coeffs = [1, 0, 1, 2, 1, 3, 1, 0], [1.0, 0.5, 0.7, 1.0, 2.0, 1.0, 1.0, 0.1]
    seen = []
    for implementation in (plain, spectral_triton):
        left, right = ([x.clone() for x in vectors] for vectors in (u, v))
        vectors, sigma = implementation.iterate(ws, left, right, dims, iterations, [EPS] * len(ws))
        normalized = implementation.scale(ws, sigma, coeffs)
        torch.manual_seed(1)
        grads = [torch.randn(w.shape, dtype=torch.float64).to(dtype) for w in ws]
        results = implementation.backward(grads, ws, vectors, sigma, dims, coeffs)
        assert [x.stride() for x in normalized + results] == [torch.empty_like(w).stride() for w in ws] * 2
        seen.append([vectors, sigma, *left, *right, *normalized, *results])
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-4, torch.float16: 4e-3}[dtype]
    for expected, actual in zip(*seen, strict=True):
        assert (actual.double() - expected.double()).norm() <= tolerance * expected.double().norm()
