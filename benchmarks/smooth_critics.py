"""Critics that double backward used to be needed for: time, memory and operations of a critic step by the passes.

    python benchmarks/smooth_critics.py [--only "ViT 32" …] [--width 1] [--batch 16] [--rounds 7] [--out rows.json]

Both ways are checked against double backward in float64 before anything is timed; they take turns within a round.
Attention is in its mathematical form for double backward, which cannot differentiate the fused one twice.
"""

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from gnfast.bench.clock import interleaved_ms
from gnfast.bench.count import peak_bytes, work
from gnfast.bench.critic_steps import Result, critic_step, double_backward, four_passes, plain
from gnfast.bench.critics import Network
from gnfast.bench.environment import environment
from gnfast.bench.gate import Error, error_of, within
from gnfast.bench.smooth_critics import networks
from gnfast.io.files import write_text

WAYS = {"gnfast": four_passes, "double backward": double_backward, "no normalisation": plain}
TIME_BOUND, MEMORY_BOUND = 0.60, 0.70


def in_math(step: partial[Result]) -> Result:
    """The step, with attention that can be differentiated twice."""
    with sdpa_kernel(SDPBackend.MATH):
        return step()


def checked(network: Network, images: Tensor, layout: torch.memory_format) -> dict[str, Error]:
    """The errors of both ways against float64.

    Raises:
        AssertionError: gnfast's is too large on the images, and on one of two other batches: now and then rounding puts
            a pre-activation near 0 on its other side, which changes gradients by a finite amount in any implementation.
    """

    def errors_on(x: Tensor) -> dict[str, Error]:
        truth = in_math(partial(critic_step, double_backward, network.critic(torch.float64, layout), x.double()))
        return {
            way: error_of(in_math(partial(critic_step, WAYS[way], network.critic(torch.float32, layout), x)), truth)
            for way in ("gnfast", "double backward")
        }

    def agree(errors: dict[str, Error]) -> bool:
        return within(errors["gnfast"], errors["double backward"], "float32")

    found = [errors_on(images)]
    if not agree(found[0]):
        found += [errors_on(images * factor) for factor in (0.9, 0.8)]
    agreed = [*filter(agree, found)]
    if len(agreed) <= len(found) // 2:
        raise AssertionError(f"{network.name}: results differ by {found}")
    return agreed[0]


def measured(network: Network, batch: int, rounds: int, layout: torch.memory_format) -> dict[str, Any]:
    """One row: ratios to double backward, and what they are ratios of."""
    images = network.images(batch, torch.float32, layout)
    errors = checked(network, images, layout)
    # Running statistics are each one's own.
    steps = {
        way: partial(critic_step, normalize, network.critic(torch.float32, layout), images)
        for way, normalize in WAYS.items()
    }
    steps["double backward"] = partial(in_math, steps["double backward"])
    net = network.critic(torch.float32, layout)
    with torch.no_grad():
        forward = work(partial(net, images)).flops
    flops = {way: round(work(step).flops / forward, 2) for way, step in steps.items()}
    peaks = {way: peak_bytes(step) for way, step in steps.items()}
    times = interleaved_ms(steps, rounds)
    return {
        "critic": network.name,
        "time / double backward": times["gnfast"]["median_ms"] / times["double backward"]["median_ms"],
        "memory / double backward": peaks["gnfast"] / peaks["double backward"],
        "forwards": flops,
        "bytes": peaks,
        "times": times,
        "errors": errors,
    }


def line(row: dict[str, Any]) -> str:
    """A row of a table in Markdown."""
    ms = {way: f"{times['median_ms']:.0f} ms" for way, times in row["times"].items()}
    cells = (
        row["critic"],
        f"{row['time / double backward']:.2f}",
        f"{row['memory / double backward']:.2f}",
        *(f"{ms[way]}, {row['bytes'][way] / 1e6:.0f} MB, {row['forwards'][way]:.2f}" for way in WAYS),
    )
    return f"| {' | '.join(cells)} |"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", nargs="+", choices=networks(), default=list(networks()), help="critics (default: all)"
    )
    parser.add_argument("--width", type=float, default=1.0, help="a factor on their channels")
    parser.add_argument("--batch", type=int, default=16, help="images per step, half of them real")
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds")
    parser.add_argument("--contiguous", action="store_true", help="images in contiguous memory, not channels_last")
    parser.add_argument("--out", type=Path, help="a JSON file for the rows and the environment")
    options = parser.parse_args(arguments)
    described = environment("cpu")
    print(f"{described['device']}, {described['threads']} threads, PyTorch {described['torch']}, batch {options.batch}")
    print(f"| critic | time | memory | {' | '.join(f'{way}: step, peak, forwards' for way in WAYS)} |")
    print("| --- | --- | --- | --- | --- | --- |")
    layout = torch.contiguous_format if options.contiguous else torch.channels_last
    rows = []
    for name in options.only:
        rows.append(measured(networks(options.width)[name], options.batch, options.rounds, layout))
        print(line(rows[-1]), flush=True)
    if options.out:
        write_text(options.out, json.dumps({"environment": described, "rows": rows}, indent=1) + "\n")
    bounds = {"time / double backward": TIME_BOUND, "memory / double backward": MEMORY_BOUND}
    missed = [f"{row['critic']}, {what}" for row in rows for what, bound in bounds.items() if row[what] > bound]
    print(f"missed: {'; '.join(missed) or 'none'}")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
