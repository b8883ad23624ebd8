"""Draws runs beside each other: the Fréchet distance over steps, and over the seconds that training took.

python benchmarks/training_figure.py runs/gn runs/gn-reference … --out docs/images/training.png
"""

import argparse
from pathlib import Path

from matplotlib.figure import Figure

from gnfast.io.rows import read_rows
from gnfast.runs.record import points


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, help="run folders; their names are the labels")
    parser.add_argument("--out", type=Path, required=True, help="the PNG file")
    arguments = parser.parse_args()
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    over_steps, over_time = figure.subplots(1, 2, sharey=True)
    for run in arguments.runs:
        distances = dict(points(read_rows(run / "metrics.jsonl"), "distance_ema"))
        seconds = {0: 0.0} | {row["step"]: row["seconds"] for row in read_rows(run / "speed.jsonl")}
        steps = [step for step in distances if step in seconds]
        values = [distances[step] for step in steps]
        over_steps.plot(steps, values, marker="o", markersize=3, label=run.name)
        over_time.plot([seconds[step] for step in steps], values, marker="o", markersize=3)
    over_steps.set(yscale="log", xlabel="generator updates", ylabel="Fréchet distance (EMA)")
    over_time.set(xlabel="seconds, evaluations included")
    figure.legend(loc="outside right upper", frameon=False)
    figure.savefig(arguments.out, dpi=120)


if __name__ == "__main__":
    main()
