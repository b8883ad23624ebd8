"""Convolutions and their gradients against PyTorch's own: `make bench`, or `pytest benchmarks/bench_conv.py`.

The shapes are those of the shipped critics and, 4×4 with stride 1, of PatchGANs; float32 in channels_last. Every row is
checked against PyTorch before it is timed; `extra_info` has the rate at the median in FLOPs of the direct algorithm,
for both.
"""

from functools import partial

import pytest
import torch

from benchmarks.timed import time_call
from gnfast.bench.gate import relative_error
from gnfast.kernels import winograd

BATCH = 64
# input channels, output channels, kernel, stride, resolution
SHAPES = [
    (64, 128, 4, 2, 32),
    (128, 128, 3, 1, 16),
    (128, 256, 4, 2, 16),
    (256, 256, 3, 1, 8),
    (256, 512, 4, 2, 8),
    (512, 512, 3, 1, 4),
    (128, 128, 3, 1, 32),
    (128, 128, 3, 1, 8),
    (128, 128, 4, 2, 32),
    (256, 512, 4, 1, 8),
    (256, 512, 4, 1, 16),
]


@pytest.mark.parametrize("implementation", ["gnfast", "PyTorch"])
@pytest.mark.parametrize("name", ["conv2d", "conv2d_input_grad", "conv2d_weight_grad"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "{}to{}-k{}s{}-{}px".format(*shape))
def bench_conv(benchmark, shape, name, implementation):
    torch.manual_seed(0)
    channels, out_channels, kernel, stride, resolution = shape
    arguments = (stride, stride), (1, 1), (1, 1), False, (0, 0), 1
    x = torch.randn(BATCH, channels, resolution, resolution).to(memory_format=torch.channels_last)
    weight = torch.randn(out_channels, channels, kernel, kernel).to(memory_format=torch.channels_last)
    cotangent = torch.randn_like(torch.convolution(x, weight, None, *arguments))

    operands = (x, weight, None) if name == "conv2d" else (cotangent, x, weight)
    modules = {"gnfast": winograd, "PyTorch": winograd.plain}
    calls = {who: partial(getattr(module, name), *operands, arguments) for who, module in modules.items()}
    assert relative_error(calls["gnfast"](), calls["PyTorch"]()) < 1e-5
    flops = 2 * cotangent[:, 0].numel() * weight.numel()
    time_call(benchmark, f"{name} {shape}", calls[implementation], {"GFLOP/s": flops / 1e9})
