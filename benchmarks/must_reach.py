"""The bounds that gnfast promises, each measured against double backward in the same run: exactness, operations,
memory and time of the critic's and the generator's step, of a whole training iteration, and of spectral normalisation;
and what the training program costs besides its steps.

    python benchmarks/must_reach.py [--only iteration memory …] [--rounds 15] [--out benchmarks/results/cpu.json]

Exits with status 1 if a bound is missed. Times are only taken after the results were found to agree. With --only, the
other parts' rows in --out stay as they are.
"""

import argparse
import copy
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

import gnfast
from gnfast.bench import cost, program, spectral_ways
from gnfast.bench.baselines import compiled_critic_step, repaired
from gnfast.bench.case import EAGER, A, B, Setup
from gnfast.bench.cases import iteration_cases
from gnfast.bench.clock import Times, interleaved_ms
from gnfast.bench.count import peak_bytes, work
from gnfast.bench.critic_steps import (
    PENALTIES,
    WAYS,
    Penalty,
    Result,
    critic_step,
    generator_step,
    penalty_step,
    static,
)
from gnfast.bench.critics import Z_DIM, shipped
from gnfast.bench.environment import environment
from gnfast.bench.gate import error_of, relative_error, typical_error
from gnfast.config.presets import PRESETS
from gnfast.engine import passes
from gnfast.engine.heads import METHODS
from gnfast.io.files import write_text

NCHW, NHWC = torch.contiguous_format, torch.channels_last
LAYOUT_NAMES = {NCHW: "contiguous", NHWC: "channels_last"}
CRITICS = ("CNN 32", "ResNet 32", "CNN 48", "ResNet 48")
# channels_last is the faster layout for double backward too.
CRITIC_TIME_BOUNDS = {"CNN 32": {NHWC: 0.52, NCHW: 0.70}, "ResNet 32": {NHWC: 0.28, NCHW: 0.50}}
PENALTY_WAYS = {
    "four passes": {"strict": True},
    "without rewrites": {"strict": True, "rewrite": False},
    "double backward": {"impl": "reference"},
}
Row = dict[str, Any]


def row(what: str, critic: str, value: float, bound: float | None, **more: Any) -> Row:
    """What was measured, of which network, the value, the bound that it must not exceed, and details."""
    return {"what": what, "critic": critic, "value": value, "bound": bound, **more}


def exactness(rounds: int, batch: int) -> Iterator[Row]:
    """Against double backward in float64, with rewrites and without."""
    for name in CRITICS:
        worst = max(_worst_error(name, method) for method in METHODS)
        yield row(f"relative error of f̂ and all gradients, {len(METHODS)} methods, float64", name, worst, 1e-10)
        worst = max(_penalty_error(name, penalty) for penalty in PENALTIES.values())
        yield row("relative error of penalties and their gradients, float64", name, worst, 1e-10)


def _worst_error(name: str, method: str) -> float:
    """The largest relative error of f̂, any weight gradient or the x gradient."""
    net, x = _inputs(name, 4, torch.float64, NCHW)
    seen = {}
    for way in ("four passes", "without rewrites", "double backward"):
        normalized = partial(WAYS[way], method=method)
        critic, generator = critic_step(normalized, net, x), generator_step(normalized, net, x)
        seen[way] = [critic.values, *critic.gradients, generator.values]
    truth = seen.pop("double backward")
    return max(relative_error(a, b) for results in seen.values() for a, b in zip(results, truth, strict=True))


def _penalty_error(name: str, penalty: Penalty) -> float:
    """The largest relative error of a penalty and of its weight gradients."""
    net, x = _inputs(name, 8, torch.float64, NCHW)
    return max(error_of(penalty_step(penalty, net, x), penalty_step(penalty, net, x, impl="reference")))


def operations(rounds: int, batch: int) -> Iterator[Row]:
    """FLOPs of convolutions and matrix products."""
    for name in CRITICS:
        net, x = _inputs(name, 2, torch.float32, NCHW)
        with torch.no_grad():
            forward = work(partial(net, x)).flops
        for what, step, bound in (
            ("FLOPs of a critic step / forward", critic_step, 4.05),
            ("FLOPs of a generator step's critic part / forward", generator_step, 2.02),
        ):
            counts = {way: work(run).flops / forward for way, run in _ways(step, net, x).items()}
            worst = max(counts["four passes"], counts["without rewrites"])
            yield row(what, name, worst, bound, forwards=counts)
            if (name, step) == ("ResNet 32", critic_step):
                yield row("FLOPs of a critic step / forward, with rewrites", name, counts["four passes"], 2.45)
    for name in ("CNN 32", "ResNet 32"):
        net, x = _inputs(name, 4, torch.float32, NCHW)
        for what, penalty in PENALTIES.items():
            counts = {
                way: work(partial(penalty_step, penalty, net, x, **options)).flops
                for way, options in PENALTY_WAYS.items()
            }
            ratio = counts["without rewrites"] / counts["double backward"]
            yield row(f"FLOPs of a {what} step / double backward's", name, ratio, 0.70, flops=counts)
            if (name, what) == ("ResNet 32", "R1"):
                ratio = counts["four passes"] / counts["double backward"]
                yield row(f"FLOPs of a {what} step / double backward's, with rewrites", name, ratio, None)
    for name, bound in (("ResNet 32", 0.72), ("ResNet 48", None)):
        stated = shipped(name).generator(torch.float32, NCHW)
        before, after = (cost.generator(net, Z_DIM)[1].flops for net in (stated, gnfast.rewrite(stated)))
        what = "FLOPs of a generator's forward and backward, rewritten / stated"
        yield row(what, name, after / before, bound)


def overhead(rounds: int, batch: int) -> Iterator[Row]:
    """What the engine costs in Python, on networks where little else takes time: of known code, and of a user's own."""
    torch.manual_seed(0)
    layers = [layer for _ in range(3) for layer in (torch.nn.Linear(16, 16), torch.nn.ReLU())]
    net, x = torch.nn.Sequential(*layers, torch.nn.Linear(16, 1)), torch.randn(4, 16)
    plan, operands = gnfast.trace(net, x), list(net.parameters())
    wanted, scale = [True] * len(operands), torch.ones(4)

    @torch.no_grad()
    def kernels() -> None:
        f, masks, values = passes.forward(plan, x, operands)
        given = torch.ones_like(f), operands, masks, values, plan.for_critic.cotangents
        (g,), cotangents = passes.pending_input_gradient(plan, 4, *given)
        passes.tangent(plan, passes.merged_tangent(x, scale, g.tensor), scale, operands, wanted, masks, cotangents)

    steps = {
        "step": partial(critic_step, WAYS["four passes"], net, x),
        "own code": partial(critic_step, WAYS["four passes"], _own(net), x),
        "static": partial(critic_step, static, _own(net), x),
        "passes alone": kernels,
        "double backward": partial(critic_step, WAYS["double backward"], net, x),
    }
    times = interleaved_ms(steps, rounds=200, warmup=20)
    microseconds = {name: round(1e3 * t["median_ms"]) for name, t in times.items()}
    ratio = microseconds["step"] / microseconds["passes alone"]
    yield row("time of a small critic's step / that of its passes alone", "MLP", ratio, None, microseconds=microseconds)
    for name in ("CNN 32", "ResNet 32"):
        network = shipped(name, width=1 / 32)
        net, x = network.critic(torch.float32, NCHW), network.images(2, torch.float32, NCHW)
        ways = {way: (WAYS[way], net) for way in ("four passes", "double backward", "no normalisation")}
        ways |= {"own code": (WAYS["four passes"], _own(net)), "static": (static, _own(net))}
        times = _times(name, {way: partial(critic_step, *given, x) for way, given in ways.items()}, 100)
        for way, bound in (("four passes", 2.5), ("own code", 3.5), ("static", 2.5)):
            what = f"time of a thin critic's step, {way} / without normalisation"
            yield row(what, name, _ratio(times, way, "no normalisation"), bound, times=times)


def _own(net: torch.nn.Module) -> torch.nn.Module:
    """The same network as a class of a user's, whose code is not known to gnfast."""
    own = copy.deepcopy(net)
    own.__class__ = type("Own", (type(net),), {})
    return own


def memory(rounds: int, batch: int) -> Iterator[Row]:
    """Peak bytes of a critic step beyond weights and images."""
    what = "peak memory of a critic step / double backward's"
    for name, bound in (("ResNet 32", 0.45), ("CNN 32", None)):
        net, x = _inputs(name, batch, torch.float32, NHWC)
        peaks = {way: peak_bytes(step) for way, step in _ways(critic_step, net, x).items()}
        worst = max(peaks["four passes"], peaks["without rewrites"])
        yield row(what, name, worst / peaks["double backward"], bound, bytes=peaks)
        if name == "ResNet 32":
            yield row(f"{what}, with rewrites", name, peaks["four passes"] / peaks["double backward"], None)


def strongest(rounds: int, batch: int) -> Iterator[Row]:
    """Time of critic steps, the repaired and the compiled double backward among them."""
    for name, (best_bound, plain_bound) in {"CNN 32": (0.75, 1.40), "ResNet 32": (0.50, 1.00)}.items():
        net, x = _inputs(name, batch, torch.float32, NHWC)
        others = {"repaired": partial(critic_step, repaired, net, x), "compiled": partial(compiled_critic_step(net), x)}
        times = _times(name, _ways(critic_step, net, x) | others, rounds)
        best = min(("double backward", "repaired", "compiled"), key=lambda way: times[way]["median_ms"])
        what = "time of a critic step / best double backward's"
        yield row(what, name, _ratio(times, "four passes", best), best_bound, times=times)
        ratio = _ratio(times, "four passes", "no normalisation")
        yield row("time of a critic step / that without normalisation", name, ratio, plain_bound)


def time(rounds: int, batch: int) -> Iterator[Row]:
    """Time of critic and generator steps against eager double backward, in both layouts."""
    for name, critic_bounds in CRITIC_TIME_BOUNDS.items():
        for layout, critic_bound in critic_bounds.items():
            for what, step, bound in (
                ("time of a critic step / double backward's", critic_step, critic_bound),
                ("time of a generator step's critic part / double backward's", generator_step, 0.38),
            ):
                net, x = _inputs(name, batch, torch.float32, layout)
                times = _times(name, _ways(step, net, x), rounds)
                where = {"layout": LAYOUT_NAMES[layout]}
                yield row(what, name, _ratio(times, "four passes", "double backward"), bound, **where, times=times)
                if (step, name, layout) == (critic_step, "ResNet 32", NHWC):
                    ratio = _ratio(times, "without rewrites", "double backward")
                    yield row(f"{what}, without rewrites", name, ratio, 0.40, **where)


def iteration(rounds: int, batch: int) -> Iterator[Row]:
    """Time of a whole training iteration, n_dis 5, `batch` real images per critic update, against the papers' way."""
    (case,) = iteration_cases(shipped("ResNet 32"), Setup(torch.device("cpu"), batch=batch))
    steps = {name: case.prepare(name) for name in (EAGER, A, B)}
    # What a step returns is what its first iteration found.
    losses = {name: step().values for name, step in steps.items()}
    error = max(relative_error(losses[name], losses[B]) for name in losses)
    assert error < 1e-3, f"losses of the first iteration differ by {error:.1e}"
    times = interleaved_ms(steps, max(2, rounds // 3), warmup=0)
    # The faster of the two layouts, as for the single steps.
    best = min((A, B), key=lambda name: times[name]["median_ms"])
    what = "time of a training iteration / best double backward's"
    yield row(what, "ResNet 32", _ratio(times, EAGER, best), 0.60, step=case.step, times=times)


def spectral(rounds: int, batch: int) -> Iterator[Row]:
    """Time of spectral normalisation of all layers, forward and backward, against PyTorch's parametrization."""
    what = "time of spectral normalisation / PyTorch's"
    for name in ("SN-GAN CNN", "ladder 64-1024"):
        for layout, said in LAYOUT_NAMES.items():
            torch.manual_seed(0)
            ways, directions = spectral_ways.make(spectral_ways.NETWORKS[name](), layout, torch.float32, "cpu")
            different = spectral_ways.disagreement(ways, directions)
            assert different is None, different
            steps = {way: partial(spectral_ways.step, net, directions) for way, net in ways.items()}
            times = interleaved_ms(steps, rounds)
            ratio = _ratio(times, spectral_ways.MODEL, spectral_ways.PYTORCH)
            yield row(what, name, ratio, 0.50, layout=said, times=times)


def host(rounds: int, batch: int) -> Iterator[Row]:
    """What the training program costs besides its steps: as on a GPU, with steps that do nothing, and on a CPU."""
    for name in ("gngan-cifar10-cnn", "gngan-cifar10-resnet"):
        found = program.host_of(name)
        yield row("graph mode: µs of the training thread per iteration", name, found.iteration, 60)
        yield row("graph mode: launches outside the graph per iteration", name, found.launches, 2)
        yield row("graph mode: seconds of side work per 1,000 steps", name, found.side_work, 0.1)
    own = {"data": "digits", "width": 0.25, "steps": 200}
    # Of networks so small that a picture takes as long as an update, no bound is promised.
    for name, settings, bound in (("gngan-cifar10-cnn", own, 0.01), ("digits", {"steps": 600}, None)):
        config = replace(PRESETS[name].config, **settings, device="cpu", extractor="none")
        share = program.share_outside_updates(name, config)
        yield row(f"CPU: share of {settings['steps']} steps' time outside updates", name, share, bound)


PARTS: dict[str, Callable[[int, int], Iterator[Row]]] = {
    part.__name__: part
    for part in (exactness, operations, overhead, memory, strongest, time, iteration, spectral, host)
}
"""name on the command line: (rounds, batch) ↦ one row per bound."""


def _inputs(
    name: str, batch: int, dtype: torch.dtype, layout: torch.memory_format
) -> tuple[torch.nn.Module, torch.Tensor]:
    network = shipped(name)
    return network.critic(dtype, layout), network.images(batch, dtype, layout)


def _ways(step: Callable[..., Result], net: torch.nn.Module, x: torch.Tensor) -> dict[str, Callable[[], Result]]:
    return {way: partial(step, normalize, net, x) for way, normalize in WAYS.items()}


def _times(name: str, steps: dict[str, Callable[[], Result]], rounds: int) -> dict[str, Times]:
    """Times of steps that take turns, after their results were found to agree."""
    results = {way: step() for way, step in steps.items()}
    for way, result in results.items():
        error = typical_error(result.values, results["double backward"].values)
        assert way == "no normalisation" or error < 1e-4, f"{name}, {way}: results differ by {error:.1e}"
    return interleaved_ms(steps, rounds)


def _ratio(times: dict[str, Times], way: str, baseline: str) -> float:
    return times[way]["median_ms"] / times[baseline]["median_ms"]


DETAILS: dict[str, Callable[[Any], str]] = {
    "times": lambda found: f"{found['median_ms']:.{0 if found['median_ms'] >= 100 else 2}f} ms",
    "bytes": lambda count: f"{count / 1e6:.0f} MB",
    "flops": lambda count: f"{count / 1e6:.0f} MFLOP",
    "forwards": lambda count: f"{count:.2f}",
    "microseconds": lambda count: f"{count} µs",
}
"""What a line says of a row's details, by their name."""


def _line(row: Row) -> str:
    value, bound = row["value"], row["bound"]
    verdict = "" if bound is None else f"≤ {bound:g} {'ok' if value <= bound else 'MISSED'}"
    text = f"{row['what']:66} {row['critic']:14} {row.get('layout', ''):14} {value:9.3g} {verdict:14}"
    for name, said in DETAILS.items():
        if name in row:
            text += "  " + ", ".join(f"{way} {said(found)}" for way, found in row[name].items())
    return text


def _record(path: Path, described: dict[str, Any], table: list[Row]) -> None:
    """Writes the rows, in place of those of the same parts if the file has others."""
    kept = []
    if path.exists():
        measured = {row["part"] for row in table}
        kept = [row for row in json.loads(path.read_text())["rows"] if row["part"] not in measured]
    write_text(path, json.dumps({"environment": described, "rows": kept + table}, indent=1) + "\n")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Measures gnfast's promises against double backward, on the CPU.")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts to measure (default: all)")
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds per comparison; a third for iterations")
    parser.add_argument("--batch", type=int, default=64, help="images per step for time and memory")
    parser.add_argument("--out", type=Path, help="a JSON file for the rows and the environment")
    options = parser.parse_args(arguments)
    # The profiler, which counts memory, would write its own log between the lines.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    described = environment("cpu")
    print(f"{described['device']}, {described['threads']} threads, PyTorch {described['torch']}, batch {options.batch}")
    table = []
    for name in options.only:
        for found in PARTS[name](options.rounds, options.batch):
            table.append({"part": name, **found})
            print(_line(found), flush=True)
    if options.out:
        _record(options.out, described, table)
    missed = [r for r in table if r["bound"] is not None and r["value"] > r["bound"]]
    print(f"{len(missed)} of {sum(r['bound'] is not None for r in table)} bounds missed")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
