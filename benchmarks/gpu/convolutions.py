"""Convolutions one by one: PyTorch's passes, and Triton's tiles."""

import itertools
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
    for x, weight, op, named in _convolutions_of(context, "bfloat16", "tf32"):
        ctx = plan_op.Context((weight, None), shapes=[x.shape], needs=(True, False))
        y, _ = op.forward(ctx, x)
        delta = torch.randn_like(y)
        ways = {
            "forward": partial(op.forward, ctx, x),
            "data gradient": partial(op.pullback, ctx, delta),
            "weight gradient": partial(op.param_grad, ctx, delta, x),
        }
        # cuDNN's search through algorithms for a kernel of 256×256 would take the section's time.
        if named["network"] == "ResNet 32":
            ways["second-order weight gradient"] = partial(second_order, op, x, weight, delta)
            named["weight_gradient_errors"] = weight_gradient_errors(op, x, weight, delta)
        times = {name: _timed(context, way) for name, way in ways.items()}
        flops = 2 * y.numel() * weight[0].numel()
        rates = {name: round(flops / t["median_us"] / 1e6, 3) for name, t in times.items()}
        yield named | {"GFLOP": round(flops / 1e9, 3), "times": times, "TFLOP/s": rates}


def second_order(op: Conv, x: Tensor, weight: Tensor, delta: Tensor) -> Tensor:
    """The weight gradient of a convolution as double backward computes it."""
    mask = (False, False, True)
    return aten._convolution_double_backward(x, None, None, delta, weight, x, *op.arguments, mask)[2]


@torch.no_grad()
def weight_gradient_errors(op: Conv, x: Tensor, weight: Tensor, delta: Tensor) -> dict[str, float]:
    """How far each weight gradient of a convolution is from the one in float64, relatively; delta is a cotangent.

    PyTorch's of second order loses all digits in bfloat16 on some CPUs, which is not the fault of what is compared
    with it.
    """
    wide = (t.double() for t in (delta, x, weight))
    truth = aten.convolution_backward(*wide, None, *op.arguments, (False, True, False))[1]
    ours = op.param_grad(plan_op.Context((weight, None), needs=(True, False)), delta, x)[0]
    theirs = second_order(op, x, weight, delta)
    return {"gnfast": relative_error(ours, truth), "PyTorch, second order": relative_error(theirs, truth)}


def tiles(context: Context) -> Iterator[Row]:
    """Forward and data gradient of each convolution by PyTorch and by the Triton kernels, bfloat16, checked first."""
    for x, weight, op, named in _convolutions_of(context, "bfloat16"):
        y = conv2d(x, weight, None, op.arguments)
        delta = torch.randn_like(y)
        # Triton's data gradient takes the input's shape alone.
        for name, result, pytorch, operands, of_triton in (
            ("forward", y, conv2d, (x, weight, None), (x, weight, None)),
            ("data gradient", x, conv2d_input_grad, (delta, x, weight), (delta, x.shape, weight)),
        ):
            plain = partial(pytorch, *operands, op.arguments)
            times, errors = {"PyTorch": _timed(context, plain)["median_us"]}, {}
            for tile, call in _triton_ways(context, result, pytorch.__name__, (*of_triton, op.arguments)):
                errors[tile] = relative_error(call(), plain())
                times[tile] = _timed(context, call)["median_us"]
            yield named | {
                "pass": name,
                "median_us": times,
                "differs_by": errors,
                "best_over_pytorch": round(min(times.values()) / times["PyTorch"], 3),
            }


def _triton_ways(
    context: Context, result: Tensor, name: str, arguments: tuple[Any, ...]
) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """The call with each configuration that promises something for that result; none where there is no GPU."""
    if context.device != "cuda":
        return
    from gnfast.kernels.conv import triton as conv_triton

    for tile in conv_triton.promising(result.numel() // result.shape[1], result.shape[1]):
        yield tile, partial(getattr(conv_triton, name), *arguments, tile)


def _timed(context: Context, call: Callable[[], object]) -> dict[str, float]:
    return device_us(call, context.device, budget_s=context.budget(0.03))


def _convolutions_of(context: Context, *precisions: str) -> Iterator[tuple[Tensor, Tensor, Conv, Row]]:
    """Input and weight of each convolution of the critics, the op, and what names it in a row.

    Each comes once, as stated or as rewritten, in each precision; what the caller does with it runs in that.
    """
    device = torch.device(context.device)
    batches = {"ResNet 32": 2} if context.quick else {"ResNet 32": 128, "ResNet 256": 32}
    for name, batch in batches.items():
        network = shipped(name, width=0.05 if context.quick else 1.0)
        net = network.critic(torch.float32, torch.contiguous_format)
        image = network.images(1, torch.float32, torch.contiguous_format)
        nodes = [node for rewrite in (True, False) for node in gnfast.trace(net, image, rewrite=rewrite).nodes]
        nodes = [node for node in nodes if isinstance(node.op, Conv)]
        found = dict.fromkeys((node.op, node.input_shapes[0], node.operand_shapes[0]) for node in nodes)
        for (op, shape, weight_shape), precision in itertools.product(found, precisions):
            dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
            x, weight = (
                torch.randn(size, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
                for size in ((batch, *shape), weight_shape)
            )
            named = {"network": name, "precision": precision, "stride": op.stride[0]}
            named |= {"input": list(x.shape), "weight": list(weight.shape)}
            with tuned(precision).active(device), torch.autocast(device.type, enabled=False), torch.no_grad():
                yield x, weight, op, named
