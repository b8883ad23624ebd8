"""Whole iterations of a preset: gnfast's, the papers' way, and double backward as fast as it can be made here."""

import dataclasses
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from gnfast.bench.case import CAPTURED, EAGER, A, B, C, Case, E, Setup, Step, Variant, free
from gnfast.bench.comparison import Row, measure
from gnfast.bench.iteration import PAPERS_WAY, first_losses, iteration_variant
from gnfast.bench.mode import PAPERS
from gnfast.bench.paper.prepare import GNFAST, Training, precision_of

OURS = (CAPTURED, EAGER)
BASELINES = (B, C, E)
"""Double backward in channels_last and the preset's precision; the strongest is the one that proves fastest."""

# Of a preset's time, for the further rounds of one variant; their least number is three.
SHARE, MOST_SECONDS = 0.03, 5.0
LARGE = 128


def measured(training: Training, device: torch.device, seconds: float) -> Iterator[Row]:
    """The rows of a preset, as `measure` gives them, with `images_per_s`, real ones that the critic sees, and
    `memory_bytes`: on a GPU the most that a way holds, on a CPU what a step adds to networks and images."""
    memory: dict[str, int] = {}
    case = speed_case(training, device, memory)
    config = training.config
    for row in measure(case, None, min(MOST_SECONDS, SHARE * seconds)):
        row = {"preset": training.preset, **row}
        if "note" not in row:
            row |= _per_second(row.get("back_to_back_ms", row["median_ms"]), config.n_dis * config.batch_d)
            row["memory_bytes"] = memory.get(row["variant"], row.get("peak_bytes"))
        yield row


def levelled(rows: list[Row], training: Training) -> list[Row]:
    """The rows with steps and images per second as if the machine had been as busy for all of them.

    gnfast takes turns with each: over its times in all rounds, its time in a row's own says how busy it was. On a GPU
    rates are of steps back to back, which nothing else disturbs, and stay as they are.
    """
    ours = [row["ours_median_ms"] for row in rows if row["ours_median_ms"]]
    if not ours or any("back_to_back_ms" in row for row in rows):
        return rows
    usual, images = statistics.median(ours), training.config.n_dis * training.config.batch_d
    level = [row["median_ms"] * usual / (row["ours_median_ms"] or usual) for row in rows]
    return [row | _per_second(ms, images) for row, ms in zip(rows, level, strict=True)]


def _per_second(ms: float, images: int) -> Row:
    return {"steps_per_s": round(1e3 / ms, 4), "images_per_s": round(1e3 * images / ms, 2)}


def speed_case(training: Training, device: torch.device, memory: dict[str, int]) -> Case:
    """The comparison; what is made on a GPU notes its memory under its name."""
    config, images = training.config, training.images
    setup = Setup(device, precision_of(config, device), config.batch_d, graphs=device.type == "cuda")
    tuned, large = setup.tuned, config.resolution >= LARGE
    searched = dataclasses.replace(tuned, search=not large)
    yardstick = None if large else B
    variant = partial(iteration_variant, config, images, device)
    variants = {
        CAPTURED: variant(tuned, yardstick),
        EAGER: variant(tuned, yardstick, cuda_graph=False),
        A: variant(PAPERS, None, **PAPERS_WAY),
        E: variant(searched, yardstick, repaired=True, **PAPERS_WAY | {"cuda_graph": True}),
        C: variant(searched, yardstick, repaired=True, **PAPERS_WAY),
        B: variant(searched, B, **PAPERS_WAY),
    }
    weighed = {name: _weighed(name, one, device, memory) for name, one in setup.chosen(variants).items()}
    shape = tuple(images.images.shape[1:])
    step = f"iteration, n_dis {config.n_dis}, batch {config.batch_d}/{config.batch_g}"
    truth = partial(first_losses, config, images, device)
    # The cost model may not know the preset's critic.
    return Case(step, training.preset, shape, setup, weighed, truth, cost=None, trains=True)


def strongest(rows: list[Row]) -> Row | None:
    """The fastest of the baselines that passed the gate: by the rounds that each shared with gnfast, if it did too."""
    passed = [row for row in rows if row["variant"] in BASELINES and row["gate"] == "green"]
    return max(passed, key=lambda row: (row["ratio"] or 0.0, row["steps_per_s"]), default=None)


def of_way(rows: list[Row], way: str) -> Row | None:
    """The row of one that trains; None if it was left out."""
    names = OURS if way == GNFAST else (A,)
    return next((row for name in names for row in rows if row["variant"] == name), None)


def _weighed(name: str, variant: Variant, device: torch.device, memory: dict[str, int]) -> Variant:
    """The variant, which on a GPU notes what it holds at most when it runs: networks, images, workspaces, graphs."""

    def make(make: Callable[[], Step]) -> Step:
        free()
        before = torch.cuda.memory_reserved(device)
        step = make()
        # What compiling and searching took has gone, and is not a part of a run.
        free()
        torch.cuda.reset_peak_memory_stats(device)
        step()
        torch.cuda.synchronize(device)
        memory[name] = torch.cuda.max_memory_reserved(device) - before
        return step

    replaced: dict[str, Any] = {"make": partial(make, variant.make)} if device.type == "cuda" else {}
    return dataclasses.replace(variant, **replaced)
