"""The bounds that gnfast promises, each measured against double backward in the same run: exactness, operations,
memory and time of the critic's and the generator's step.

    python benchmarks/must_reach.py [--rounds 15] [--out benchmarks/results/cpu.json]

Exits with status 1 if a bound is missed. Times are only taken after the results were found to agree.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from measure import count_flops, environment, interleaved_ms, peak_bytes, relative_error
from steps import CRITICS, critic_step, double_backward, four_passes, generator_step, make_critic, make_images, plain

NCHW, NHWC = torch.contiguous_format, torch.channels_last
LAYOUT_NAMES = {NCHW: "contiguous", NHWC: "channels_last"}
CRITIC_TIME_BOUNDS = {"CNN 32": 0.70, "ResNet 32": 0.50}


def exactness(name: str) -> float:
    """The largest relative error of f̂, any weight gradient or the x gradient, float64, batch 3."""
    net, x = make_critic(name, torch.float64, NCHW), make_images(name, 4, torch.float64, NCHW)
    seen = {}
    for normalize in (four_passes, double_backward):
        f_hat = critic_step(normalize, net, x)
        weight_grads = [p.grad.clone() for p in net.parameters()]
        seen[normalize] = [f_hat, *weight_grads, generator_step(normalize, net, x)]
    return max(relative_error(a, b) for a, b in zip(seen[four_passes], seen[double_backward], strict=True))


def forwards(step, name: str) -> tuple[float, float]:
    """FLOPs of a step through the four passes and through double backward, in forwards."""
    net, x = make_critic(name, torch.float32, NCHW), make_images(name, 2, torch.float32, NCHW)
    with torch.no_grad():
        forward = count_flops(lambda: net(x))
    return tuple(count_flops(lambda: step(n, net, x)) / forward for n in (four_passes, double_backward))  # noqa: B023


def timed(step, name: str, layout: torch.memory_format, batch: int, rounds: int) -> dict[str, Any]:
    """Both ways, and the critic without normalisation, in one run; the results must agree first."""
    net, x = make_critic(name, torch.float32, layout), make_images(name, batch, torch.float32, layout)
    error = relative_error(step(four_passes, net, x), step(double_backward, net, x))
    assert error < 1e-3, f"{name}: results differ by {error:.1e}"
    ways = {"four passes": four_passes, "double backward": double_backward, "no normalisation": plain}
    times = interleaved_ms({way: lambda f=f: step(f, net, x) for way, f in ways.items()}, rounds)
    ratio = times["four passes"]["median_ms"] / times["double backward"]["median_ms"]
    over_plain = times["four passes"]["median_ms"] / times["no normalisation"]["median_ms"]
    return {"ratio": ratio, "over_no_normalisation": over_plain, "relative_error": error, "times": times}


def rows(rounds: int, batch: int) -> list[dict[str, Any]]:
    """One row per bound: what, critic, layout, measured value, bound."""
    table = []

    def row(what: str, critic: str, value: float, bound: float | None, **more: Any) -> None:
        table.append({"what": what, "critic": critic, "value": value, "bound": bound, **more})
        print(_line(table[-1]), flush=True)

    for name in CRITICS:
        row("relative error of f̂ and all gradients, float64", name, exactness(name), 1e-10)
    for name in CRITICS:
        ours, theirs = forwards(critic_step, name)
        row("FLOPs of a critic step / forward", name, ours, 4.05, double_backward=theirs)
        ours, theirs = forwards(generator_step, name)
        row("FLOPs of a generator step's critic part / forward", name, ours, 2.02, double_backward=theirs)
    for name in ("ResNet 32", "CNN 32"):
        net, x = make_critic(name, torch.float32, NHWC), make_images(name, batch, torch.float32, NHWC)
        ours, theirs = (peak_bytes(lambda: critic_step(n, net, x)) for n in (four_passes, double_backward))  # noqa: B023
        bound = 0.45 if name == "ResNet 32" else None
        row("peak memory of a critic step / double backward's", name, ours / theirs, bound, bytes=[ours, theirs])
    for name, bound in CRITIC_TIME_BOUNDS.items():
        for layout in (NHWC, NCHW):
            for what, step, limit in (
                ("time of a critic step / double backward's", critic_step, bound),
                ("time of a generator step's critic part / double backward's", generator_step, 0.38),
            ):
                measured = timed(step, name, layout, batch, rounds)
                row(what, name, measured.pop("ratio"), limit, layout=LAYOUT_NAMES[layout], **measured)
    return table


def _line(row: dict[str, Any]) -> str:
    value, bound = row["value"], row["bound"]
    verdict = "" if bound is None else f"≤ {bound:g} {'ok' if value <= bound else 'MISSED'}"
    text = f"{row['what']:60} {row['critic']:10} {row.get('layout', ''):14} {value:9.3g} {verdict:14}"
    if "times" in row:
        text += "  " + ", ".join(f"{way} {t['median_ms']:.0f} ms" for way, t in row["times"].items())
    if "bytes" in row:
        text += "  {:.0f} MB against {:.0f} MB".format(*(b / 1e6 for b in row["bytes"]))
    if "double_backward" in row:
        text += f"  double backward {row['double_backward']:.2f}"
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
