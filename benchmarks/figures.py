"""Figures of docs/: times of steps from what must_reach.py measured, distances over training from run folders.

    python benchmarks/figures.py benchmarks/results/cpu.json docs/images/cpu.png
    python benchmarks/figures.py "runs/four passes-0" … "runs/double backward-0" … docs/images/training.png
    python benchmarks/figures.py runs/float32-0 … runs/bfloat16-0 … docs/images/precision.png

The numbers of runs stay beside the figure as CSV, as those of `gnfast analyze` do. From these it is drawn again:

    python benchmarks/figures.py docs/images/training.csv docs/images/training.png
    python benchmarks/figures.py docs/images/analysis/loss-domains.csv docs/images/analysis/loss-domains.png
"""

import csv
import json
import statistics
import sys
from pathlib import Path

from matplotlib.figure import Figure

from gnfast.analysis.figures import PANELS
from gnfast.io.rows import read_rows
from gnfast.runs.drawing import WIDTH, canvas, colour, drawing, legend_outside, marker, png
from gnfast.runs.record import points
from gnfast.runs.rows import Rows, distinct, parts, values, where

WAYS = {
    "four passes": ("gnfast", "#0072B2"),
    "without rewrites": ("gnfast, no rewrites", "#56B4E9"),
    "no normalisation": ("no normalisation", "#999999"),
    "double backward": ("double backward", "#D55E00"),
}
"""What each measured way is called, and its colour."""


def times_of_steps(measured: Path) -> Figure:
    """One panel per step and critic, channels_last; whiskers are quartiles."""
    record = json.loads(measured.read_text())
    rows = [row for row in record["rows"] if row["part"] == "time" and row["layout"] == "channels_last"]
    rows = sorted(
        (row for row in rows if "times" in row), key=lambda row: ("critic step" not in row["what"], row["critic"])
    )
    figure = Figure(figsize=(WIDTH, 4), layout="constrained")
    panels = figure.subplots(2, len(rows) // 2, sharex=True, sharey=True)
    names, colours = zip(*WAYS.values(), strict=True)
    for axes, row in zip(panels.flat, rows, strict=True):
        times = [row["times"][way] for way in WAYS]
        medians = [time["median_ms"] for time in times]
        below = [time["median_ms"] - time["q25_ms"] for time in times]
        above = [time["q75_ms"] - time["median_ms"] for time in times]
        axes.barh(names, medians, color=colours, height=0.75)
        axes.errorbar(medians, names, xerr=[below, above], fmt="none", color="black", linewidth=0.8, capsize=2)
        for place, time in enumerate(times):
            ratio = time["median_ms"] / row["times"]["double backward"]["median_ms"]
            share = "" if ratio == 1 else f"  ({ratio:.2f})"
            axes.text(time["q75_ms"] + 30, place, f"{time['median_ms']:.0f} ms{share}", va="center")
        axes.set_title(f"{row['critic']}: {'critic' if 'critic step' in row['what'] else 'generator'} step")
        axes.grid(False)
    panels[0, 0].invert_yaxis()
    panels[0, 0].set_xlim(right=1.3 * max(row["times"]["double backward"]["q75_ms"] for row in rows))
    environment = record["environment"]
    about = (
        f"{environment['device']}, {environment['threads']} threads, PyTorch {environment['torch'].partition('+')[0]}"
    )
    figure.supxlabel(
        f"milliseconds for 64 images of 32×32 (in brackets: of double backward's), shorter is better\nfloat32, {about}",
        fontsize=9,
    )
    return figure


def distances(runs: list[Path]) -> Rows:
    """What was logged: a row for each run and evaluation. A folder is called after its way and its seed, WAY-SEED."""
    rows = []
    for run in runs:
        way, _, seed = run.name.rpartition("-")
        logged = read_rows(run / "metrics.jsonl")
        extractor = next(row["extractor"] for row in logged if "extractor" in row)
        clock = dict(points(read_rows(run / "speed.jsonl"), "seconds")) | {0: 0.0}
        for step, distance in points(logged, "distance_ema"):
            row = {"way": way, "seed": int(seed), "step": step, "seconds": clock[step], "distance": distance}
            rows.append(row | {"features": extractor})
    return rows


def distances_of_seeds(rows: Rows) -> Figure:
    """The Fréchet distance over steps and over seconds: thin for each run, thick for the mean of those that differ in
    the seed, at the mean of their seconds.
    """
    figure, grid = canvas(1, 2, 3.8, sharey=True)
    for index, way, found in parts(rows, "way"):
        style = {"color": colour(index)}
        steps = [part for _, _, part in parts(found, "step")]
        means = {
            name: [statistics.mean(row[name] for row in part) for part in steps]
            for name in ("step", "seconds", "distance")
        }
        label = f"{way}, mean of {len(distinct(found, 'seed'))} seeds"
        for axes, place in zip(grid, ("step", "seconds"), strict=True):
            for seed in distinct(found, "seed"):
                run = where(found, seed=seed)
                axes.plot(values(run, place), values(run, "distance"), linewidth=0.7, alpha=0.5, **style)
            thick = {"marker": marker(index), "markersize": 5, "linewidth": 2}
            axes.plot(means[place], means["distance"], label=label, **style, **thick)
    features = ", ".join(distinct(rows, "features"))
    grid[0].set(xlabel="generator updates", ylabel=f"Fréchet distance, lower is better\n({features})", ylim=(0, None))
    grid[1].set(xlabel="seconds of training, evaluations included", xlim=(0, None))
    legend_outside(figure, grid)
    return figure


def _read(path: Path) -> Rows:
    with path.open(encoding="utf-8", newline="") as file:
        return [{name: _value(text) for name, text in row.items()} for row in csv.DictReader(file)]


def _value(text: str) -> int | float | str | None:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text or None


def drawn(sources: list[Path], picture: Path) -> Figure:
    """The figure that the words before the picture's path ask for."""
    if sources[0].suffix == ".json":
        return times_of_steps(sources[0])
    if sources[0].is_dir():
        rows = distances(sources)
        with picture.with_suffix(".csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    else:
        rows = _read(sources[0])
    return PANELS[picture.stem][2](rows) if picture.stem in PANELS else distances_of_seeds(rows)


if __name__ == "__main__":
    *words, last = map(Path, sys.argv[1:])
    with drawing():
        last.write_bytes(png(drawn(words, last)))
