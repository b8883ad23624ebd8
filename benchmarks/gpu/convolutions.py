"""Convolutions one by one: PyTorch's passes, Triton's tiles, and what the tuner makes of both."""

import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from benchmarks.gpu.section import Context, Row


def convolutions(context: Context) -> Iterator[Row]:
    """Forward, data gradient and weight gradient of each convolution of two critics, and PyTorch's second-order one.

    The last is how double backward computes ∂⟨δ, W ∗ t⟩/∂W: a convolution whose kernel is a whole feature map. The
    same number by `convolution_backward` is `weight gradient`.
    """
    import torch

    from gnfast.bench.clock import device_us
    from gnfast.bench.convolutions import weight_gradient_errors
    from gnfast.bench.mode import tuned
    from gnfast.plan.op import Context

    device = torch.device(context.device)
    for network, shape, weight_shape, op in _convolutions_of(context):
        for precision in ("bfloat16", "tf32"):
            batch = 2 if context.quick else 128 if network == "ResNet 32" else 32
            dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
            fresh = partial(torch.randn, device=device, dtype=dtype)
            x = fresh(batch, *shape).contiguous(memory_format=torch.channels_last)
            weight = fresh(*weight_shape).contiguous(memory_format=torch.channels_last)
            with tuned(precision).active(device), torch.autocast(device.type, enabled=False), torch.no_grad():
                ctx = Context((weight, None), shapes=[x.shape], needs=(True, False))
                y, _ = op.forward(ctx, x)
                delta = torch.randn_like(y)
                ways = {
                    "forward": partial(op.forward, ctx, x),
                    "data gradient": partial(op.pullback, ctx, delta),
                    "weight gradient": partial(op.param_grad, ctx, delta, x),
                }
                times = {name: device_us(way, device, budget_s=context.budget(0.03)) for name, way in ways.items()}
                row: Row = {
                    "network": network,
                    "input": [batch, *shape],
                    "weight": list(weight_shape),
                    "stride": op.stride[0],
                    "precision": precision,
                }
                # cuDNN's search through algorithms for a kernel of 256×256 would take the section's time.
                if network == "ResNet 32":
                    second = partial(
                        torch.ops.aten._convolution_double_backward,
                        *(x, None, None, delta, weight, x),
                        *(*op.arguments(), (False, False, True)),
                    )
                    times["second-order weight gradient"] = device_us(second, device, budget_s=context.budget(0.03))
                    row["weight_gradient_errors"] = weight_gradient_errors(op, x, weight, delta)
            flops = 2 * y.numel() * weight[0].numel()
            rates = {name: round(flops / t["median_us"] / 1e6, 3) for name, t in times.items()}
            yield row | {"GFLOP": round(flops / 1e9, 3), "times": times, "TFLOP/s": rates}


def tiles(context: Context) -> Iterator[Row]:
    """Forward and data gradient of each convolution by PyTorch and by the Triton kernels, bfloat16, checked first."""
    import torch

    from gnfast.bench.agree import relative_error
    from gnfast.bench.clock import device_us
    from gnfast.bench.mode import tuned
    from gnfast.kernels.conv import conv2d, conv2d_input_grad

    device = torch.device(context.device)
    for network, shape, weight_shape, op in _convolutions_of(context):
        batch = 2 if context.quick else 128 if network == "ResNet 32" else 32
        fresh = partial(torch.randn, device=device, dtype=torch.bfloat16)
        x = fresh(batch, *shape).contiguous(memory_format=torch.channels_last)
        weight = fresh(*weight_shape).contiguous(memory_format=torch.channels_last)
        with tuned("bfloat16").active(device), torch.autocast(device.type, enabled=False), torch.no_grad():
            y = conv2d(x, weight, None, op.arguments())
            delta = torch.randn_like(y)
            for name, result, pytorch, triton in (
                (
                    "forward",
                    y,
                    partial(conv2d, x, weight, None, op.arguments()),
                    lambda kernels, tile, x=x, w=weight, op=op: kernels.conv2d(x, w, None, op.arguments(), tile),
                ),
                (
                    "data gradient",
                    x,
                    partial(conv2d_input_grad, delta, x, weight, op.arguments()),
                    lambda kernels, tile, d=delta, x=x, w=weight, op=op: kernels.conv2d_input_grad(
                        d, x.shape, w, op.arguments(), tile
                    ),
                ),
            ):
                times = {"PyTorch": device_us(pytorch, device, budget_s=context.budget(0.03))["median_us"]}
                errors = {}
                for tile, call in _triton_ways(context, result, triton):
                    errors[tile] = relative_error(call(), pytorch())
                    times[tile] = device_us(call, device, budget_s=context.budget(0.03))["median_us"]
                yield {
                    "network": network,
                    "pass": name,
                    "input": [batch, *shape],
                    "weight": list(weight_shape),
                    "stride": op.stride[0],
                    "median_us": times,
                    "differs_by": errors,
                    "best_over_pytorch": round(min(times.values()) / times["PyTorch"], 3),
                }


def _triton_ways(context: Context, result: Any, call: Callable[..., Any]) -> Iterator[tuple[str, Callable[[], Any]]]:
    """The call with each configuration that promises something for that result; none where there is no GPU."""
    if context.device != "cuda":
        return
    from gnfast.kernels.conv import triton as conv_triton

    for tile in conv_triton.promising(result.numel() // result.shape[1], result.shape[1]):
        yield tile, partial(call, conv_triton, tile)


def tuner(context: Context) -> Iterator[Row]:
    """The critic's step as it is and with what the tuner has chosen, compared first, and the choices."""
    import os
    import tempfile
    from pathlib import Path

    import torch

    from gnfast.bench.agree import relative_error
    from gnfast.bench.clock import interleaved_ms
    from gnfast.bench.graph import captured
    from gnfast.bench.mode import tuned
    from gnfast.bench.networks import shipped
    from gnfast.engine.functional import normalize_gradient

    device, batch = torch.device(context.device), 2 if context.quick else 128
    layout = torch.channels_last
    for name in ("CNN 32", "ResNet 32"):
        network = shipped(name, width=0.05 if context.quick else 1.0)
        net = network.critic(torch.bfloat16, layout).to(device)
        x = network.images(batch, torch.bfloat16, layout).to(device)

        def step(net=net, x=x):
            net.zero_grad(set_to_none=True)
            f_hat = normalize_gradient(net, x, strict=True)
            f_hat.float().square().sum().backward()
            return f_hat

        with tuned("bfloat16").active(device), tempfile.TemporaryDirectory() as folder:
            plain = captured(step, device)
            expected = plain().clone()
            os.environ.update(GNFAST_AUTOTUNE="1", GNFAST_CACHE=folder)
            try:
                started = time.monotonic()
                chosen = captured(step, device)
                seconds = time.monotonic() - started
            finally:
                del os.environ["GNFAST_AUTOTUNE"], os.environ["GNFAST_CACHE"]
            files = Path(folder).glob("*.json")
            choices = {key: value for file in files for key, value in json.loads(file.read_text()).items()}
            error = relative_error(chosen(), expected)
            times = interleaved_ms({"default": plain, "tuned": chosen}, rounds=1 if context.quick else 15)
        yield {
            "network": name,
            "batch": batch,
            "precision": "bfloat16",
            "times": times,
            "tuned_over_default": round(times["tuned"]["median_ms"] / times["default"]["median_ms"], 3),
            "differs_by": error,
            "seconds_of_tuning": round(seconds, 1),
            "choices": choices,
        }


def _convolutions_of(context: Context) -> Iterator[tuple[str, tuple[int, ...], tuple[int, ...], Any]]:
    """Each convolution of the critics once, as stated and as rewritten: network, input, weight, the op."""
    import torch

    import gnfast
    from gnfast.bench.networks import shipped
    from gnfast.plan.ops.conv import Conv

    for name in ("ResNet 32",) if context.quick else ("ResNet 32", "ResNet 256"):
        try:
            network = shipped(name, width=0.05 if context.quick else 1.0)
        except ValueError:
            continue
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
