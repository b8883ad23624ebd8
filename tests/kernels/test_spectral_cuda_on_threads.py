"""The CUDA kernels of spectral normalisation, compiled for the host, thread by thread: their arithmetic without a GPU.

What threads of one block cannot show stays for the GPU: blocks that run side by side, and speed.
"""

import ctypes
import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gnfast.kernels.spectral import plain
from tests.kernels.test_cuda_compile import ROOT, cuda_include_directory
from tests.kernels.test_spectral_norm import unit_vectors

EPS = 1e-12
NAN = float("nan")
DTYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}

LAUNCHERS = """
using namespace gnfast::cuda;
extern "C" int iterate(int dtype, void* layers, int count) {
  return launch_spectral_iterate(static_cast<DType>(dtype), static_cast<IterationLayer*>(layers), count, nullptr);
}
extern "C" int scale(int dtype, void* layers, int count) {
  return launch_spectral_scale(static_cast<DType>(dtype), static_cast<ScaleLayer*>(layers), count, nullptr);
}
extern "C" int backward(int dtype, void* layers, int count) {
  return launch_spectral_backward(static_cast<DType>(dtype), static_cast<BackwardLayer*>(layers), count, nullptr);
}
extern "C" int launches() { return on_threads::launches; }
"""


def structure(**fields):
    return type("Structure", (ctypes.Structure,), {"_fields_": list(fields.items())})


POINTER, UINT, DOUBLE = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_double
MatrixLayout = structure(rows=UINT, cols=UINT, outer=UINT, inner=UINT, major=UINT, minor=UINT)
IterationLayer = structure(
    weight=POINTER, u=POINTER, v=POINTER, vectors=POINTER, sigma=POINTER, workspace=POINTER, squares=POINTER,
    eps=DOUBLE, layout=MatrixLayout, iterations=ctypes.c_int,
)  # fmt: skip
ScaleLayer = structure(source=POINTER, target=POINTER, sigma=POINTER, coeff=DOUBLE, size=UINT)
BackwardLayer = structure(
    grad=POINTER, weight=POINTER, result=POINTER, vectors=POINTER, sigma=POINTER, products=POINTER,
    coeff=DOUBLE, layout=MatrixLayout,
)  # fmt: skip


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    """spectral/cuda.cu as a host library; launches become loops over blocks."""
    compiler, include = shutil.which(os.environ.get("CXX", "c++")), cuda_include_directory()
    if compiler is None or include is None:
        pytest.skip("needs a C++ compiler and the CUDA headers")
    source = (ROOT / "csrc" / "spectral" / "cuda.cu").read_text().replace("#include <cooperative_groups.h>", "")
    source, plain = re.subn(
        r"(\w+_kernel<T, Acc>)<<<(.*?), kThreads, 0, stream>>>\(table\)", r"on_threads::launch(\2, \1, table)", source
    )
    source, cooperative = re.subn(
        r"cudaLaunchCooperativeKernel\(.*?stream\)",
        "(on_threads::launch(1, spectral_iterate_kernel<T, Acc>, table), cudaSuccess)",
        source,
        flags=re.DOTALL,
    )
    assert (plain, cooperative) == (3, 1), "the launches in spectral/cuda.cu look otherwise than this test expects"
    directory = tmp_path_factory.mktemp("on_threads")
    file, library = directory / "kernels.cpp", directory / "kernels.so"
    file.write_text('#include "cuda_on_threads.h"\n' + source + LAUNCHERS)
    command = [compiler, "-std=c++20", "-O1", "-fPIC", "-shared", "-isystem", str(include)]
    command += ["-I", str(ROOT / "csrc" / "spectral"), "-I", str(Path(__file__).parent), str(file), "-o", str(library)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    return ctypes.CDLL(str(library))


def weights(dtype: torch.dtype) -> tuple[list[Tensor], list[int]]:
    """Every order of memory, aligned and odd sizes, several blocks of rows and of columns."""
    channels_last = torch.randn(17, 8, 3, 4).contiguous(memory_format=torch.channels_last)
    made = [
        (torch.randn(19, 37), 0),
        (torch.randn(1, 1051), 0),
        (torch.randn(40, 64), 0),
        (channels_last, 0),
        (torch.randn(6, 11, 4, 4), 1),
        (channels_last, 1),
        (torch.randn(45, 21).t(), 0),
        (torch.randn(17, 1300), 0),
        (torch.randn(9, 5, 2, 3), 3),
    ]
    return [torch.empty_strided(w.shape, w.stride(), dtype=dtype).copy_(w) for w, _ in made], [dim for _, dim in made]


def matrix_layout(weight: Tensor, dim: int):
    from gnfast.kernels.spectral.triton import layout_of

    rows, cols, inner, major, minor = layout_of(weight, dim)
    return MatrixLayout(rows, cols, cols // inner, inner, major, minor)


def poisoned(size: int, dtype: torch.dtype) -> Tensor:
    return torch.full((size,), NAN, dtype=dtype)


def pointers(parts: Iterable[Tensor]) -> list[int]:
    return [part.data_ptr() for part in parts]


def call(function, dtype: torch.dtype, layers: list) -> None:
    assert function(DTYPES[dtype], (type(layers[0]) * len(layers))(*layers), len(layers)) == 0


def assert_close(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    tolerance = {torch.float64: 1e-13, torch.float32: 2e-6, torch.float16: 2e-4, torch.bfloat16: 2e-3}[dtype]
    assert (actual.double() - expected.double()).norm() <= tolerance * expected.double().norm()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_matches_the_plain_twin(kernels, dtype):
    pytest.importorskip("triton")
    ws, dims = weights(dtype)
    u, v = unit_vectors(ws, dims)
    iterations, coeffs, count = [1, 2, 1, 1, 0, 3, 1, 1, 2], [1.0, 0.5, 0.7] * 3, len(ws)
    layouts = [matrix_layout(w, dim) for w, dim in zip(ws, dims, strict=True)]
    twin_u, twin_v = [x.clone() for x in u], [x.clone() for x in v]
    twin_vectors, twin_sigma = plain.iterate(ws, twin_u, twin_v, dims, iterations, [EPS] * count)

    acc = twin_sigma.dtype
    vectors, sigma = poisoned(twin_vectors.numel(), acc), poisoned(count, acc)
    parts = pointers(vectors.split([layout.rows + layout.cols for layout in layouts]))
    sigmas = pointers(sigma)
    workspaces = [poisoned(layout.rows + -(-layout.rows // 8) * layout.cols, acc) for layout in layouts]
    squares = [poisoned(-(-layout.cols // 32), torch.float64) for layout in layouts]
    call(kernels.iterate, dtype, [
        IterationLayer(
            ws[i].data_ptr(), u[i].data_ptr(), v[i].data_ptr(), parts[i], sigmas[i], workspaces[i].data_ptr(),
            squares[i].data_ptr(), EPS, layouts[i], iterations[i],
        )
        for i in range(count)
    ])  # fmt: skip
    assert_close(vectors, twin_vectors, acc)
    assert_close(sigma, twin_sigma, acc)
    for actual, expected in zip(u + v, twin_u + twin_v, strict=True):
        assert_close(actual, expected, dtype)

    results = [torch.full_like(w, NAN) for w in ws]
    call(kernels.scale, dtype, [
        ScaleLayer(ws[i].data_ptr(), results[i].data_ptr(), sigmas[i], coeffs[i], ws[i].numel()) for i in range(count)
    ])  # fmt: skip
    for actual, expected in zip(results, plain.scale(ws, sigma, coeffs), strict=True):
        assert_close(actual, expected, dtype)

    grads = [torch.randn_like(w) for w in ws]
    results = [torch.full_like(w, NAN) for w in ws]
    products = [poisoned(-(-w.numel() // 16384), torch.float64) for w in ws]
    call(kernels.backward, dtype, [
        BackwardLayer(
            grads[i].data_ptr(), ws[i].data_ptr(), results[i].data_ptr(), parts[i], sigmas[i], products[i].data_ptr(),
            coeffs[i], layouts[i],
        )
        for i in range(count)
    ])  # fmt: skip
    for actual, expected in zip(results, plain.backward(grads, ws, vectors, sigma, dims, coeffs), strict=True):
        assert_close(actual, expected, dtype)


@pytest.mark.parametrize(("layers", "wanted"), [(1, 1), (10, 1), (32, 1), (33, 2)], ids="{} layers".format)
def test_launches(kernels, layers, wanted):
    """Forward: one to iterate and one to scale; backward: two; for up to 32 layers."""
    w, g, out = (torch.randn(layers, 3, 4) for _ in range(3))
    u, v, vectors, sigma = torch.ones(layers, 3), torch.ones(layers, 4), torch.ones(layers, 7), torch.ones(layers)
    workspace, squares = torch.ones(layers, 7), torch.ones(layers, 1, dtype=torch.float64)
    layout = MatrixLayout(3, 4, 1, 4, 4, 1)

    def rows(*tensors: Tensor):
        return zip(*map(pointers, tensors), strict=True)

    iteration = [IterationLayer(*row, EPS, layout, 1) for row in rows(w, u, v, vectors, sigma, workspace, squares)]
    scale = [ScaleLayer(*row, 1.0, 12) for row in rows(w, out, sigma)]
    backward = [BackwardLayer(*row, 1.0, layout) for row in rows(g, w, out, vectors, sigma, squares)]
    counts = []
    for function, table in ((kernels.iterate, iteration), (kernels.scale, scale), (kernels.backward, backward)):
        before = kernels.launches()
        call(function, torch.float32, table)
        counts.append(kernels.launches() - before)
    assert counts == [wanted, wanted, 2 * wanted]
