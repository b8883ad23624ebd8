"""Kernels are launched on the device of their tensors, whichever is the current one: read in the sources."""

import ast
import itertools
import re
from pathlib import Path

import pytest
import torch

import gnfast

ROOT = Path(gnfast.__file__).parent.parent
TRITON = ["batch_norm", "conv", "curves", "draws", "head", "join", "loss", "mlp", "norms", "operands", "scaled_sums"]
TRITON += ["spectral"]
BINDINGS = sorted((ROOT / "csrc").rglob("cuda_binding.cpp"))


def launches(node, guarded=False):
    """Name, line and whether `torch.cuda.device_of` surrounds it, of each `kernel[grid](…)`."""
    if isinstance(node, ast.With):
        guarded |= any(ast.unparse(item.context_expr).startswith("torch.cuda.device_of(") for item in node.items)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript):
        yield ast.unparse(node.func.value), node.lineno, guarded
    for child in ast.iter_child_nodes(node):
        yield from launches(child, guarded)


def test_triton_kernels():
    found = set()
    for path in (ROOT / "gnfast" / "kernels").rglob("*.py"):
        for name, _, guarded in launches(ast.parse(path.read_text())):
            if name.endswith("_kernel"):
                assert guarded, name
                found.add(path.parent.name)
    assert sorted(found) == TRITON


@pytest.mark.skipif(not BINDINGS, reason="an installed package has no C++ sources")
def test_cuda_operations():
    functions = [re.findall(r"^\S[^\n]*\(.*?^}", path.read_text(), re.MULTILINE | re.DOTALL) for path in BINDINGS]
    before_launches = [body.partition("launch_")[0] for body in itertools.chain(*functions) if "launch_" in body]
    assert len(before_launches) == 5
    assert all("const c10::cuda::CUDAGuard guard(" in code for code in before_launches)


def test_the_reading_sees_a_launch_without_a_guard():
    source = "with torch.cuda.device_of(x):\n    a_kernel[(1,)](x)\nb_kernel[(1,)](x)"
    assert list(launches(ast.parse(source))) == [("a_kernel", 2, True), ("b_kernel", 3, False)]


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_spectral_norm_on_another_device_than_the_current_one():
    from gnfast.kernels.spectral import triton as spectral_triton

    weight = torch.randn(6, 8, device="cuda:1")
    u, v = torch.randn(6, device="cuda:1"), torch.randn(8, device="cuda:1")
    _, sigma = spectral_triton.iterate([weight], [u], [v], [0], [50], [1e-12])
    assert sigma.item() == pytest.approx(torch.linalg.matrix_norm(weight, 2).item(), rel=1e-4)
