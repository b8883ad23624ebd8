"""Gradients of biases, all at once: the plain twin in float64, the Triton kernels against the twin."""

import pytest
import torch

from gnfast.kernels.scaled_sums import plain, scaled_sums

# Shape of a cotangent after the batch, axis of the bias, memory format.
SHAPES = [
    ((5, 7, 3), 1, torch.contiguous_format),
    ((5, 7, 3), 1, torch.channels_last),
    ((70, 2, 3), 1, torch.channels_last),
    ((1, 4, 4), 1, torch.channels_last),
    ((3, 19, 20), 1, torch.channels_last),
    ((37,), 1, None),
    ((5, 11), 2, None),
    ((5, 11), 1, None),
    ((1,), 1, None),
]
DTYPES = [torch.float64, torch.float32, torch.bfloat16]


def made(batch, dtype, device):
    """Cotangents and axes; one is expanded, two are ones, and there are more than one launch takes."""
    cotangents, axes = [], []
    for shape, axis, layout in SHAPES * 4:
        t = torch.randn(batch, *shape, dtype=torch.float64, device=device).to(dtype)
        cotangents.append(t if layout is None else t.contiguous(memory_format=layout))
        axes.append(axis)
    return [None, *cotangents, cotangents[0][:, :, :1, :1].expand(batch, 5, 2, 2), None], [1, *axes, 1, 1]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_against_float64(dtype):
    cotangents, axes = made(6, dtype, "cpu")
    scale = torch.randn(6, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    for cotangent, axis, found in zip(cotangents, axes, scaled_sums(cotangents, axes, scale), strict=True):
        cotangent = torch.ones(6, 1) if cotangent is None else cotangent
        wide = (cotangent.double().transpose(0, -1) * scale.double()).transpose(0, -1)
        expected = wide.sum([d for d in range(wide.dim()) if d != axis])
        assert found.dtype == scale.dtype
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=2e-5)


def check(batch, dtype, device):
    from gnfast.kernels.scaled_sums import triton

    cotangents, axes = made(batch, dtype, device)
    scale = torch.randn(batch, dtype=torch.float64 if dtype == torch.float64 else torch.float32, device=device)
    expected, found = (way.scaled_sums(cotangents, axes, scale) for way in (plain, triton))
    tolerance = 1e-13 if dtype == torch.float64 else 2e-5
    for actual, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=tolerance, atol=tolerance)
    assert all(map(torch.equal, found, triton.scaled_sums(cotangents, axes, scale)))
    # Ones alone, of more samples than a chunk has rows.
    (alone,) = triton.scaled_sums([None], [1], scale.repeat(1 + triton.CHUNK))
    torch.testing.assert_close(alone, scale.sum(0, keepdim=True) * (1 + triton.CHUNK), rtol=tolerance, atol=1e-3)


@pytest.mark.interpreted
@pytest.mark.parametrize(("batch", "dtype"), [(5, torch.float64), (3, torch.bfloat16), (1, torch.float32)])
def test_interpreted_kernels_match_the_twin(batch, dtype):
    check(batch, dtype, "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("batch", [0, 1, 37])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_kernels_match_the_twin(batch, dtype):
    check(batch, dtype, "cuda")
