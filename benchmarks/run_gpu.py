"""Measures gnfast on the present GPU and writes one JSON file: `make gpu OUT=dir`.

Each section is a function that returns rows; add one to `SECTIONS`. A section that fails is recorded with its traceback
and costs only itself, the file is rewritten after each one, and the exit status is 1 if any failed. Every row is
checked against its baseline before it is timed, and carries the ratio to a baseline measured in the same run.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

Row = dict[str, Any]


def time_us(function: Callable[[], object], budget_s: float = 0.3) -> dict[str, float]:
    """Median and quartiles of the device time of one call, in microseconds.

    The calls of one sample are issued back to back, enough of them that the launch of the first does not count; L2 is
    left warm, so a tensor that fits it is served from there.
    """
    for _ in range(3):
        function()
    torch.cuda.synchronize()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

    def sample(calls: int) -> float:
        start.record()
        for _ in range(calls):
            function()
        end.record()
        end.synchronize()
        return 1e3 * start.elapsed_time(end) / calls

    calls = max(1, min(1000, int(5e3 / max(sample(5), 0.1))))
    samples = []
    deadline = time.perf_counter() + budget_s
    while len(samples) < 7 or (time.perf_counter() < deadline and len(samples) < 50):
        samples.append(sample(calls))
    low, median, high = statistics.quantiles(samples, n=4)
    return {"median_us": round(median, 3), "q25_us": round(low, 3), "q75_us": round(high, 3), "samples": len(samples)}


def environment() -> dict[str, Any]:
    from gnfast.kernels import backends, build_info

    properties = torch.cuda.get_device_properties(0)
    return {
        "device": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "python": platform.python_version(),
        "build": build_info(),
        "backends": backends(),
    }


def ceilings(results: dict[str, Any]) -> list[Row]:
    """What this device reaches at its best: a copy of 1 GiB, and an 8192^3 bf16 product."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    copy = time_us(lambda: target.copy_(source))
    a, b = torch.randn(2, 8192, 8192, device="cuda").bfloat16()
    matmul = time_us(lambda: a @ b)
    results["copy_bytes_per_s"] = 2 * source.nbytes / copy["median_us"] * 1e6
    results["bf16_flop_per_s"] = 2 * 8192**3 / matmul["median_us"] * 1e6
    return [
        {"name": "copy 1 GiB", "GB/s": round(results["copy_bytes_per_s"] / 1e9, 1), **copy},
        {"name": "matmul 8192 bf16", "TFLOP/s": round(results["bf16_flop_per_s"] / 1e12, 1), **matmul},
    ]


def sign_bits(results: dict[str, Any]) -> list[Row]:
    """leaky_relu_pack and leaky_relu_mask against the PyTorch operations that they replace."""
    shapes = [(64, 512, 4, 4), (64, 128, 32, 32), (256, 128, 64, 64)]
    dtypes = [torch.float32, torch.bfloat16]
    return [row for shape in shapes for dtype in dtypes for row in sign_bit_rows(results, shape, dtype)]


def sign_bit_rows(results: dict[str, Any], shape: tuple[int, ...], dtype: torch.dtype) -> list[Row]:
    from gnfast.kernels import leaky_relu_mask, leaky_relu_pack

    x, t = (torch.randn(shape, device="cuda", dtype=dtype) for _ in range(2))
    y, bits = leaky_relu_pack(x)
    threshold_backward = torch.ops.aten.threshold_backward
    assert torch.equal(y, torch.relu(x)), "leaky_relu_pack differs from torch.relu"
    assert torch.equal(leaky_relu_mask(t, bits), threshold_backward(t, x, 0)), "leaky_relu_mask: wrong cotangent"

    in_place = x.clone()
    num_bytes = 2 * x.nbytes + bits.nbytes
    floor_us = num_bytes / results["copy_bytes_per_s"] * 1e6
    baselines = {
        "relu": time_us(lambda: torch.relu(x)),
        "relu_": time_us(lambda: torch.relu_(in_place)),
        "threshold_backward": time_us(lambda: threshold_backward(t, x, 0)),
        "t * (x > 0)": time_us(lambda: t * (x > 0)),
    }
    measured = {
        ("pack", "relu"): time_us(lambda: leaky_relu_pack(x)),
        ("pack_", "relu_"): time_us(lambda: leaky_relu_pack(in_place, inplace=True)),
        ("mask", "threshold_backward"): time_us(lambda: leaky_relu_mask(t, bits)),
        ("mask_", "t * (x > 0)"): time_us(lambda: leaky_relu_mask(in_place, bits, inplace=True)),
    }
    return [
        {
            "name": name,
            "shape": list(shape),
            "dtype": str(dtype).removeprefix("torch."),
            "bytes": num_bytes,
            **times,
            "baseline": baseline,
            "baseline_median_us": baselines[baseline]["median_us"],
            "ratio_to_baseline": round(times["median_us"] / baselines[baseline]["median_us"], 3),
            "fraction_of_bandwidth_floor": round(floor_us / times["median_us"], 3),
        }
        for (name, baseline), times in measured.items()
    ]


def spectral(results: dict[str, Any]) -> list[Row]:
    """Spectral normalisation of all layers of a model against PyTorch's parametrization.

    Both run as CUDA graphs, so that the device's time is measured and not the host's. The floor is the time to copy the
    bytes that must move at least: W in and W̄ out, and for the backward G and W in and the gradient out.
    """
    from bench_spectral import NETWORKS

    rows = []
    for network in NETWORKS:
        for dtype, layout in (
            (torch.float32, torch.contiguous_format),
            (torch.float32, torch.channels_last),
            (torch.bfloat16, torch.contiguous_format),
        ):
            row = {"network": network, "dtype": str(dtype), "layout": str(layout)}
            rows.append(row | _spectral_row(results, network, layout, dtype))
    return rows


def _spectral_row(results: dict[str, Any], network: str, layout: torch.memory_format, dtype: torch.dtype) -> Row:
    from bench_spectral import check, directions_for, make, step

    ways = make(network, layout, dtype, "cuda")
    directions = directions_for(ways["PyTorch"])
    if dtype == torch.float32:  # PyTorch's own σ is as rough as bfloat16; the tests bound that error.
        check(ways, directions)
    weight_bytes = sum(direction.nbytes for direction in directions)
    row: Row = {"weight_bytes": weight_bytes}
    for part, function, weights_moved in (
        ("forward", lambda net: net(), 2),
        ("forward and backward", lambda net: step(net, directions), 5),
    ):
        graphs = {way: _captured(lambda net=net, f=function: f(net)) for way, net in ways.items()}
        times = {way: time_us(graph.replay, budget_s=0.1) for way, graph in graphs.items()}
        eager = {way: time_us(lambda net=net, f=function: f(net), budget_s=0.1) for way, net in ways.items()}
        baseline, ours = times["PyTorch"]["median_us"], times["gnfast, model"]["median_us"]
        row[part] = {
            "times": times,
            "eager_times": eager,
            "ratio_to_pytorch": round(ours / baseline, 3),
            "fraction_of_bandwidth_floor": round(
                weights_moved * weight_bytes / results["copy_bytes_per_s"] * 1e6 / ours, 3
            ),
        }
    return row


def _captured(function: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """The function as a CUDA graph, after three runs on the stream that it is captured on."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        function()
    return graph


def steps(results: dict[str, Any]) -> list[Row]:
    """Critic and generator steps of the shipped critics, against double backward and against no normalisation."""
    from steps import CRITICS, critic_step, generator_step

    torch.backends.cudnn.benchmark = True
    rows = []
    # Whole networks in the dtype; TF32 is float32 whose products may be rounded.
    for precision, dtype in (("float32", torch.float32), ("tf32", torch.float32), ("bfloat16", torch.bfloat16)):
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision != "float32"
        for critic in CRITICS:
            for step in (critic_step, generator_step):
                row = {"critic": critic, "step": step.__name__, "precision": precision, "batch": 64}
                try:
                    rows.append(row | _step_row(critic, step, dtype))
                except Exception:
                    rows.append(row | {"error": traceback.format_exc()})
    if failed := sum("error" in row for row in rows):
        results["sections"]["steps"] = {"rows": rows}
        raise RuntimeError(f"{failed} of {len(rows)} rows failed; see the rows")
    return rows


def _step_row(critic: str, step: Callable[..., torch.Tensor], dtype: torch.dtype) -> Row:
    """Every way in both layouts, within twice double backward's own error against float64."""
    from measure import interleaved_ms, peak_bytes, typical_error
    from steps import double_backward, four_passes, make_critic, make_images, plain, without_rewrites

    ways = {"four passes": four_passes, "without rewrites": without_rewrites, "double backward": double_backward}
    timed, errors = {}, {}
    for layout_name, layout in (("contiguous", torch.contiguous_format), ("channels_last", torch.channels_last)):
        net, x = make_critic(critic, dtype, layout, "cuda"), make_images(critic, 64, dtype, layout, "cuda")
        exact = make_critic(critic, torch.float64, layout, "cuda")
        exact.load_state_dict(net.state_dict())
        truth = step(double_backward, exact, x.double())
        for name, way in ways.items():
            errors[f"{name}, {layout_name}"] = typical_error(step(way, net, x).double(), truth)
        for name in ("four passes", "without rewrites"):
            error, budget = (errors[f"{way}, {layout_name}"] for way in (name, "double backward"))
            assert error <= 2 * budget + 1e-6, (
                f"{name}, {layout_name}: error {error:.1e}, double backward's {budget:.1e}"
            )
        for name, way in (*ways.items(), ("plain", plain)):
            timed[f"{name}, {layout_name}"] = lambda way=way, net=net, x=x: step(way, net, x)
    times = interleaved_ms(timed, rounds=11, warmup=4)
    best = {
        kind: min(t["median_ms"] for name, t in times.items() if name.startswith(kind)) for kind in (*ways, "plain")
    }
    papers = times["double backward, contiguous"]["median_ms"]
    return {
        "times": times,
        "errors": errors,
        "ratio_to_double_backward_contiguous": round(best["four passes"] / papers, 3),
        "ratio_to_best_double_backward": round(best["four passes"] / best["double backward"], 3),
        "ratio_to_no_normalisation": round(best["four passes"] / best["plain"], 3),
        "peak_bytes": {name: peak_bytes(way, net) for name, way in timed.items() if name.endswith("channels_last")},
    }


SECTIONS: list[Callable[[dict[str, Any]], list[Row]]] = [ceilings, sign_bits, spectral, steps]


def write(path: Path, results: dict[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(results, indent=1) + "\n")
    os.replace(temporary, path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--time-limit", type=float, default=300, help="seconds after which no further section starts")
    parser.add_argument("--steps", default="", help="exit statuses of earlier steps, as 'build=0 tests=0'")
    arguments = parser.parse_args()

    started = time.perf_counter()
    results: dict[str, Any] = {
        "steps": {name: int(status) for name, status in (step.split("=") for step in arguments.steps.split())},
        "sections": {},
    }
    failed = False
    try:
        results["environment"] = environment()
    except Exception:
        results["environment"] = {"error": traceback.format_exc()}
        failed = True
    for section in SECTIONS:
        elapsed = time.perf_counter() - started
        if elapsed > arguments.time_limit:
            results["sections"][section.__name__] = {"error": f"not started: {elapsed:.0f} s had passed"}
            failed = True
            continue
        try:
            results["sections"][section.__name__] = {"rows": section(results)}
        except Exception:
            results["sections"].setdefault(section.__name__, {})["error"] = traceback.format_exc()
            failed = True
        write(arguments.out, results)
        print(section.__name__, json.dumps(results["sections"][section.__name__], indent=1), flush=True)
        torch.cuda.empty_cache()
    write(arguments.out, results)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
