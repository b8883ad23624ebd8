"""Rows as pictures: each row's time next to its baselines', and where it stands under the machine's roofline."""

from pathlib import Path

from gnfast.bench.ceilings import Ceilings
from gnfast.bench.comparison import Row
from gnfast.runs.drawing import log_scale

COLOURS = ("#1f6fb4", "#7fb2d9", "#c44e52", "#dd8452", "#e6b35a", "#937860", "#8c8c8c", "#b0a4c8", "#64b5a0")
# Inches; higher, a roofline has no more to show.
ROOF = 5.5


def draw(rows: list[Row], ceilings: Ceilings, path: Path, title: str) -> None:
    """Draws bars and a roofline into a file whose suffix says the format (.png, .svg, .pdf).

    Raises:
        ValueError: a suffix that matplotlib does not know.
    """
    # Figure, not pyplot: no global state and no display.
    from matplotlib.figure import Figure

    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["network"], row["step"]), []).append(row)
    colour = dict(zip(dict.fromkeys(row["variant"] for row in rows), COLOURS * 3, strict=False))
    height = 2.2 + 0.26 * len(rows) + 0.25 * len(groups)
    figure = Figure(figsize=(13, height), layout="constrained")
    figure.suptitle(title, fontsize=10)
    below = max(height - ROOF, 0.01)
    axes = figure.subplot_mosaic([["bars", "roof"], ["bars", "."]], width_ratios=(3, 2), height_ratios=(ROOF, below))
    _bars(axes["bars"], groups, colour)
    _roofline(axes["roof"], groups, ceilings, colour)
    figure.savefig(path, dpi=120)


def _bars(axes, groups: dict[tuple[str, str], list[Row]], colour: dict[str, str]) -> None:
    place, labels = 0.0, []
    for number, ((network, step), rows) in enumerate(groups.items(), 1):
        axes.text(0, place - 0.85, f"{number}  {network}, {step}", fontsize=9, weight="bold", va="center")
        longest = max(row["median_ms"] for row in rows)
        for row in rows:
            share = row["median_ms"] / longest
            axes.barh(place, share, color=colour[row["variant"]], height=0.75)
            red = " (gate red)" if row["gate"] == "red" else ""
            axes.text(share + 0.01, place, f"{row['median_ms']:.4g} ms{red}", fontsize=8, va="center")
            labels.append((place, row["variant"]))
            place += 1
        place += 1.4
    axes.set_yticks([at for at, _ in labels], [name for _, name in labels], fontsize=8)
    axes.set_ylim(place - 1, -1.5)
    axes.set_xlim(0, 1.2)
    axes.set_xticks([])
    axes.set_xlabel("median time of a call, drawn relative to the slowest of its group", fontsize=9)
    axes.spines[["top", "right", "bottom"]].set_visible(False)


def _roofline(axes, groups: dict[tuple[str, str], list[Row]], ceilings: Ceilings, colour: dict[str, str]) -> None:
    groups = {name: [row for row in group if "least_flops" in row] for name, group in groups.items()}
    rows = [row for group in groups.values() for row in group]
    if not rows:
        axes.set_axis_off()
        return
    intensities = [row["least_flops"] / row["least_bytes"] for row in rows]
    ridge = ceilings.flop_per_s / ceilings.bytes_per_s
    low, high = min([*intensities, ridge]) / 3, max([*intensities, ridge]) * 3
    axes.plot(
        [low, ridge, high],
        [low * ceilings.bytes_per_s / 1e9, ceilings.flop_per_s / 1e9, ceilings.flop_per_s / 1e9],
        color="black",
        linewidth=1,
    )
    for number, group in enumerate(groups.values(), 1):
        for row in group:
            # All rows do the same job, so all are placed by the least work that the job is.
            place = row["least_flops"] / row["least_bytes"], row["least_flops"] / row["median_ms"] / 1e6
            ours = row["variant"] == row["ours"]
            axes.plot(*place, "o", color=colour[row["variant"]], markersize=9 if ours else 4)
            if ours:
                axes.annotate(
                    str(number), place, (-9, 0), textcoords="offset points", fontsize=9, ha="right", va="center"
                )
    for axis in (axes.xaxis, axes.yaxis):
        log_scale(axis)
    axes.set_xlabel("least arithmetic per memory traffic (FLOP/byte)", fontsize=9)
    axes.set_ylabel("least arithmetic per time (GFLOP/s)", fontsize=9)
    title = f"{ceilings}\n(line: this machine; points: the rows at the left, gnfast large)"
    axes.set_title(title, fontsize=8.5)
    axes.tick_params(labelsize=8)
    axes.grid(which="major", linewidth=0.3)
