"""Sign-bit operations against plain PyTorch: `make bench`, or `pytest benchmarks/bench_sign_bits.py`.

Every row is checked against PyTorch before it is timed. `extra_info` has the bytes that must move at least (each input
read once, each output written once), and the rate that they give at the median.
"""

import pytest
import torch

from gnfast.kernels import leaky_relu_mask, leaky_relu_pack
from gnfast.kernels.sign_bits import plain

SHAPES = [(64, 128, 32, 32), (64, 128, 8, 8), (64, 64)]
DTYPES = [torch.float32, torch.bfloat16]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def activation_rows(x):
    """name -> function, and the bytes it moves; the in-place rows repeat on their own output, which costs the same."""
    buffer = x.clone()
    words = x.nbytes // x.element_size() // 8
    return {
        "relu": (lambda: torch.relu(x), 2 * x.nbytes),
        "relu_": (lambda: torch.relu_(buffer), 2 * x.nbytes),
        "pack": (lambda: leaky_relu_pack(x), 2 * x.nbytes + words),
        "pack_": (lambda: leaky_relu_pack(buffer, inplace=True), 2 * x.nbytes + words),
        "pack, plain PyTorch": (lambda: plain.pack(x, 0.0), 2 * x.nbytes + words),
    }


def cotangent_rows(x):
    t = torch.randn_like(x)
    buffer = t.clone()
    _, bits = leaky_relu_pack(x)
    words = bits.nbytes
    return {
        "threshold_backward": (lambda: torch.ops.aten.threshold_backward(t, x, 0), 3 * x.nbytes),
        "t * (x > 0)": (lambda: t * (x > 0), 3 * x.nbytes),
        "mask": (lambda: leaky_relu_mask(t, bits), 2 * x.nbytes + words),
        "mask_": (lambda: leaky_relu_mask(buffer, bits, inplace=True), 2 * x.nbytes + words),
        "mask, plain PyTorch": (lambda: plain.mask(t, bits, 0.0), 2 * x.nbytes + words),
    }


def check(x):
    t = torch.randn_like(x)
    y, bits = leaky_relu_pack(x)
    assert torch.equal(y, torch.relu(x))
    assert torch.equal(bits, plain.pack(x, 0.0)[1])
    assert torch.equal(leaky_relu_mask(t, bits), torch.ops.aten.threshold_backward(t, x, 0))


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("rows", "name"),
    [(rows, name) for rows in (activation_rows, cotangent_rows) for name in rows(torch.ones(1))],
    ids=lambda value: value if isinstance(value, str) else "",
)
def bench_sign_bits(benchmark, device, shape, dtype, rows, name):
    x = torch.randn(shape, device=device).to(dtype)
    check(x)
    function, num_bytes = rows(x)[name]

    def timed():
        function()
        if device == "cuda":
            torch.cuda.synchronize()

    benchmark.group = f"{rows.__name__} {device} {tuple(shape)} {dtype}"
    benchmark(timed)
    if benchmark.stats:
        benchmark.extra_info["bytes"] = num_bytes
        benchmark.extra_info["GB/s"] = round(num_bytes / benchmark.stats["median"] / 1e9, 2)
