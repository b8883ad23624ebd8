"""Figures of docs/: times of steps from what must_reach.py measured, and distances over training from run folders.

python benchmarks/figures.py benchmarks/results/cpu.json docs/images/cpu.png
python benchmarks/figures.py runs/gn runs/gn-reference … docs/images/training.png
python benchmarks/figures.py --seeds runs/float32-0 runs/float32-1 … runs/bfloat16-0 … docs/images/precision.png
"""

import json
import statistics
import sys
from pathlib import Path

from matplotlib.figure import Figure

from gnfast.io.rows import read_rows
from gnfast.runs.record import points

COLOURS = {
    "four passes": "#1f6fb4",
    "without rewrites": "#7fb2d9",
    "double backward": "#c44e52",
    "no normalisation": "#8c8c8c",
}


def times_of_steps(measured: Path) -> Figure:
    """One panel per critic and step, channels_last; whiskers are quartiles."""
    record = json.loads(measured.read_text())
    rows = [row for row in record["rows"] if row["part"] == "time" and row["layout"] == "channels_last"]
    rows = [row for row in rows if "times" in row]
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    for axes, row in zip(figure.subplots(1, len(rows), sharey=True), rows, strict=True):
        for place, (way, colour) in enumerate(COLOURS.items()):
            median, low, high = (row["times"][way][key] for key in ("median_ms", "q25_ms", "q75_ms"))
            axes.bar(place, median, color=colour, width=0.8)
            axes.errorbar(place, median, [[median - low], [high - median]], color="black", linewidth=0.8, capsize=2)
            axes.text(place, high + 25, f"{median:.0f}", ha="center", fontsize=8)
        axes.set_title(f"{row['critic']}\n{'critic' if 'critic step' in row['what'] else 'generator'} step", fontsize=9)
        axes.set_xticks(range(len(COLOURS)), [way.replace(" ", "\n", 1) for way in COLOURS], fontsize=5.5)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("milliseconds, batch 64")
    environment = record["environment"]
    about = f"{environment['device']}, {environment['threads']} threads, PyTorch {environment['torch']}, float32"
    figure.suptitle(about, fontsize=8)
    return figure


def distances_over_training(runs: list[Path]) -> Figure:
    """The Fréchet distance over steps, and over the seconds that training took; names of folders are the labels."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    over_steps, over_time = figure.subplots(1, 2, sharey=True)
    for run in runs:
        distances = dict(points(read_rows(run / "metrics.jsonl"), "distance_ema"))
        seconds = {0: 0.0} | {row["step"]: row["seconds"] for row in read_rows(run / "speed.jsonl")}
        steps = [step for step in distances if step in seconds]
        values = [distances[step] for step in steps]
        over_steps.plot(steps, values, marker="o", markersize=3, label=run.name)
        over_time.plot([seconds[step] for step in steps], values, marker="o", markersize=3)
    over_steps.set(yscale="log", xlabel="generator updates", ylabel="Fréchet distance (EMA)")
    over_time.set(xlabel="seconds, evaluations included")
    figure.legend(loc="outside right upper", frameon=False)
    return figure


def distances_of_seeds(runs: list[Path]) -> Figure:
    """The Fréchet distance over steps: thin for each run, thick for the mean of those that differ in the seed."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    groups: dict[str, list[dict[int, float]]] = {}
    for run in runs:
        found = dict(points(read_rows(run / "metrics.jsonl"), "distance_ema"))
        groups.setdefault(run.name.rpartition("-")[0], []).append(found)
    axes = figure.subplots()
    for (name, curves), colour in zip(groups.items(), ("#1f6fb4", "#c44e52"), strict=True):
        for curve in curves:
            axes.plot(curve.keys(), curve.values(), color=colour, linewidth=0.8, alpha=0.5)
        steps = sorted(set.intersection(*(set(curve) for curve in curves)))
        means = [statistics.mean(curve[step] for curve in curves) for step in steps]
        axes.plot(steps, means, color=colour, marker="o", linewidth=2, label=f"{name}, mean of {len(curves)} seeds")
    axes.set(xlabel="generator updates", ylabel="Fréchet distance (EMA)", ylim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


def drawn(sources: list[str]) -> Figure:
    """The figure that the words before the picture's path ask for."""
    if sources[0] == "--seeds":
        return distances_of_seeds([Path(run) for run in sources[1:]])
    paths = [Path(source) for source in sources]
    return times_of_steps(paths[0]) if paths[0].suffix == ".json" else distances_over_training(paths)


if __name__ == "__main__":
    *words, picture = sys.argv[1:]
    drawn(words).savefig(picture, dpi=120)
