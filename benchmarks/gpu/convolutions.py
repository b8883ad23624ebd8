"""Convolutions one by one: PyTorch's passes, and Triton's tiles."""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

import gnfast
from benchmarks.gpu.section import Context, Row
from gnfast.bench.clock import device_us
from gnfast.bench.critics import shipped
from gnfast.bench.gate import relative_error
from gnfast.bench.mode import tuned
from gnfast.kernels.conv import conv2d, conv2d_input_grad
from gnfast.plan import op as plan_op
from gnfast.plan.ops.conv import Conv

aten = torch.ops.aten


def convolutions(context: Context) -> Iterator[Row]:
    """Forward, data gradient and weight gradient of each convolution of two critics, and PyTorch's second-order one.

    The last is how double backward computes ∂⟨δ, W ∗ t⟩/∂W: a convolution whose kernel is a whole feature map. The
    same number by `convolution_backward` is `weight gradient`.
    """
    for network, *case in _convolutions_of(context):
        for precision in ("bfloat16", "tf32"):
            with _operands(context, network, *case, precision) as (x, weight, op, named):
                ctx = plan_op.Context((weight, None), shapes=[x.shape], needs=(True, False))
                y, _ = op.forward(ctx, x)
                delta = torch.randn_like(y)
                ways = {
                    "forward": partial(op.forward, ctx, x),
                    "data gradient": partial(op.pullback, ctx, delta),
                    "weight gradient": partial(op.param_grad, ctx, delta, x),
                }
                row = named | {"precision": precision}
                # cuDNN's search through algorithms for a kernel of 256×256 would take the section's time.
                if network == "ResNet 32":
                    ways["second-order weight gradient"] = partial(second_order, op, x, weight, delta)
                    row["weight_gradient_errors"] = weight_gradient_errors(op, x, weight, delta)
                times = {name: _timed(context, way) for name, way in ways.items()}
            flops = 2 * y.numel() * weight[0].numel()
            rates = {name: round(flops / t["median_us"] / 1e6, 3) for name, t in times.items()}
            yield row | {"GFLOP": round(flops / 1e9, 3), "times": times, "TFLOP/s": rates}


def second_order(op: Conv, x: Tensor, weight: Tensor, delta: Tensor) -> Tensor:
    """The weight gradient of a convolution as double backward computes it."""
    mask = (False, False, True)
    return aten._convolution_double_backward(x, None, None, delta, weight, x, *op.arguments(), mask)[2]


@torch.no_grad()
def weight_gradient_errors(op: Conv, x: Tensor, weight: Tensor, delta: Tensor) -> dict[str, float]:
    """How far each weight gradient of a convolution is from the one in float64, relatively.

    PyTorch's of second order loses all digits in bfloat16 on some CPUs, which is not the fault of what is compared
    with it.

    Args:
        op: the convolution.
        x: (B, C_in, H, W), the input, or the tangent at it.
        weight: (C_out, C_in / groups, k, l).
        delta: (B, C_out, H', W'), the cotangent of the output.

    Returns:
        by "gnfast" and "PyTorch, second order".
    """
    wide = (t.double() for t in (delta, x, weight))
    truth = aten.convolution_backward(*wide, None, *op.arguments(), (False, True, False))[1]
    ours = op.param_grad(plan_op.Context((weight, None), needs=(True, False)), delta, x)[0]
    theirs = second_order(op, x, weight, delta)
    return {"gnfast": relative_error(ours, truth), "PyTorch, second order": relative_error(theirs, truth)}


def tiles(context: Context) -> Iterator[Row]:
    """Forward and data gradient of each convolution by PyTorch and by the Triton kernels, bfloat16, checked first."""
    for network, *case in _convolutions_of(context):
        with _operands(context, network, *case, "bfloat16") as (x, weight, op, named):
            arguments = op.arguments()
            y = conv2d(x, weight, None, arguments)
            delta = torch.randn_like(y)
            for name, result, pytorch, by_triton, operands in (
                ("forward", y, conv2d, "conv2d", (x, weight, None)),
                ("data gradient", x, conv2d_input_grad, "conv2d_input_grad", (delta, x, weight)),
            ):
                plain = partial(pytorch, *operands, arguments)
                times, errors = {"PyTorch": _timed(context, plain)["median_us"]}, {}
                # Triton's data gradient takes the input's shape alone.
                given = [operands[0], x.shape, weight] if result is x else [*operands]
                for tile, call in _triton_ways(context, result, by_triton, [*given, arguments]):
                    errors[tile] = relative_error(call(), plain())
                    times[tile] = _timed(context, call)["median_us"]
                yield (
                    {"network": network, "pass": name}
                    | named
                    | {
                        "median_us": times,
                        "differs_by": errors,
                        "best_over_pytorch": round(min(times.values()) / times["PyTorch"], 3),
                    }
                )


def _triton_ways(
    context: Context, result: Tensor, name: str, arguments: list[Any]
) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """The call with each configuration that promises something for that result; none where there is no GPU."""
    if context.device != "cuda":
        return
    from gnfast.kernels.conv import triton as conv_triton

    for tile in conv_triton.promising(result.numel() // result.shape[1], result.shape[1]):
        yield tile, partial(getattr(conv_triton, name), *arguments, tile)


def _timed(context: Context, call: Callable[[], object]) -> dict[str, float]:
    return device_us(call, context.device, budget_s=context.budget(0.03))


@contextlib.contextmanager
def _operands(
    context: Context, network: str, shape: tuple[int, ...], weight_shape: tuple[int, ...], op: Conv, precision: str
) -> Iterator[tuple[Tensor, Tensor, Conv, Row]]:
    """Input and weight of a convolution, the op, and what names it in a row; what follows runs in the precision."""
    device = torch.device(context.device)
    batch = 2 if context.quick else 128 if network == "ResNet 32" else 32
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    x, weight = (
        torch.randn(size, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
        for size in ((batch, *shape), weight_shape)
    )
    named = {"network": network, "input": [batch, *shape], "weight": list(weight_shape), "stride": op.stride[0]}
    with tuned(precision).active(device), torch.autocast(device.type, enabled=False), torch.no_grad():
        yield x, weight, op, named


def _convolutions_of(context: Context) -> Iterator[tuple[str, tuple[int, ...], tuple[int, ...], Conv]]:
    """Each convolution of the critics once, as stated and as rewritten: network, input, weight, the op."""
    for name in ("ResNet 32",) if context.quick else ("ResNet 32", "ResNet 256"):
        network = shipped(name, width=0.05 if context.quick else 1.0)
        net = network.critic(torch.float32, torch.contiguous_format)
        x = network.images(1, torch.float32, torch.contiguous_format)
        seen = set()
        for rewrite in (True, False):
            for node in gnfast.trace(net, x, rewrite=rewrite).nodes:
                if not isinstance(node.op, Conv):
                    continue
                key = (node.input_shapes[0], node.operand_shapes[0], node.op)
                if key not in seen:
                    seen.add(key)
                    yield name, *key
