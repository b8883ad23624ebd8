"""Convolutions to one channel, as products of matrices, against PyTorch's in float64."""

import pytest
import torch

from gnfast.kernels import winograd
from gnfast.kernels.winograd import conv2d_weight_grad, narrow
from tests.kernels.test_winograd import (
    LAYOUTS,
    arguments,
    assert_pytorchs,
    by_gnfast,
    by_pytorch,
    doubled,
    relative_error,
)

pytestmark = pytest.mark.skipif(not winograd.enabled("cpu"), reason="needs the C++ library and a processor with AVX2")

# Batch, input channels, height, width, kernel, padding.
SERVED = {
    "PatchGAN's": (3, 128, 7, 9, (4, 4), (1, 1)),
    "one sample": (1, 144, 8, 5, (4, 4), (1, 1)),
    "3x3": (2, 130, 6, 5, (3, 3), (1, 1)),
    "1x1": (2, 128, 5, 3, (1, 1), (0, 0)),
    "odd sides": (2, 129, 6, 7, (5, 2), (2, 1)),
    "as large as its output": (3, 128, 2, 2, (3, 3), (1, 1)),
    "a pixel": (2, 128, 1, 1, (3, 3), (1, 1)),
}
ELSEWHERE = {
    "two channels": ((2, 128, 2, 8, 8), 3, {"padding": 1}),
    "few input channels": ((2, 120, 1, 8, 8), 3, {"padding": 1}),
    "stride": ((2, 128, 1, 8, 8), 4, {"padding": 1, "stride": 2}),
    "dilation": ((2, 128, 1, 8, 8), 3, {"padding": 2, "dilation": 2}),
    "more padding than a kernel": ((2, 128, 1, 4, 4), 2, {"padding": 2}),
    "as large as its input": ((5, 128, 1, 4, 4), 4, {}),
}


def make(batch, channels, out_channels, height, width, kernel, given):
    x, weight = torch.randn(batch, channels, height, width), torch.randn(out_channels, channels, *kernel)
    return x, weight, torch.randn(out_channels), torch.randn_like(torch.convolution(x, weight, None, *given)), given


def to_one(name):
    batch, channels, height, width, kernel, padding = SERVED[name]
    return make(batch, channels, 1, height, width, kernel, ((1, 1), padding, (1, 1), False, (0, 0), 1))


@pytest.mark.parametrize("weight_layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", SERVED)
def test_matches_float64(name, layout, weight_layout):
    x, weight, bias, cotangent, given = to_one(name)
    x, cotangent, weight = LAYOUTS[layout](x), LAYOUTS[layout](cotangent), LAYOUTS[weight_layout](weight)
    assert narrow.serves(x, weight, given) and narrow.serves(cotangent, weight, given)
    actual, theirs = by_gnfast(x, weight, bias, cotangent, given), by_pytorch(x, weight, bias, cotangent, given)
    for a, b, truth in zip(actual, theirs, by_pytorch(*doubled(x, weight, bias, cotangent, given)), strict=True):
        assert a.shape == b.shape and a.dtype == torch.float32
        assert relative_error(a, truth) < 1e-6
        assert relative_error(a, truth) <= 2 * relative_error(b, truth) + 1e-7
    assert actual[2].stride() == weight.stride()
    if layout == weight_layout and 1 not in x.shape and (layout == "channels_last" or weight[0, 0].numel() > 1):
        assert actual[1].stride() == theirs[1].stride()


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_weight_gradients_are_added_to_a_total(layout):
    x, weight, _, cotangent, given = to_one("PatchGAN's")
    before = LAYOUTS[layout](torch.randn_like(weight))
    total = before.clone()
    assert conv2d_weight_grad(cotangent, x, weight, given, total) is total
    torch.testing.assert_close(total, before + conv2d_weight_grad(cotangent, x, weight, given))


@pytest.mark.parametrize("name", ELSEWHERE)
def test_others_are_pytorchs(name):
    sizes, kernel, options = ELSEWHERE[name]
    x, weight, _, cotangent, given = make(*sizes, (kernel, kernel), arguments(**options))
    assert not narrow.serves(x, weight, given)
    assert_pytorchs(x, weight, cotangent, given)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_other_dtypes_are_pytorchs(dtype):
    x, weight, _, cotangent, given = (t.to(dtype) if torch.is_tensor(t) else t for t in to_one("PatchGAN's"))
    assert_pytorchs(x, weight, cotangent, given)
