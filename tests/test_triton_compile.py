"""Compiles the Triton kernels for GPUs that need not be there, and holds each to its budget of registers, no spills."""

import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")

from gnfast.kernels import heads_triton, mlp, mlp_triton, pointwise_triton  # noqa: E402

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="interpreted kernels are not compiled"
)

CAPABILITIES = [80, 90]
ELEMENTS = ["bf16", "fp16", "fp32", "fp64"]


def cuobjdump() -> Path:
    return Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


def resources(cubin: bytes) -> dict[str, int]:
    """Registers per thread, and bytes of stack and local memory (where spills go), from the compiled kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        run = subprocess.run([cuobjdump(), "-res-usage", file.name], capture_output=True, text=True, check=True)
    found = dict(re.findall(r"\b(REG|STACK|LOCAL):(\d+)", run.stdout + run.stderr))
    return {name: int(value) for name, value in found.items()}


def assert_compiles(
    kernel: Any, pointers: dict[str, str], constants: dict[str, Any], budget: int, capability: int, **options: int
) -> None:
    """Compiles a kernel as a launch with arguments divisible by 16 would, and checks what it uses.

    Args:
        pointers: argument: its element type; arguments that are neither pointers nor constants are 32-bit integers.
        budget: registers per thread.
        options: num_warps and num_stages.
    """
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, attributes = {}, {}
    for index, name in enumerate(kernel.arg_names):
        signature[name] = "constexpr" if name in constants else f"*{pointers[name]}" if name in pointers else "i32"
        if name not in constants and name != "batch":
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constexprs=constants, attrs=attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    used = resources(compiled.asm["cubin"])
    assert used["LOCAL"] == 0 and used["STACK"] == 0, f"spills: {used}"
    assert used["REG"] <= budget, f"{used['REG']} registers, budget {budget}"


def accumulator(element: str) -> Any:
    return tl.float64 if element == "fp64" else tl.float32


def budget_of(module: Any, element: str) -> int:
    return module.REGISTER_BUDGET["fp64" if element == "fp64" else "fp32"]


JOIN = {"SLOPE": 0.2, "WIDE": False, "WORDS": pointwise_triton.WORDS}
VARIANTS = {
    "bias": {"TERMS": 1, "BIASES": 1, "KEEP_SUM": False},
    "residual": {"TERMS": 2, "BIASES": 2, "KEEP_SUM": True},
}


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize("aligned", [True, False], ids=["aligned", "unaligned"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_join_forward(variant, aligned, element, capability):
    constants = {**JOIN, **VARIANTS[variant], "ALIGNED": aligned, "CHANNELS_LAST": True, "ACC": accumulator(element)}
    names = ("term_1", "term_2", "bias_1", "bias_2", "y", "total")
    pointers = {**dict.fromkeys(names, element), "bits": "i32"}
    budget = budget_of(pointwise_triton, element)
    kernel = pointwise_triton._join_forward_kernel
    assert_compiles(kernel, pointers, constants, budget, capability, num_warps=pointwise_triton.NUM_WARPS)


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize("aligned", [True, False], ids=["aligned", "unaligned"])
@pytest.mark.parametrize("variant", [*VARIANTS, "pullback"])
def test_join_masked(variant, aligned, element, capability):
    shape = VARIANTS.get(variant, {"TERMS": 2, "BIASES": 0, "KEEP_SUM": False})
    constants = {**JOIN, **shape, "ALIGNED": aligned, "CHANNELS_LAST": True, "ACC": accumulator(element)}
    constants["AFTER"] = 2 if variant == "pullback" else 0
    names = ("term_1", "term_2", "after_1", "after_2", "bias_1", "bias_2", "out", "total")
    pointers = {**dict.fromkeys(names, element), "scale": "fp32", "bits": "i32"}
    budget = budget_of(pointwise_triton, element)
    kernel = pointwise_triton._join_masked_kernel
    assert_compiles(kernel, pointers, constants, budget, capability, num_warps=pointwise_triton.NUM_WARPS)


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize("squared", [False, True], ids=["entries", "squares"])
@pytest.mark.parametrize("kind", ["gn", "gn0", "gn1", "gran"])
def test_head_normalize(kind, squared, element, capability):
    constants = {"KIND": heads_triton.KINDS[kind], "COMPLEMENT": kind == "gn", "CENTRE": 1.0, "TAU": 1.2, "EPS": 0.1}
    constants |= {"SQUARED": squared, "ACC": accumulator(element), "BLOCK": heads_triton.BLOCK}
    pointers = {"f": element, "g": "fp64" if squared else element, "f_hat": element}
    pointers["partials"] = "fp64" if element == "fp64" else "fp32"
    budget = budget_of(heads_triton, element)
    kernel = heads_triton._head_normalize_kernel
    assert_compiles(kernel, pointers, constants, budget, capability, num_warps=heads_triton.NUM_WARPS)


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("element", ELEMENTS)
def test_head_pull(element, capability):
    constants = {"CENTRE": 1.0, "WANTS_START": True, "WANTS_GRAD_X": True, "ACC": accumulator(element)}
    constants["BLOCK"] = heads_triton.BLOCK
    sums = "fp64" if element == "fp64" else "fp32"
    pointers = dict.fromkeys(("upstream", "x", "g", "start", "grad_x"), element)
    pointers |= {"partials": sums, "scale": sums}
    budget = budget_of(heads_triton, element)
    kernel = heads_triton._head_pull_kernel
    assert_compiles(kernel, pointers, constants, budget, capability, num_warps=heads_triton.NUM_WARPS)


def chain(width: int, element: str) -> tuple[dict[str, str], dict[str, Any]]:
    """Element types and constants of three hidden layers that are as wide as their tile."""
    weights = [f"{kind}_{k}" for kind in "wb" for k in (1, 2, 3, 4)]
    pointers = dict.fromkeys((*weights, "w_out", "b_out", "x", "g", "f_hat", "grad_x", "upstream"), element)
    pointers |= {"partials": "fp32", "deltas": "fp32", "grads": "fp32", "masks": "i8"}
    constants = {"d_0": 2, "d_1": width, "d_2": width, "d_3": width, "d_4": 1}
    return pointers, {**constants, "HIDDEN": 3, "SLOPE": 0.2, "BIASED": 7, "P": width, "ROWS": mlp_triton.ROWS}


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("element", ["bf16", "fp32"])
@pytest.mark.parametrize("width", [16, mlp.MAX_WIDTH])
def test_mlp_forward(width, element, capability):
    pointers, constants = chain(width, element)
    constants |= {
        "BIASED_OUT": True,
        "KEEP": True,
        "KIND": 0,
        "COMPLEMENT": True,
        "CENTRE": 1.0,
        "TAU": 1.0,
        "EPS": 0.1,
    }
    kernel, budget = mlp_triton._mlp_forward_kernel, mlp_triton.REGISTER_BUDGET
    assert_compiles(kernel, pointers, constants, budget, capability, num_warps=mlp_triton.NUM_WARPS)


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("element", ["bf16", "fp32"])
@pytest.mark.parametrize("width", [16, mlp.MAX_WIDTH])
def test_mlp_backward(width, element, capability):
    pointers, constants = chain(width, element)
    constants |= {"WANTS_GRAD_X": True, "WANTS_WEIGHTS": True, "CENTRE": 1.0}
    kernel, budget = mlp_triton._mlp_backward_kernel, mlp_triton.REGISTER_BUDGET
    assert_compiles(kernel, pointers, constants, budget, capability, num_warps=mlp_triton.NUM_WARPS)
