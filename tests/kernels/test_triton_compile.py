"""Compiles the Triton kernels for GPUs that need not be there, and holds each to its budget of registers, no spills."""

import itertools
import os
import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

import pytest
import torch

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")

from gnfast.kernels.batch_norm import triton as batch_norm_launches  # noqa: E402
from gnfast.kernels.batch_norm import triton_kernel as batch_norm  # noqa: E402
from gnfast.kernels.conv import tiles, triton_kernel  # noqa: E402
from gnfast.kernels.curves import triton as curves  # noqa: E402
from gnfast.kernels.draws import triton as draws  # noqa: E402
from gnfast.kernels.head import triton as head  # noqa: E402
from gnfast.kernels.join import triton as join  # noqa: E402
from gnfast.kernels.loss import triton as loss  # noqa: E402
from gnfast.kernels.mlp import MAX_WIDTH  # noqa: E402
from gnfast.kernels.mlp import triton as mlp  # noqa: E402
from gnfast.kernels.norms import triton_channels  # noqa: E402
from gnfast.kernels.operands import triton as operands  # noqa: E402
from gnfast.kernels.scaled_sums import triton as scaled_sums  # noqa: E402
from tests.kernels.cubin import assert_fits  # noqa: E402

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="interpreted kernels are not compiled"
)

CAPABILITIES = [80, 90]


def assert_compiles(
    kernel: Any,
    pointers: dict[str, str | tuple[str, ...]],
    constants: dict[str, Any],
    budget: int,
    capability: int,
    odd: Collection[str] = ("batch",),
    stack: int = 0,
    **options: int,
) -> Any:
    """Compiles a kernel as a launch with arguments divisible by 16 would, checks what it uses, and returns it.

    Args:
        pointers: argument: its element type, or those of a tuple, or = and the type of a number; all others that are no
            constants are 32-bit integers.
        budget: registers per thread.
        odd: arguments that need not be divisible.
        stack: bytes that it may have there.
        options: num_warps and num_stages.
    """
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, attributes = {}, {}
    for index, name in enumerate(kernel.arg_names):
        kind = pointers.get(name, ())
        signature[name] = "constexpr" if name in constants else f"*{kind}" if name in pointers else "i32"
        if str(kind).startswith("="):
            signature[name] = kind[1:]
        elif isinstance(kind, tuple) and kind:
            signature[name] = tuple(f"*{entry}" for entry in kind)
        elif name not in constants and name not in odd:
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constexprs=constants, attrs=attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    assert_fits(compiled, budget, kernel.__name__, stack)
    return compiled


class Case(NamedTuple):
    """A kernel as it is compiled for several types of elements."""

    module: Any
    kernel: str
    tensors: Sequence[str]
    """Pointers to elements."""
    others: dict[str, str]
    """Pointers to something else; "sums": float64 for float64, else float32."""
    constants: dict[str, Any]
    elements: Sequence[str] = ("bf16", "fp16", "fp32", "fp64")


JOINS = {
    "bias": {"TERMS": 1, "BIASES": 1, "AFTER": 0, "KEEP_SUM": False},
    "residual": {"TERMS": 2, "BIASES": 2, "AFTER": 0, "KEEP_SUM": True},
    "pullback": {"TERMS": 2, "BIASES": 0, "AFTER": 2, "KEEP_SUM": False},
    "pullback of one sample's": {"TERMS": 2, "BIASES": 0, "AFTER": 2, "KEEP_SUM": False, "SHARED": True},
}
HEAD = {"CENTRE": 1.0, "BLOCK": head.BLOCK}
CHAIN = {"HIDDEN": 3, "SLOPE": 0.2, "BIASED": 7, "CENTRE": 1.0, "ROWS": mlp.ROWS, "d_0": 2, "d_4": 1}
LAYERS = [f"{kind}_{k}" for kind in "wb" for k in (1, 2, 3, 4)]


def batch_norms() -> Iterator[tuple[str, Case]]:
    """Name, case."""
    sums = dict.fromkeys(("partials", "mean", "rstd", "means"), "sums")
    parameters = dict.fromkeys(("weight", "bias", "running_mean", "running_var", "grad_weight", "grad_bias"), "sums")
    parameters |= dict.fromkeys(("eps", "more_eps", "momentum", "more_momentum"), "=fp32")
    common = {"WIDE": False, "RUNNING": True, "CUMULATIVE": True, "TOTALS": True}
    # In channels_last.
    common |= dict.fromkeys(("x_c", "dy_c", "total_c", "more_c"), 1)
    common |= {name: getattr(batch_norm_launches, name) for name in ("CHUNKS", "FEW")}
    width = batch_norm_launches.CHANNELS
    common |= {"WIDTH": width, "ROWS": batch_norm_launches.ENTRIES // width, "WEIGHTED": True, "BIASED": True}
    for kernel in ("statistics", "totals"):
        yield f"batch norm {kernel}", Case(batch_norm, kernel, (), sums | parameters, common)
    for more in (False, True):
        rows = batch_norm_launches.ENTRIES_OF_SUMS // width if more else common["ROWS"]
        constants = common | {"MORE": more, "ROWS": rows}
        case = Case(batch_norm, "moments", ("x", "more", "total"), sums, constants)
        yield f"batch norm moments{', of a sum' * more}", case
    for kernel, of_each in itertools.product(("normalise", "sums", "pull"), (False, True)):
        tensors, constants = ("x", "y", "dy", "dx"), common | {"BY_SAMPLE": of_each, "RELU": True}
        name = f"batch norm {kernel}, factors of {'each sample' if of_each else 'all samples'}"
        if kernel != "sums" or of_each:
            yield name, Case(batch_norm, kernel, tensors, sums | parameters, constants)


def cases() -> Iterator[tuple[str, Case]]:
    """Name, case."""
    for aligned, (variant, numbers) in itertools.product((True, False), JOINS.items()):
        constants = {"SHARED": False, **numbers, "SLOPE": 0.2, "WIDE": False, "WORDS": join.WORDS}
        constants |= {"ALIGNED": aligned, "CHANNELS_LAST": not constants["SHARED"]}
        tensors = ("term_1", "term_2", "after_1", "after_2", "bias_1", "bias_2", "out", "total")
        name = f"{variant}, {'aligned' if aligned else 'unaligned'}"
        yield f"join masked, {name}", Case(join, "masked", tensors, {"scale": "fp32", "bits": "i32"}, constants)
        if constants["BIASES"]:
            tensors = ("term_1", "term_2", "bias_1", "bias_2", "y", "total")
            yield f"join forward, {name}", Case(join, "forward", tensors, {"bits": "i32"}, constants)
    for kind, of_what in [*itertools.product(head.KINDS, ("entries", "squares")), ("gran", "two terms")]:
        squared = of_what == "squares"
        constants = HEAD | {"KIND": head.KINDS[kind], "COMPLEMENT": kind == "gn", "TAU": 1.2, "EPS": 0.1}
        others = {"partials": "sums"} | ({"g": "fp64"} if squared else {})
        constants |= {"SQUARED": squared, "TERMS": 1 + (of_what == "two terms")}
        case = Case(head, "normalize", ("f", "g", "more", "total", "f_hat"), others, constants)
        yield f"head normalize, {kind}, {of_what}", case
    tensors, others = ("upstream", "x", "g", "start", "grad_x"), {"partials": "sums", "scale": "sums"}
    yield "head pull", Case(head, "pull", tensors, others, HEAD | {"WANTS_START": True, "WANTS_GRAD_X": True})
    for width in (16, MAX_WIDTH):
        constants = CHAIN | dict.fromkeys(("d_1", "d_2", "d_3", "P"), width)
        others = {"partials": "fp32", "deltas": "fp32", "masks": "i8"}
        tensors = (*LAYERS, "w_out", "b_out", "x", "g", "f_hat")
        more = {"BIASED_OUT": True, "KEEP": True, "KIND": 0, "COMPLEMENT": True, "TAU": 1.0, "EPS": 0.1}
        case = Case(mlp, "forward", tensors, others, constants | more, ("bf16", "fp32"))
        yield f"mlp forward, {width} wide", case
        tensors, more = (*LAYERS, "x", "g", "grad_x", "upstream"), {"WANTS_GRAD_X": True, "WANTS_WEIGHTS": True}
        case = Case(mlp, "backward", tensors, others | {"grads": "fp32"}, constants | more, ("bf16", "fp32"))
        yield f"mlp backward, {width} wide", case


CASES = dict(itertools.chain(cases(), batch_norms()))


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize(("name", "element"), [(name, element) for name, c in CASES.items() for element in c.elements])
def test_kernel(name, element, capability):
    compile_case(name, element, capability)


def compile_case(name: str, element: str, capability: int) -> Any:
    """Compiles one of `CASES`, checks what it uses, and returns it."""
    module, kernel, tensors, others, constants, _ = CASES[name]
    sums = "fp64" if element == "fp64" else "fp32"
    pointers = {name: sums if kind == "sums" else kind for name, kind in others.items()}
    pointers = dict.fromkeys(tensors, element) | pointers
    kernel = getattr(module, f"_{module.__name__.split('.')[-2]}_{kernel}_kernel")
    constants = {"ACC": tl.float64 if element == "fp64" else tl.float32} | constants
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    budget = module.REGISTER_BUDGET if isinstance(module.REGISTER_BUDGET, int) else module.REGISTER_BUDGET[sums]
    # Triton before 3.9 leaves an address there, and nothing else.
    stack = 8 if name == "batch norm totals" else 0
    return assert_compiles(kernel, pointers, constants, budget, capability, stack=stack, num_warps=module.NUM_WARPS)


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("batch norm")])
def test_batch_norms_move_16_bytes_at_a_time(name):
    moved = re.findall(r"(?:ld|st)\.global\.(?:\w+::\w+\.)*(v4\.b32|\w+)", compile_case(name, "bf16", 90).asm["ptx"])
    # Sums of a program alone, a number for each channel, are written as they come.
    assert set(moved) <= {"v4.b32"} | ({"b32"} if name.split()[2].strip(",") not in ("normalise", "pull") else set())


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("up", [False, True])
@pytest.mark.parametrize(
    ("source", "result"), [("fp32", "bf16"), ("bf16", "fp32"), ("fp16", "fp16"), ("fp32", "fp32"), ("fp64", "fp64")]
)
def test_operands(source, result, up, capability):
    count, sums = operands.TENSORS, "fp64" if source == "fp64" else "fp32"
    pointers = {"sources": (source,) * count, "results": (result,) * count, "table": "i32"}
    constants = {"UP": up, "TENSORS": count, "FIELDS": 18, "ACC": {"fp64": tl.float64}.get(sums, tl.float32)}
    constants |= {"SPAN": operands.SPAN, "BLOCK": operands.BLOCK, "COPIED": operands.COPIED}
    options = {"num_warps": operands.NUM_WARPS}
    budget = operands.REGISTER_BUDGET[sums]
    assert_compiles(operands._operands_kernel, pointers, constants, budget, capability, **options)


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("element", ["bf16", "fp16", "fp32", "fp64"])
@pytest.mark.parametrize("kernel", [scaled_sums._scaled_sums_chunks_kernel, scaled_sums._scaled_sums_totals_kernel])
def test_scaled_sums(kernel, element, capability):
    count, sums = scaled_sums.TENSORS, "fp64" if element == "fp64" else "fp32"
    pointers = {"cotangents": (element,) * count, "totals": (sums,) * count, "table": "i32"}
    pointers |= {"scale": sums, "partials": sums}
    constants = {name: getattr(scaled_sums, name) for name in ("TENSORS", "CHUNK", "ROWS", "CHANNELS")}
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    constants["ACC"] = {"fp64": tl.float64}.get(sums, tl.float32)
    budget, options = scaled_sums.REGISTER_BUDGET[sums], {"num_warps": scaled_sums.NUM_WARPS}
    assert_compiles(kernel, pointers, constants, budget, capability, **options)


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("element", ["bf16", "fp16", "fp32", "fp64"])
@pytest.mark.parametrize("kinds", [("identity", "relu"), ("softplus", "square"), ("cos", "exp")], ids=str)
@pytest.mark.parametrize("kernel", [loss._loss_means_kernel, loss._loss_pull_kernel])
def test_loss(kernel, kinds, element, capability):
    sums = "fp64" if element == "fp64" else "fp32"
    pointers = dict.fromkeys(("first", "second", "means", "upstream", "grads"), element)
    terms = ((loss.KINDS[kind], -1.0, 1.0, 1.0) for kind in kinds)
    constants = dict(zip(("FIRST", "SECOND"), terms, strict=True))
    constants |= {"BLOCK": loss.BLOCK, "ACC": {"fp64": tl.float64}.get(sums, tl.float32)}
    odd, options = ("step", "first_count", "second_count"), {"num_warps": loss.NUM_WARPS}
    # sin and cos keep digits of 2/π on the stack, for very large numbers.
    stack = 48 if "cos" in kinds else 0
    assert_compiles(kernel, pointers, constants, loss.REGISTER_BUDGET[sums], capability, odd, stack, **options)


@pytest.mark.parametrize("bent", [True, False])
@pytest.mark.parametrize(("element", "capability"), [("bf16", 80), ("fp64", 90)])
@pytest.mark.parametrize("kind", curves.KINDS)
def test_curves(kind, element, capability, bent):
    pointers = dict.fromkeys(("h", "t", "factor", "addend", "out", "pushed"), element)
    constants = {
        "KIND": kind,
        "FIRST": 0.7,
        "SECOND": 1.1,
        "THIRD": 0.9,
        "BENT": bent,
        "ADDED": not bent,
        "PUSHED": bent,
        "WIDE": False,
    }
    sums = "fp64" if element == "fp64" else "fp32"
    constants |= {"BLOCK": curves.BLOCK, "ACC": {"fp64": tl.float64}.get(sums, tl.float32)}
    # As those of the loss.
    stack, options = 48 * (kind in ("sin", "cos")), {"num_warps": curves.NUM_WARPS}
    budget = curves.REGISTER_BUDGET[sums]
    compiled = assert_compiles(curves._curves_kernel, pointers, constants, budget, capability, (), stack, **options)
    moved = re.findall(r"(?:ld|st)\.global\.(?:\w+::\w+\.)*(v[24]\.b\d+|\w+)", compiled.asm["ptx"])
    # "nc": the digits.
    assert set(moved) - {"nc"} == {"v2.b64" if sums == "fp64" else "v4.b32"}


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("element", ["bf16", "fp32", "fp64"])
@pytest.mark.parametrize("kernel", ["latents", "uniform", "real"])
def test_draws(kernel, element, capability):
    kernel = getattr(draws, f"_draws_{kernel}_kernel")
    pointers = {**dict.fromkeys(("z", "real"), element), "out": "fp32", "source": "u8"}
    pointers |= dict.fromkeys(("step", "y", "labels"), "i64")
    constants = {"COLUMNS": 3, "LABELS": True, "FLIP": True, "CHANNELS": 3, "HEIGHT": 32, "WIDTH": 32}
    constants |= {
        "CHANNELS_LAST": element != "fp64",
        "BLOCK": draws.BLOCK,
        "PIXELS": draws.PIXELS,
        "SPAN": draws.PIXELS,
    }
    pointers, constants = (
        {name: value for name, value in given.items() if name in kernel.arg_names} for given in (pointers, constants)
    )
    # As those of the loss: digits of 2/π, for sines and cosines.
    budget, stack = draws.REGISTER_BUDGET["fp32"], 48 if "z" in pointers else 0
    assert_compiles(kernel, pointers, constants, budget, capability, draws.NUMBERS, stack, num_warps=draws.NUM_WARPS)


NOT_JOINED = {"TERMS": 0, "BIASES": 0, "SCALED": False, "AFTER": 0, "KEEP_SUM": False, "SIGNS": 0, "SLOPE": 0.2}
NOT_JOINED |= {"GRADIENT": False, "SQUARES": False, "CENTRE": 1.0, "WIDE": False}
CONVOLUTIONS = {
    "plain": {"BIASES": 1},
    "join forward": {"TERMS": 1, "BIASES": 2, "KEEP_SUM": True, "SIGNS": triton_kernel.PACK},
    "join pushforward": {"TERMS": 1, "BIASES": 2, "SCALED": True, "KEEP_SUM": True, "SIGNS": triton_kernel.MASK},
    "input gradient, join": {"GRADIENT": True, "TERMS": 1, "AFTER": 2, "SIGNS": triton_kernel.MASK},
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
    constants |= tiles.tile(configuration, dtype, channels[0], epilogue, aligned, precision)
    options = {name: constants.pop(name) for name in ("num_warps", "num_stages")}
    # The weight is in channels_last, too.
    constants["weight_n" if constants["GRADIENT"] else "weight_c"] = 1
    odd = ["batch", "in_height", "in_width", "out_height", "out_width", "padding_h", "padding_w"]
    odd += [name for name, number in zip(("in_channels", "out_channels"), channels, strict=True) if number % 16]
    names = ("source", "weight", "out", "term", "bias_1", "bias_2", "after_1", "after_2", "total")
    pointers = {**dict.fromkeys(names, element), "scale": "fp32", "bits": "i32", "sums": "fp64"}
    kernel, budget = triton_kernel.conv_kernel, triton_kernel.REGISTER_BUDGET
    compiled = assert_compiles(kernel, pointers, constants, budget, capability, odd, **options)
    assert compiled.metadata.shared <= SHARED_MEMORY[capability]
    return compiled.asm["ptx"]


def uses_tensor_cores(ptx: str) -> bool:
    return re.search(r"\b(wgmma\.mma_async|mma\.sync)\b", ptx) is not None


# Each configuration as a different convolution per element and GPU; all convolutions as the one with the largest tile.
DRAWN = [
    (configuration, list(CONVOLUTIONS)[(index + first) % 5], element, capability)
    for index, configuration in enumerate(tiles.CONFIGURATIONS)
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


TILES = {
    "in channels_last": {"LAST": True, "WIDTH": triton_channels.CHANNELS},
    "contiguous": {"LAST": False, "WIDTH": triton_channels.FEW},
    "wide": {"LAST": True, "WIDTH": triton_channels.CHANNELS, "WIDE": True},
}
SUMMED = {"batch": (256, 2, 1), "batch, fewer chunks": (128, 4, 1), "batch, few chunks": (16, 32, 1)}
SUMMED |= {"instances": (1, 256, 1), "groups of 8": (2, 32, 8), "groups of 16": (16, 2, 16), "one group": (1, 1, 256)}
NORMS = [(kernel, tile) for kernel in ("sums", "results") for tile in TILES]
NORMS += [("coefficients", tile) for tile in SUMMED]


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("element", ["fp32", "fp64"])
@pytest.mark.parametrize(("kernel", "tile"), NORMS)
def test_norms_of_channels(kernel, tile, element, capability):
    few = kernel == "coefficients"
    kernel = getattr(triton_channels, f"_norms_channels_{kernel}_kernel")
    constants = {"WEIGHTED": True, "ADJOINT": True, "CENTRED": True, "TOTALS": True, "WIDE": False}
    if few:
        constants |= dict(zip("KGP", SUMMED[tile], strict=True))
        odd = ("count", "chunks", "groups", "per_group")
    else:
        constants |= TILES[tile] | {"ROWS": triton_channels.ENTRIES // TILES[tile]["WIDTH"]}
        odd = ("chunks", "tiles", "sets", "groups", "per_group")
    # Numbers that are 1 are constants: as of batch and instance norm here.
    constants |= {} if "group" in tile or tile == "contiguous" else {"per_group": 1}
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    pointers = dict.fromkeys(("h", "tangent", "cotangent", "adjoint", "mean", "rstd", "weight"), element)
    pointers |= dict.fromkeys(("coeffs", "by_h", "by_weight", "by_bias"), element)
    pointers |= dict.fromkeys(("partials", "products"), "fp64")
    budget, options = triton_channels.REGISTER_BUDGET, {"num_warps": triton_channels.NUM_WARPS}
    # Of the small launch between the others, some compilers keep one number on the stack.
    compiled = assert_compiles(kernel, pointers, constants, budget, capability, odd, 8 * few, **options)
    if not few:
        # 16 bytes at a time, of each of the tensors of h's size.
        moved = re.findall(r"(?:ld|st)\.global\.(?:\w+::\w+\.)*(v\d\.b\d+)", compiled.asm["ptx"])
        vector, count = {"fp32": ("v4.b32", 1), "fp64": ("v2.b64", 2)}[element]
        assert moved.count(vector) >= count * (4 + ("by_h" in kernel.arg_names))
