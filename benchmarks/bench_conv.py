"""Convolutions and their gradients against PyTorch's own: `make bench`, or `pytest benchmarks/bench_conv.py`.

The shapes are those of the shipped critics, float32 in channels_last. Every row is checked against PyTorch before it is
timed; `extra_info` has the rate at the median in FLOPs of the direct algorithm, for both.
"""

import pytest
import torch

from benchmarks.timed import time_call
from gnfast.bench.gate import relative_error
from gnfast.kernels.winograd import conv2d, conv2d_input_grad, conv2d_weight_grad

BATCH = 64
# input channels, output channels, kernel, resolution; 3×3 with stride 1, 4×4 with stride 2
SHAPES = [
    (64, 128, 4, 32),
    (128, 128, 3, 16),
    (128, 256, 4, 16),
    (256, 256, 3, 8),
    (256, 512, 4, 8),
    (512, 512, 3, 4),
    (128, 128, 3, 32),
    (128, 128, 3, 8),
    (128, 128, 4, 32),
]


def rows(channels, out_channels, kernel, resolution):
    """pass -> implementation -> function, and the FLOPs of each."""
    stride = kernel - 2
    arguments = (stride, stride), (1, 1), (1, 1), False, (0, 0), 1
    x = torch.randn(BATCH, channels, resolution, resolution).to(memory_format=torch.channels_last)
    weight = torch.randn(out_channels, channels, kernel, kernel).to(memory_format=torch.channels_last)
    cotangent = torch.randn_like(torch.convolution(x, weight, None, *arguments))

    def backward(*mask):
        return torch.ops.aten.convolution_backward(cotangent, x, weight, None, *arguments, mask)

    functions = {
        "forward": {
            "gnfast": lambda: conv2d(x, weight, None, arguments),
            "PyTorch": lambda: torch.convolution(x, weight, None, *arguments),
        },
        "input gradient": {
            "gnfast": lambda: conv2d_input_grad(cotangent, x, weight, arguments),
            "PyTorch": lambda: backward(True, False, False)[0],
        },
        "weight gradient": {
            "gnfast": lambda: conv2d_weight_grad(cotangent, x, weight, arguments),
            "PyTorch": lambda: backward(False, True, False)[1],
        },
    }
    return functions, 2 * cotangent[:, 0].numel() * weight.numel()


@pytest.mark.parametrize("implementation", ["gnfast", "PyTorch"])
@pytest.mark.parametrize("name", ["forward", "input gradient", "weight gradient"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "{}to{}-k{}-{}px".format(*shape))
def bench_conv(benchmark, shape, name, implementation):
    torch.manual_seed(0)
    functions, flops = rows(*shape)
    assert relative_error(functions[name]["gnfast"](), functions[name]["PyTorch"]()) < 1e-5
    time_call(benchmark, f"{name} {shape}", functions[name][implementation], {"GFLOP/s": flops / 1e9})
