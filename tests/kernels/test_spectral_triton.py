"""The Triton kernels of spectral normalisation in Triton's interpreter; `test_specialisations.py` compiles them."""

import pytest
import torch

from tests.kernels.test_spectral_norm import check

pytest.importorskip("triton")


@pytest.mark.interpreted
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
def test_interpreted_kernels(dtype, use):
    """Every order of memory that the kernels tell apart, odd sizes, more than one block of rows and columns."""
    use("spectral", "cpu", "triton")
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
    weights = [torch.empty_strided(w.shape, w.stride(), dtype=dtype).copy_(w) for w, _ in made]
    check(weights, [dim for _, dim in made], [1, 0, 1, 2, 1, 3, 1, 0], [1.0, 0.5, 0.7, 1.0, 2.0, 1.0, 1.0, 0.1])
