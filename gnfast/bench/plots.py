"""Rows as pictures: each row's time next to its baselines', and where it stands under the machine's roofline."""

from pathlib import Path

from gnfast.bench.ceilings import Ceilings
from gnfast.bench.comparison import Row
from gnfast.runs import drawing

# Of a row by whose way it is: gnfast's own, other ways of gnfast's, and what both are compared with.
OURS, OUR_OTHERS, BASELINE = drawing.COLOURS[0], drawing.COLOURS[5], drawing.COLOURS[1]
# Inches.
ROOF = 4.5


def draw(rows: list[Row], ceilings: Ceilings, path: Path, title: str) -> None:
    """Draws bars, and below them a roofline, into a file whose suffix says the format (.png, .svg, .pdf).

    Raises:
        ValueError: a suffix that matplotlib does not know.
    """
    # Figure, not pyplot: no global state and no display.
    from matplotlib.figure import Figure

    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["network"], row["step"]), []).append(row)
    bars = 0.8 + 0.24 * len(rows) + 0.58 * len(groups)
    with drawing.drawing():
        figure = Figure(figsize=(drawing.WIDTH, bars + ROOF), layout="constrained")
        above, below = figure.subplots(2, 1, height_ratios=(bars, ROOF))
        above.set_title(title)
        _bars(above, groups)
        _roofline(below, groups, ceilings)
        figure.savefig(path)


def _colour(row: Row) -> str:
    if row["variant"] == row["ours"]:
        return OURS
    return OUR_OTHERS if row["variant"].startswith("gnfast") else BASELINE


def _bars(axes, groups: dict[tuple[str, str], list[Row]]) -> None:
    place, labels = 0.0, []
    for number, ((network, step), rows) in enumerate(groups.items(), 1):
        axes.text(0, place - 0.9, f"{number}  {network}, {step}", fontsize=10, weight="bold", va="center")
        longest = max(row["median_ms"] for row in rows)
        for row in rows:
            share = row["median_ms"] / longest
            axes.barh(place, share, color=_colour(row), height=0.75)
            red = " (gate red)" if row["gate"] == "red" else ""
            axes.text(share + 0.01, place, f"{row['median_ms']:.4g} ms{red}", va="center")
            labels.append((place, row["variant"]))
            place += 1
        place += 1.4
    axes.set_yticks([at for at, _ in labels], [name for _, name in labels])
    axes.set_ylim(place - 1, -1.5)
    axes.set_xlim(0, 1.2)
    axes.set_xticks([])
    axes.set_xlabel("median time of a call; a group's slowest has the full length, shorter is better")
    axes.spines["bottom"].set_visible(False)
    axes.grid(False)


def _roofline(axes, groups: dict[tuple[str, str], list[Row]], ceilings: Ceilings) -> None:
    groups = {name: [row for row in group if "least_flops" in row] for name, group in groups.items()}
    rows = [row for group in groups.values() for row in group]
    if not rows:
        axes.set_axis_off()
        return
    intensities = [row["least_flops"] / row["least_bytes"] for row in rows]
    ridge = ceilings.flop_per_s / ceilings.bytes_per_s
    low, high = min([*intensities, ridge]) / 3, max([*intensities, ridge]) * 3
    roof = [low * ceilings.bytes_per_s / 1e9, ceilings.flop_per_s / 1e9, ceilings.flop_per_s / 1e9]
    axes.plot([low, ridge, high], roof, color="black", linewidth=1, label=f"this machine: {ceilings}")
    names = {OURS: "gnfast, numbered as above", OUR_OTHERS: "gnfast, other ways", BASELINE: "other ways"}
    for number, group in enumerate(groups.values(), 1):
        for row in group:
            # All rows do the same job, so all are placed by the least work that the job is.
            place = row["least_flops"] / row["least_bytes"], row["least_flops"] / row["median_ms"] / 1e6
            tone = _colour(row)
            size = 9 if tone == OURS else 5
            axes.plot(*place, "o", color=tone, markersize=size, label=names.pop(tone, None))
            if tone == OURS:
                # Steps of one critic stand close together: their numbers are at the left and at the right in turns.
                offset, side = ((-8, 0), "right") if number % 2 else ((8, 0), "left")
                axes.annotate(str(number), place, offset, textcoords="offset points", ha=side, va="center")
    for axis in (axes.xaxis, axes.yaxis):
        drawing.log_scale(axis)
    axes.set_xlabel("least arithmetic per memory traffic (FLOP/byte)")
    axes.set_ylabel("least arithmetic per time (GFLOP/s),\nhigher is better")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    axes.grid(True, axis="both")
