"""Figures of docs/: times of steps from what must_reach.py measured, and distances over training from run folders.

python benchmarks/figures.py benchmarks/results/cpu.json docs/images/cpu.png
python benchmarks/figures.py runs/float32-0 runs/float32-1 … runs/bfloat16-0 … docs/images/precision.png
"""

import json
import statistics
import sys
from pathlib import Path

from matplotlib.figure import Figure

from gnfast.io.rows import read_rows
from gnfast.runs.record import points

WAYS = {
    "four passes": ("gnfast", "#1f6fb4"),
    "without rewrites": ("gnfast, rewrite=False", "#7fb2d9"),
    "no normalisation": ("no normalisation", "#8c8c8c"),
    "double backward": ("double backward", "#c44e52"),
}
"""What each measured way is called, and its colour."""


def times_of_steps(measured: Path) -> Figure:
    """One panel per step and critic, channels_last; whiskers are quartiles."""
    record = json.loads(measured.read_text())
    rows = [row for row in record["rows"] if row["part"] == "time" and row["layout"] == "channels_last"]
    rows = sorted(
        (row for row in rows if "times" in row), key=lambda row: ("critic step" not in row["what"], row["critic"])
    )
    figure = Figure(figsize=(10, 3.8), layout="constrained")
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
            share = "" if ratio == 1 else f"  (× {ratio:.2f})"
            axes.text(time["q75_ms"] + 25, place, f"{time['median_ms']:.0f} ms{share}", va="center", fontsize=9)
        axes.set_title(
            f"{row['critic']}: {'critic' if 'critic step' in row['what'] else 'generator'} step", fontsize=10
        )
        axes.spines[["top", "right"]].set_visible(False)
    panels[0, 0].invert_yaxis()
    panels[0, 0].set_xlim(right=1.22 * max(row["times"]["double backward"]["q75_ms"] for row in rows))
    environment = record["environment"]
    about = (
        f"{environment['device']}, {environment['threads']} threads, PyTorch {environment['torch'].partition('+')[0]}"
    )
    figure.supxlabel(f"milliseconds for 64 images of 32×32, float32; {about}", fontsize=9)
    return figure


def distances_of_seeds(runs: list[Path]) -> Figure:
    """The Fréchet distance over steps and over seconds: thin for each run, thick for the mean of those that differ in
    the seed, at the mean of their seconds.
    """
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    over_steps, over_time = figure.subplots(1, 2, sharey=True)
    groups: dict[str, list[Path]] = {}
    for run in runs:
        groups.setdefault(run.name.rpartition("-")[0], []).append(run)
    for (name, members), colour in zip(groups.items(), ("#1f6fb4", "#c44e52"), strict=True):
        curves = [dict(points(read_rows(run / "metrics.jsonl"), "distance_ema")) for run in members]
        clocks = [dict(points(read_rows(run / "speed.jsonl"), "seconds")) | {0: 0.0} for run in members]
        for curve, clock in zip(curves, clocks, strict=True):
            thin = {"color": colour, "linewidth": 0.8, "alpha": 0.5}
            over_steps.plot(curve.keys(), curve.values(), **thin)
            over_time.plot([clock[step] for step in curve], curve.values(), **thin)
        steps = sorted(set.intersection(*map(set, curves)))
        means = [statistics.mean(curve[step] for curve in curves) for step in steps]
        seconds = [statistics.mean(clock[step] for clock in clocks) for step in steps]
        thick = {"color": colour, "marker": "o", "markersize": 4, "linewidth": 2}
        over_steps.plot(steps, means, label=f"{name}, mean of {len(members)} seeds", **thick)
        over_time.plot(seconds, means, **thick)
    over_steps.set(xlabel="generator updates", ylabel=_distance(runs), ylim=(0, None))
    over_time.set(xlabel="seconds of training, evaluations included", xlim=(0, None))
    for axes in (over_steps, over_time):
        axes.spines[["top", "right"]].set_visible(False)
    over_steps.legend(frameon=False)
    return figure


def _distance(runs: list[Path]) -> str:
    """The label of the axis, with whose features it is."""
    extractors = {row["extractor"] for run in runs for row in read_rows(run / "metrics.jsonl") if "extractor" in row}
    return f"Fréchet distance (EMA)\nin features of {', '.join(sorted(extractors))}"


def drawn(sources: list[str]) -> Figure:
    """The figure that the words before the picture's path ask for."""
    paths = [Path(source) for source in sources]
    return times_of_steps(paths[0]) if paths[0].suffix == ".json" else distances_of_seeds(paths)


if __name__ == "__main__":
    *words, picture = sys.argv[1:]
    drawn(words).savefig(picture, dpi=120)
