"""Compiles the Triton kernels for GPUs that need not be there, and holds each to its budget of registers, no spills."""

import os
import re
from collections.abc import Collection
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")

from gnfast.kernels import mlp  # noqa: E402
from gnfast.kernels.conv import triton as conv_triton  # noqa: E402
from gnfast.kernels.head import triton as heads_triton  # noqa: E402
from gnfast.kernels.join import triton as pointwise_triton  # noqa: E402
from gnfast.kernels.mlp import triton as mlp_triton  # noqa: E402
from tests.kernels.cubin import resources  # noqa: E402

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="interpreted kernels are not compiled"
)

CAPABILITIES = [80, 90]
ELEMENTS = ["bf16", "fp16", "fp32", "fp64"]


def assert_compiles(
    kernel: Any,
    pointers: dict[str, str],
    constants: dict[str, Any],
    budget: int,
    capability: int,
    odd: Collection[str] = ("batch",),
    **options: int,
) -> Any:
    """Compiles a kernel as a launch with arguments divisible by 16 would, checks what it uses, and returns it.

    Args:
        pointers: argument: its element type; arguments that are neither pointers nor constants are 32-bit integers.
        budget: registers per thread.
        odd: arguments that need not be divisible.
        options: num_warps and num_stages.
    """
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, attributes = {}, {}
    for index, name in enumerate(kernel.arg_names):
        signature[name] = "constexpr" if name in constants else f"*{pointers[name]}" if name in pointers else "i32"
        if name not in constants and name not in odd:
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constexprs=constants, attrs=attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    used = resources(compiled.asm["cubin"])
    assert used["LOCAL"] == 0 and used["STACK"] == 0, f"spills: {used}"
    assert used["REG"] <= budget, f"{used['REG']} registers, budget {budget}"
    return compiled


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


NOT_JOINED = {"TERMS": 0, "BIASES": 0, "SCALED": False, "AFTER": 0, "KEEP_SUM": False, "SIGNS": 0, "SLOPE": 0.2}
NOT_JOINED |= {"GRADIENT": False, "SQUARES": False, "CENTRE": 1.0, "WIDE": False}
CONVOLUTIONS = {
    "plain": {"BIASES": 1},
    "join forward": {"TERMS": 1, "BIASES": 2, "KEEP_SUM": True, "SIGNS": conv_triton._PACK},
    "join pushforward": {"TERMS": 1, "BIASES": 2, "SCALED": True, "KEEP_SUM": True, "SIGNS": conv_triton._MASK},
    "input gradient, join": {"GRADIENT": True, "TERMS": 1, "AFTER": 2, "SIGNS": conv_triton._MASK},
    "input gradient, squares": {"GRADIENT": True, "SQUARES": True},
}
# Of a block: what a multiprocessor of sm_80 and of sm_90 has.
SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024}


def compile_convolution(
    configuration: str, variant: str, element: str, capability: int, channels: tuple[int, int], precision: str
) -> str:
    """Compiles a 3×3 convolution between so many channels, checks what it uses, and returns its instructions."""
    constants = {**NOT_JOINED, **CONVOLUTIONS[variant]}
    constants |= {"KERNEL_H": 3, "KERNEL_W": 3, "STRIDE_H": 1, "STRIDE_W": 1}
    aligned = constants["ALIGNED"] = constants["SIGNS"] != 0 and channels[1] % 32 == 0
    epilogue = constants["SIGNS"] != 0 or constants["SQUARES"]
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[element]
    constants |= conv_triton.tile(configuration, dtype, channels[0], epilogue, aligned, precision)
    options = {name: constants.pop(name) for name in ("num_warps", "num_stages")}
    # The weight is in channels_last, too.
    constants["weight_n" if constants["GRADIENT"] else "weight_c"] = 1
    odd = ["batch", "in_height", "in_width", "out_height", "out_width", "padding_h", "padding_w"]
    odd += [name for name, number in zip(("in_channels", "out_channels"), channels, strict=True) if number % 16]
    names = ("source", "weight", "out", "term", "bias_1", "bias_2", "after_1", "after_2", "total")
    pointers = {**dict.fromkeys(names, element), "scale": "fp32", "bits": "i32", "sums": "fp64"}
    kernel, budget = conv_triton._conv_kernel, conv_triton.REGISTER_BUDGET
    compiled = assert_compiles(kernel, pointers, constants, budget, capability, odd, **options)
    assert compiled.metadata.shared <= SHARED_MEMORY[capability]
    return compiled.asm["ptx"]


def uses_tensor_cores(ptx: str) -> bool:
    return re.search(r"\b(wgmma\.mma_async|mma\.sync)\b", ptx) is not None


# Each configuration as a different convolution per element and GPU; all convolutions as the one with the largest tile.
DRAWN = [
    (configuration, list(CONVOLUTIONS)[(index + first) % 5], element, capability)
    for index, configuration in enumerate(conv_triton.CONFIGURATIONS)
    for first, element, capability in ((0, "bf16", 80), (1, "fp32", 80), (2, "bf16", 90), (3, "fp32", 90))
]
DRAWN += [("128x128x64", variant, element, 90) for variant in CONVOLUTIONS for element in ("bf16", "fp32")]


@pytest.mark.parametrize(("configuration", "variant", "element", "capability"), sorted(set(DRAWN)))
def test_convolution(configuration, variant, element, capability):
    assert uses_tensor_cores(compile_convolution(configuration, variant, element, capability, (128, 128), "tf32"))


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize(
    ("configuration", "variant", "channels"),
    [
        ("128x64x32", "join forward", (3, 64)),
        ("128x128x64", "join pushforward", (17, 96)),
        ("128x16x64", "input gradient, squares", (64, 3)),
        ("64x64x64", "input gradient, join", (64, 17)),
    ],
)
def test_convolution_between_few_channels(configuration, variant, channels, capability):
    assert uses_tensor_cores(compile_convolution(configuration, variant, "bf16", capability, channels, "tf32"))


@pytest.mark.parametrize("configuration", ["64x64x64", "128x128x64"])
def test_convolution_in_full_precision(configuration):
    assert not uses_tensor_cores(compile_convolution(configuration, "join forward", "fp32", 90, (128, 128), "ieee"))
