"""Sign-bit operations against plain PyTorch: `make bench`, or `pytest benchmarks/bench_sign_bits.py`.

Every row is checked against PyTorch before it is timed. `extra_info` has the rate at the median, of the bytes that must
move at least (each input read once, each output written once).
"""

import pytest
import torch

from benchmarks.gpu.small_kernels import check_sign_bits, sign_bit_operations
from benchmarks.timed import DEVICES, time_call

SHAPES = [(64, 128, 32, 32), (64, 128, 8, 8), (64, 64)]
DTYPES = [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", sign_bit_operations(torch.ones(1)))
def bench_sign_bits(benchmark, device, shape, dtype, name):
    x = torch.randn(shape, device=device).to(dtype)
    check_sign_bits(x)
    operation = sign_bit_operations(x)[name]
    kind = "activation" if operation.replaces.startswith("relu") else "cotangent"
    group = f"{kind} {device} {shape} {dtype}"
    time_call(benchmark, group, operation.call, {"GB/s": operation.bytes / 1e9})
