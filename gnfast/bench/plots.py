"""Rows as pictures: each row's time next to its baselines', and where it stands under the machine's roofline."""

from pathlib import Path

from gnfast.bench.ceilings import Ceilings
from gnfast.bench.comparison import Row

COLOURS = ("#1f6fb4", "#7fb2d9", "#c44e52", "#dd8452", "#e6b35a", "#937860", "#8c8c8c", "#b0a4c8", "#64b5a0")


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
    figure = Figure(figsize=(12, 2.2 + 0.26 * len(rows) + 0.25 * len(groups)), layout="constrained")
    figure.suptitle(title, fontsize=9)
    bars, roof = figure.subplots(1, 2, width_ratios=(3, 2))
    _bars(bars, groups, colour)
    _roofline(roof, rows, ceilings, colour)
    figure.savefig(path, dpi=120)


def _bars(axes, groups: dict[tuple[str, str], list[Row]], colour: dict[str, str]) -> None:
    place, labels = 0.0, []
    for (network, step), rows in groups.items():
        axes.text(0, place - 0.85, f"{network}, {step}", fontsize=8, weight="bold", va="center")
        longest = max(row["median_ms"] for row in rows)
        for row in rows:
            share = row["median_ms"] / longest
            axes.barh(place, share, color=colour[row["variant"]], height=0.75)
            red = " (gate red)" if row["gate"] == "red" else ""
            axes.text(share + 0.01, place, f"{row['median_ms']:.4g} ms{red}", fontsize=7, va="center")
            labels.append((place, row["variant"]))
            place += 1
        place += 1.4
    axes.set_yticks([at for at, _ in labels], [name for _, name in labels], fontsize=7)
    axes.set_ylim(place - 1, -1.5)
    axes.set_xlim(0, 1.2)
    axes.set_xticks([])
    axes.set_xlabel("median time, relative to the slowest of each group", fontsize=8)
    axes.spines[["top", "right", "bottom"]].set_visible(False)


def _roofline(axes, rows: list[Row], ceilings: Ceilings, colour: dict[str, str]) -> None:
    intensities = [row["least_flops"] / row["least_bytes"] for row in rows]
    ridge = ceilings.flop_per_s / ceilings.bytes_per_s
    low, high = min([*intensities, ridge]) / 3, max([*intensities, ridge]) * 3
    axes.loglog(
        [low, ridge, high],
        [low * ceilings.bytes_per_s / 1e9, ceilings.flop_per_s / 1e9, ceilings.flop_per_s / 1e9],
        color="black",
        linewidth=1,
    )
    for row, intensity in zip(rows, intensities, strict=True):
        # All rows do the same job, so all are placed by the least work that the job is.
        ours = row["variant"] == row["ours"]
        axes.plot(
            intensity,
            row["least_flops"] / row["median_ms"] / 1e6,
            "o" if ours else ".",
            color=colour[row["variant"]],
            markersize=7 if ours else 6,
        )
    axes.set_xlabel("least FLOP per byte", fontsize=8)
    axes.set_ylabel("least GFLOP per second of measured time", fontsize=8)
    axes.set_title(f"roof: {ceilings}", fontsize=7)
    axes.tick_params(labelsize=7)
    axes.grid(which="major", linewidth=0.3)
