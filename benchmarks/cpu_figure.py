"""The figure of docs/performance.md: times of steps, from what must_reach.py measured.

python benchmarks/cpu_figure.py benchmarks/results/cpu.json docs/images/cpu.png
"""

import json
import sys
from pathlib import Path

from matplotlib.figure import Figure

COLOURS = {
    "four passes": "#1f6fb4",
    "without rewrites": "#7fb2d9",
    "double backward": "#c44e52",
    "no normalisation": "#8c8c8c",
}


def draw(measured: Path, picture: Path) -> None:
    """One panel per critic and step, channels_last; whiskers are quartiles."""
    record = json.loads(measured.read_text())
    rows = [row for row in record["rows"] if row["part"] == "time" and row["layout"] == "channels_last"]
    rows = [row for row in rows if "times" in row]
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    for axes, row in zip(figure.subplots(1, len(rows), sharey=True), rows, strict=True):
        for place, (way, colour) in enumerate(COLOURS.items()):
            times = row["times"][way]
            median, low, high = (times[key] for key in ("median_ms", "q25_ms", "q75_ms"))
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
    figure.savefig(picture, dpi=120)


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
