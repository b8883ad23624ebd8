"""The sections of `run_gpu.py`, and the process that runs them.

A section is a function from a `Context` to its rows, one after the other; add it to `SECTIONS` with a time limit. What
a row claims was checked before it was timed, and every ratio is to a baseline measured in the same run.
"""

import contextlib
import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

MARK, GIVEN_UP = "@message ", 3
"""How a message begins, and the exit status of a process whose device does not answer after an error."""

Row = dict[str, Any]


@dataclass
class Context:
    """What every section is told.

    Attributes:
        device: "cuda", or "cpu" in a dry run.
        quick: tiny sizes.
        ceilings: by precision, what `ceilings` measured.
    """

    device: str
    quick: bool
    ceilings: dict[str, dict[str, float]] = field(default_factory=dict)

    def bytes_per_s(self) -> float:
        """The measured rate of copies."""
        return next(iter(self.ceilings.values()))["bytes_per_s"]


def ceilings(context: Context) -> Iterator[Row]:
    """What this device reaches at its best: an 8192³ product or a 3×3 convolution, and a copy of 1 GiB."""
    import torch

    from gnfast.bench import ceilings as measured
    from gnfast.bench.mode import PRECISIONS, tuned

    device = torch.device(context.device)
    copy = measured.copy_rate(device, context.quick)
    yield {"name": "copy", "GB/s": round(copy / 1e9, 1)}
    for precision in reversed(PRECISIONS):
        mode = tuned(precision)
        with mode.active(device):
            rates = {
                "product": measured.product_rate(device, mode, context.quick),
                "convolution": measured.convolution_rate(device, mode, context.quick),
            }
        context.ceilings[precision] = {"flop_per_s": max(rates.values()), "bytes_per_s": copy}
        for name, rate in rates.items():
            yield {"name": name, "precision": precision, "TFLOP/s": round(rate / 1e12, 2)}


def compare(
    context: Context, cases: list[str], network: str, batch: int, precision: str, compiled: bool = False
) -> Iterator[Row]:
    """Cases of `gnfast.bench`: gnfast's step against baselines a to e, checked, with the fraction of the floor."""
    import torch

    from gnfast.bench.cases import CASES, Setup
    from gnfast.bench.ceilings import Ceilings
    from gnfast.bench.networks import shipped
    from gnfast.bench.run import free, measure

    try:
        chosen = shipped(network, width=0.05 if context.quick else 1.0)
    except ValueError as error:
        yield {"network": network, "left_out": str(error)}
        return
    device = torch.device(context.device)
    if context.quick:
        # Through many layers of few channels, nothing of a gradient is left in bfloat16.
        batch, precision = 2, precision if max(chosen.shape) < 128 else "float32"
    setup = Setup(device, precision, batch, graphs=True, compiled=compiled and not context.quick)
    for name in cases:
        for case in CASES[name](chosen, setup):
            rounds, warmup = (1, 0) if context.quick else (15, 2)
            rows, notes = measure(case, rounds, Ceilings(**context.ceilings[precision]), warmup)
            yield from rows
            for note in notes:
                yield {"network": network, "step": case.step, "note": note}
            free()


def convolutions(context: Context) -> Iterator[Row]:
    """Forward, data gradient and weight gradient of each convolution of two critics, and PyTorch's second-order one.

    The last is how double backward computes ∂⟨δ, W ∗ t⟩/∂W: a convolution whose kernel is a whole feature map. The
    same number by `convolution_backward` is `weight gradient`.
    """
    import torch

    from gnfast.bench.agree import relative_error
    from gnfast.bench.clock import device_us
    from gnfast.bench.mode import tuned

    aten = torch.ops.aten
    device = torch.device(context.device)
    for network, shape, weight_shape, op in _convolutions_of(context):
        for precision in ("bfloat16", "tf32"):
            batch = 2 if context.quick else 128 if network == "ResNet 32" else 32
            mode = tuned(precision)
            dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
            fresh = partial(torch.randn, device=device, dtype=dtype)
            x = fresh(batch, *shape).contiguous(memory_format=torch.channels_last)
            weight = fresh(*weight_shape).contiguous(memory_format=torch.channels_last)
            with mode.active(device), torch.autocast(device.type, enabled=False), torch.no_grad():
                y, _ = op.forward([x], (weight, None), False)
                delta = torch.randn_like(y)
                second = partial(
                    aten._convolution_double_backward,
                    *(x, None, None, delta, weight, x),
                    *(*op.arguments(), (False, False, True)),
                )
                first = partial(op.param_grad, delta, [x], (weight, None), None, None, (True, False))
                error = relative_error(second()[2], first()[0])
                ways = {
                    "forward": lambda x=x, weight=weight, op=op: op.forward([x], (weight, None), False),
                    "data gradient": lambda d=delta, weight=weight, op=op, x=x: op.pullback(
                        d, (weight, None), None, [x.shape], False
                    ),
                    "weight gradient": first,
                    "second-order weight gradient": second,
                }
                flops = 2 * y.numel() * weight[0].numel()
                times = {name: device_us(way, device, budget_s=0.03) for name, way in ways.items()}
            yield {
                "network": network,
                "input": [batch, *shape],
                "weight": list(weight_shape),
                "stride": op.stride[0],
                "precision": precision,
                "GFLOP": round(flops / 1e9, 3),
                "times": times,
                "TFLOP/s": {name: round(flops / t["median_us"] / 1e6, 3) for name, t in times.items()},
                "second_order_over_real": round(
                    times["second-order weight gradient"]["median_us"] / times["weight gradient"]["median_us"], 2
                ),
                "second_order_differs_by": error,
            }


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
                times = {"PyTorch": device_us(pytorch, device, budget_s=0.03)["median_us"]}
                errors = {}
                for tile, call in _triton_ways(context, result, triton):
                    errors[tile] = relative_error(call(), pytorch())
                    times[tile] = device_us(call, device, budget_s=0.03)["median_us"]
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
    from gnfast.kernels import conv_triton

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
    from gnfast.function import normalize_gradient

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


def sign_bits(context: Context) -> Iterator[Row]:
    """leaky_relu_pack and leaky_relu_mask against the PyTorch operations that they replace."""
    import torch

    shapes = [(2, 3, 4, 4)] if context.quick else [(64, 512, 4, 4), (64, 128, 32, 32), (256, 128, 64, 64)]
    for shape in shapes:
        for dtype in (torch.float32, torch.bfloat16):
            yield from _sign_bit_rows(context, shape, dtype)


def _sign_bit_rows(context: Context, shape: tuple[int, ...], dtype: Any) -> Iterator[Row]:
    import torch

    from gnfast.bench.clock import device_us
    from gnfast.kernels import leaky_relu_mask, leaky_relu_pack

    x, t = (torch.randn(shape, device=context.device).to(dtype) for _ in range(2))
    y, bits = leaky_relu_pack(x)
    threshold_backward = torch.ops.aten.threshold_backward
    assert torch.equal(y, torch.relu(x)), "leaky_relu_pack differs from torch.relu"
    assert torch.equal(leaky_relu_mask(t, bits), threshold_backward(t, x, 0)), "leaky_relu_mask: wrong cotangent"

    in_place = x.clone()
    num_bytes = 2 * x.nbytes + bits.nbytes
    floor_us = num_bytes / context.bytes_per_s() * 1e6
    rows = {
        ("pack", "relu"): (lambda: leaky_relu_pack(x), lambda: torch.relu(x)),
        ("pack_", "relu_"): (lambda: leaky_relu_pack(in_place, inplace=True), lambda: torch.relu_(in_place)),
        ("mask", "threshold_backward"): (lambda: leaky_relu_mask(t, bits), lambda: threshold_backward(t, x, 0)),
        ("mask_", "t * (x > 0)"): (lambda: leaky_relu_mask(in_place, bits, inplace=True), lambda: t * (x > 0)),
    }
    for (name, baseline), (ours, theirs) in rows.items():
        times, base = (device_us(function, context.device, budget_s=0.1) for function in (ours, theirs))
        yield {
            "name": name,
            "shape": list(shape),
            "dtype": str(dtype).removeprefix("torch."),
            "bytes": num_bytes,
            **times,
            "baseline": baseline,
            "baseline_median_us": base["median_us"],
            "ratio_to_baseline": round(times["median_us"] / base["median_us"], 3),
            "fraction_of_bandwidth_floor": round(floor_us / times["median_us"], 3),
        }


def spectral(context: Context) -> Iterator[Row]:
    """Spectral normalisation of all layers of a model against PyTorch's parametrization.

    Both run as CUDA graphs, so that the device's time is measured and not the host's, and eagerly. The floor is the
    time to copy the bytes that must move at least: W in and W̄ out; for the backward G and W in and the gradient out.
    """
    import torch

    layouts = [(torch.float32, torch.contiguous_format)]
    if not context.quick:
        layouts += [(torch.float32, torch.channels_last), (torch.bfloat16, torch.contiguous_format)]
    for network in ("ladder 8-16",) if context.quick else ("SN-GAN CNN", "ladder 64-1024"):
        for dtype, layout in layouts:
            row = {"network": network, "dtype": str(dtype), "layout": str(layout)}
            yield row | _spectral_row(context, network, layout, dtype)


def _spectral_row(context: Context, network: str, layout: Any, dtype: Any) -> Row:
    import torch
    from bench_spectral import NETWORKS, check

    from gnfast.bench import spectral
    from gnfast.bench.clock import device_us
    from gnfast.bench.graph import captured

    device = torch.device(context.device)
    torch.manual_seed(0)
    layers = NETWORKS[network]() if network in NETWORKS else [torch.nn.Conv2d(8, 16, 3)]
    ways = spectral.make(layers, layout, dtype, device)
    directions = spectral.directions_for(ways[spectral.PYTORCH])
    if dtype == torch.float32:  # PyTorch's own σ is as rough as bfloat16; the tests bound that error.
        check(ways, directions)
    weight_bytes = sum(direction.nbytes for direction in directions)
    row: Row = {"weight_bytes": weight_bytes}
    for part, function, weights_moved in (
        ("forward", lambda net: net(), 2),
        ("forward and backward", lambda net: spectral.step(net, directions), 5),
    ):
        eager = {way: device_us(partial(function, net), device, budget_s=0.1) for way, net in ways.items()}
        graphs = {way: captured(partial(function, net), device) for way, net in ways.items()}
        times = {way: device_us(graph, device, budget_s=0.1) for way, graph in graphs.items()}
        baseline, ours = times[spectral.PYTORCH]["median_us"], times[spectral.MODEL]["median_us"]
        floor_us = weights_moved * weight_bytes / context.bytes_per_s() * 1e6
        row[part] = {
            "times": times,
            "eager_times": eager,
            "ratio_to_pytorch": round(ours / baseline, 3),
            "fraction_of_bandwidth_floor": round(floor_us / ours, 3),
        }
    return row


def launches(context: Context) -> Iterator[Row]:
    """The price of a kernel that does nothing worth mentioning: launched from Python, and as a node of a CUDA graph.

    And of a `CapturedStep` of two such kernels, by the host's clock: what a step takes of Python's time.
    """
    import torch

    import gnfast
    from gnfast.bench.clock import device_us
    from gnfast.bench.graph import captured

    x, count = torch.zeros(32, device=context.device), 10 if context.quick else 1000

    def additions() -> None:
        for _ in range(count):
            x.add_(1)

    for name, function in (("eager", additions), ("graph", captured(additions, torch.device(context.device)))):
        times = device_us(function, context.device, budget_s=0.1)
        yield {"name": name, "launches": count, "us_per_launch": round(times["median_us"] / count, 3), **times}

    for inputs in (2, 12):
        tensors = [torch.zeros(32, device=context.device) for _ in range(inputs)]
        step = gnfast.CapturedStep(lambda given: {"loss": given[0].sum(), "score": given[1].sum()}, context.device)
        for _ in range(step.warmup + 1):
            step(tensors)
        times = device_us(partial(step, tensors), "cpu", budget_s=0.1)
        yield {"name": "CapturedStep, time of the host", "inputs": inputs, **times}


_32 = partial(compare, network="ResNet 32", batch=128, precision="bfloat16")
_256 = partial(compare, network="ResNet 256", batch=32, precision="bfloat16")

SECTIONS: dict[str, tuple[Callable[[Context], Iterator[Row]], float]] = {
    "ceilings": (ceilings, 20),
    "critic_32": (partial(_32, cases=["critic"]), 35),
    "critic_256": (partial(_256, cases=["critic"]), 45),
    "iteration": (partial(_32, cases=["iteration"], batch=64), 40),
    "convolutions": (convolutions, 35),
    "generator": (partial(_32, cases=["generator"]), 20),
    "generator_256": (partial(_256, cases=["generator"]), 30),
    "launches": (launches, 10),
    "spectral": (spectral, 30),
    "sign_bits": (sign_bits, 15),
    "critic_cnn": (partial(_32, cases=["critic"], network="CNN 32"), 20),
    "critic_tf32": (partial(_32, cases=["critic", "generator"], precision="tf32"), 30),
    "others": (partial(_32, cases=["penalties", "sampling"]), 30),
    "tiles": (tiles, 60),
    "compiled": (partial(_32, cases=["critic"], compiled=True), 120),
    "tuner": (tuner, 150),
}
"""name: (what it measures, seconds that it may take); the most valuable first."""


def work(job: dict[str, Any]) -> int:
    """Runs the job's sections in order, telling rows as they come; ends early where the device no longer answers."""
    import torch

    from gnfast.bench.environment import environment

    end = time.monotonic() + job["seconds_left"]
    context = Context(job["device"], job["quick"], dict(job["ceilings"]))
    if context.quick:
        torch.set_num_threads(1)
    try:
        tell("results", values={"environment": environment(context.device)})
    except Exception:
        tell("results", values={"environment": {"error": traceback.format_exc()}})
    for name in job["sections"]:
        section, limit = SECTIONS[name]
        if time.monotonic() > end:
            return 0
        started = time.monotonic()
        tell("start", section=name, limit_s=limit)
        values: dict[str, Any] = {}
        try:
            for row in section(context):
                tell("row", row=row)
                if time.monotonic() - started > limit:
                    values["cut_short"] = f"after {limit:.0f} s"
                    break
        except Exception:
            values["error"] = traceback.format_exc()
        if name == "ceilings" and context.ceilings:
            tell("results", values={"ceilings": context.ceilings})
        tell("end", values={**values, "seconds": round(time.monotonic() - started, 1)})
        with contextlib.suppress(ImportError):
            from gnfast.bench.run import free

            free()
        if "error" in values and context.device == "cuda":
            try:
                torch.cuda.synchronize()
            except RuntimeError:
                # An error of the device stays with its process.
                return GIVEN_UP
    return 0


def tell(kind: str, **message: Any) -> None:
    """One message to `run_gpu.py`."""
    print(MARK + json.dumps({"kind": kind, **message}), flush=True)


if __name__ == "__main__":
    sys.exit(work(json.loads(sys.argv[1])))
