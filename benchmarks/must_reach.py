"""The bounds that gnfast promises, each measured against double backward in the same run: exactness, operations,
memory and time of the critic's and the generator's step.

    python benchmarks/must_reach.py [--rounds 15] [--out benchmarks/results/cpu.json]

Exits with status 1 if a bound is missed. Times are only taken after the results were found to agree.
"""

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from baselines import compiled_critic_step, repaired
from measure import count_flops, environment, interleaved_ms, peak_bytes, relative_error, typical_error
from steps import (
    CRITICS,
    PENALTIES,
    Penalty,
    critic_step,
    double_backward,
    four_passes,
    generator_step,
    make_critic,
    make_images,
    penalty_step,
    plain,
    without_rewrites,
)

import gnfast
from gnfast import models, passes
from gnfast.heads import METHODS

NCHW, NHWC = torch.contiguous_format, torch.channels_last
LAYOUT_NAMES = {NCHW: "contiguous", NHWC: "channels_last"}
Step = Callable[..., object]
CRITIC_TIME_BOUNDS = {"CNN 32": 0.70, "ResNet 32": 0.50}


WAYS = {
    "four passes": four_passes,
    "without rewrites": without_rewrites,
    "double backward": double_backward,
    "no normalisation": plain,
}


def exactness(name: str, method: str) -> float:
    """The largest relative error of f̂, any weight gradient or the x gradient, float64, with rewrites and without."""
    net, x = make_critic(name, torch.float64, NCHW), make_images(name, 4, torch.float64, NCHW)
    seen = {}
    for normalize in (four_passes, without_rewrites, double_backward):
        f_hat = critic_step(partial(normalize, method=method), net, x)
        weight_grads = [p.grad.clone() for p in net.parameters()]
        seen[normalize] = [f_hat, *weight_grads, generator_step(partial(normalize, method=method), net, x)]
    truth = seen.pop(double_backward)
    return max(relative_error(a, b) for results in seen.values() for a, b in zip(results, truth, strict=True))


def penalty_exactness(name: str, penalty: Penalty) -> float:
    """The largest relative error of a penalty and of its weight gradients, float64."""
    net = make_critic(name, torch.float64, NCHW)
    images = make_images(name, 4, torch.float64, NCHW).chunk(2)
    fast, slow = (penalty_step(penalty, net, *images, impl=impl) for impl in ("auto", "reference"))
    return max(relative_error(a, b) for a, b in zip(fast, slow, strict=True))


def forwards(step: Step, name: str) -> dict[str, float]:
    """FLOPs of a step, in forwards of the critic as its code states it."""
    net, x = make_critic(name, torch.float32, NCHW), make_images(name, 2, torch.float32, NCHW)
    with torch.no_grad():
        forward = count_flops(lambda: net(x))
    return {way: count_flops(lambda f=f: step(f, net, x)) / forward for way, f in WAYS.items()}


def penalty_flops(name: str, penalty: Penalty) -> dict[str, int]:
    """FLOPs of a penalty and its weight gradients."""
    net = make_critic(name, torch.float32, NCHW)
    images = make_images(name, 4, torch.float32, NCHW).chunk(2)
    ways = {
        "four passes": {"strict": True},
        "without rewrites": {"strict": True, "rewrite": False},
        "double backward": {"impl": "reference"},
    }
    return {way: count_flops(lambda o=o: penalty_step(penalty, net, *images, **o)) for way, o in ways.items()}


def memory(name: str, batch: int) -> dict[str, int]:
    """Peak bytes of a critic step beyond weights and images."""
    net, x = make_critic(name, torch.float32, NHWC), make_images(name, batch, torch.float32, NHWC)
    return {way: peak_bytes(lambda f=f: critic_step(f, net, x), net) for way, f in WAYS.items()}


def generator_flops(family: str, resolution: int) -> dict[str, int]:
    """FLOPs of a generator's forward and backward, as its code states it and rewritten."""
    generator, _ = models.build(family, resolution=resolution)
    z = torch.randn(2, 128)

    def step(net: torch.nn.Module) -> None:
        net(z).square().sum().backward()

    rewritten = gnfast.rewrite(generator)
    return {"stated": count_flops(lambda: step(generator)), "rewritten": count_flops(lambda: step(rewritten))}


def python_overhead() -> dict[str, float]:
    """Microseconds of a critic step of a small network: in all, of its passes alone, and of double backward."""
    torch.manual_seed(0)
    layers = [layer for _ in range(3) for layer in (torch.nn.Linear(16, 16), torch.nn.ReLU())]
    net, x = torch.nn.Sequential(*layers, torch.nn.Linear(16, 1)), torch.randn(4, 16)
    plan, operands = gnfast.trace(net, x), list(net.parameters())
    wanted, scale = [True] * len(operands), torch.ones(4)

    @torch.no_grad()
    def kernels() -> None:
        f, masks = passes.forward(plan, x, operands)
        g, cotangents = passes.input_gradient(plan, 4, torch.ones_like(f), operands, masks, keep=True)
        passes.tangent(plan, passes.merged_tangent(x, scale, g), scale, operands, wanted, masks, cotangents)

    steps = {
        "step": lambda: critic_step(four_passes, net, x),
        "passes alone": kernels,
        "double backward": lambda: critic_step(double_backward, net, x),
    }
    return {name: round(1e3 * t["median_ms"]) for name, t in interleaved_ms(steps, rounds=200, warmup=20).items()}


def milliseconds(step: Step, name: str, layout: torch.memory_format, batch: int, rounds: int) -> dict[str, Any]:
    """Times of all ways in one run, after their results were found to agree."""
    net, x = make_critic(name, torch.float32, layout), make_images(name, batch, torch.float32, layout)
    expected = step(double_backward, net, x)
    for normalize in (four_passes, without_rewrites):
        error = typical_error(step(normalize, net, x), expected)
        assert error < 1e-4, f"{name}: results differ by {error:.1e}"
    return interleaved_ms({way: lambda f=f: step(f, net, x) for way, f in WAYS.items()}, rounds)


def against_the_strongest(name: str, batch: int, rounds: int) -> dict[str, Any]:
    """Times of critic steps in one run, the repaired and the compiled double backward among them."""
    net, x = make_critic(name, torch.float32, NHWC), make_images(name, batch, torch.float32, NHWC)
    steps = {way: lambda f=f: critic_step(f, net, x) for way, f in (WAYS | {"repaired": repaired}).items()}
    steps["compiled"] = lambda: compiled_critic_step(net, x)
    expected = critic_step(double_backward, net, x)
    for way, step in steps.items():
        error = 0 if way == "no normalisation" else typical_error(step(), expected)
        assert error < 1e-4, f"{name}, {way}: results differ by {error:.1e}"
    return interleaved_ms(steps, rounds)


def rows(rounds: int, batch: int) -> list[dict[str, Any]]:
    """One row per bound: what, critic, layout, measured value, bound."""
    table = []

    def row(what: str, critic: str, value: float, bound: float | None, **more: Any) -> None:
        table.append({"what": what, "critic": critic, "value": value, "bound": bound, **more})
        print(_line(table[-1]), flush=True)

    for name in CRITICS:
        worst = max(exactness(name, method) for method in METHODS)
        row("relative error of f̂ and all gradients, six methods, float64", name, worst, 1e-10)
        worst = max(penalty_exactness(name, penalty) for penalty in PENALTIES.values())
        row("relative error of penalties and their gradients, float64", name, worst, 1e-10)
    for name in CRITICS:
        for what, step, bound in (
            ("FLOPs of a critic step / forward", critic_step, 4.05),
            ("FLOPs of a generator step's critic part / forward", generator_step, 2.02),
        ):
            counts = forwards(step, name)
            worst = max(counts["four passes"], counts["without rewrites"])
            row(what, name, worst, bound, forwards=counts)
            if (name, step) == ("ResNet 32", critic_step):
                row("FLOPs of a critic step / forward, with rewrites", name, counts["four passes"], 2.45)
    for name in ("CNN 32", "ResNet 32"):
        for what, penalty in PENALTIES.items():
            counts = penalty_flops(name, penalty)
            ratio = counts["without rewrites"] / counts["double backward"]
            row(f"FLOPs of a {what} step / double backward's", name, ratio, 0.70, flops=counts)
    for resolution in (32, 48):
        counts = generator_flops("resnet", resolution)
        ratio = counts["rewritten"] / counts["stated"]
        bound = 0.72 if resolution == 32 else None
        row("FLOPs of a generator's forward and backward, rewritten / stated", f"ResNet {resolution}", ratio, bound)
    overhead = python_overhead()
    ratio = overhead["step"] / overhead["passes alone"]
    row("time of a small critic's step / that of its passes alone", "MLP", ratio, None, microseconds=overhead)
    for name, bound in (("ResNet 32", 0.45), ("CNN 32", None)):
        peaks = memory(name, batch)
        worst = max(peaks["four passes"], peaks["without rewrites"])
        row(
            "peak memory of a critic step / double backward's",
            name,
            worst / peaks["double backward"],
            bound,
            bytes=peaks,
        )
    for name, (best_bound, plain_bound) in {"CNN 32": (0.75, 1.40), "ResNet 32": (0.50, 1.00)}.items():
        times = against_the_strongest(name, batch, rounds)
        median = {way: t["median_ms"] for way, t in times.items()}
        best = min(median[way] for way in ("double backward", "repaired", "compiled"))
        row(
            "time of a critic step / best double backward's",
            name,
            median["four passes"] / best,
            best_bound,
            times=times,
        )
        ratio = median["four passes"] / median["no normalisation"]
        row("time of a critic step / that without normalisation", name, ratio, plain_bound)
    for name, critic_bound in CRITIC_TIME_BOUNDS.items():
        for layout in (NHWC, NCHW):
            for what, step, bound in (
                ("time of a critic step / double backward's", critic_step, critic_bound),
                ("time of a generator step's critic part / double backward's", generator_step, 0.38),
            ):
                times = milliseconds(step, name, layout, batch, rounds)
                ratio = times["four passes"]["median_ms"] / times["double backward"]["median_ms"]
                row(what, name, ratio, bound, layout=LAYOUT_NAMES[layout], times=times)
    return table


def _line(row: dict[str, Any]) -> str:
    value, bound = row["value"], row["bound"]
    verdict = "" if bound is None else f"≤ {bound:g} {'ok' if value <= bound else 'MISSED'}"
    text = f"{row['what']:66} {row['critic']:10} {row.get('layout', ''):14} {value:9.3g} {verdict:14}"
    if "times" in row:
        text += "  " + ", ".join(f"{way} {t['median_ms']:.0f} ms" for way, t in row["times"].items())
    if "bytes" in row:
        text += "  " + ", ".join(f"{way} {count / 1e6:.0f} MB" for way, count in row["bytes"].items())
    if "forwards" in row:
        text += "  " + ", ".join(f"{way} {count:.2f}" for way, count in row["forwards"].items())
    if "microseconds" in row:
        text += "  " + ", ".join(f"{way} {count} µs" for way, count in row["microseconds"].items())
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description="Measures gnfast's promises against double backward, on the CPU.")
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds per comparison")
    parser.add_argument("--batch", type=int, default=64, help="images per step for time and memory")
    parser.add_argument("--out", type=Path, help="a JSON file for the rows and the environment")
    arguments = parser.parse_args()
    described = environment()
    print(
        f"{described['device']}, {described['threads']} threads, PyTorch {described['torch']}, batch {arguments.batch}"
    )
    table = rows(arguments.rounds, arguments.batch)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps({"environment": described, "rows": table}, indent=1) + "\n")
    missed = [r for r in table if r["bound"] is not None and r["value"] > r["bound"]]
    print(f"{len(missed)} of {sum(r['bound'] is not None for r in table)} bounds missed")
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
