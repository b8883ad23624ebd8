"""What the figures are made of: axes in tiles, and curves, bands and boxes from rows."""

import math
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gnfast.runs.drawing import canvas, colour, tick
from gnfast.runs.rows import Rows, values


def tiled(
    count: int, height: float, columns: int = 4, sharey: bool = False
) -> tuple[Figure, list[Axes], list[Axes], list[Axes]]:
    """A figure of so many axes of a height each, all of them, those at the left and those without others below."""
    columns = min(columns, count)
    lines = -(-count // columns)
    figure, grid = canvas(lines, columns, height * lines, sharey=sharey)
    for axes in grid[count:]:
        axes.set_axis_off()
    return figure, grid[:count], grid[:count:columns], grid[max(0, count - columns) : count]


def plot(axes: Axes, rows: Rows, x: str, y: str, **style: Any) -> None:
    """One column against another."""
    axes.plot(values(rows, x), values(rows, y), **style)


def band(axes: Axes, rows: Rows, x: str, low: str, high: str, index: int, alpha: float) -> None:
    """What is between two columns."""
    axes.fill_between(values(rows, x), values(rows, low), values(rows, high), color=colour(index), alpha=alpha, lw=0)


def quantile_lines(axes: Axes, rows: Rows, x: str, index: int, **style: Any) -> None:
    """The median as a line, the quartiles as a band, the largest dashed."""
    plot(axes, rows, x, "median", color=colour(index), **style)
    band(axes, rows, x, "q25", "q75", index, alpha=0.2)
    plot(axes, rows, x, "max", color=colour(index), linestyle="--", linewidth=0.8)


def boxes(axes: Axes, rows: Rows, places: list[float], width: float, color: str, label: str) -> None:
    """A box for each row, from its least value, quartiles and largest value."""
    names = {"whislo": "min", "q1": "q25", "med": "median", "q3": "q75", "whishi": "max"}
    ends = [{end: row[name] for end, name in names.items()} for row in rows]
    lines = {part: {"color": "black", "linewidth": 0.9} for part in ("medianprops", "whiskerprops", "capprops")}
    face = {"facecolor": color, "alpha": 0.6, "edgecolor": "black", "linewidth": 0.8}
    drawn = axes.bxp(ends, places, widths=width, patch_artist=True, showfliers=False, boxprops=face, **lines)
    drawn["boxes"][0].set_label(label)


def symlog(axes: Axes, numbers: list[float]) -> None:
    """A vertical axis that is logarithmic on both sides of 0, where numbers span more than a factor of 20."""
    sizes = [abs(value) for value in numbers if value]
    if sizes and max(sizes) > 20 * min(sizes):
        least = max(min(sizes), max(sizes) * 1e-9)
        axes.set_yscale("symlog", linthresh=least)
        # Four powers of ten at most on each side.
        high, low = math.floor(math.log10(max(sizes))), math.ceil(math.log10(least))
        powers = [10.0**exponent for exponent in range(high, low - 1, -max(1, math.ceil((high - low + 1) / 4)))]
        axes.set_yticks([-power for power in powers] + [0] + powers[::-1], minor=False)
        axes.yaxis.set_major_formatter(lambda value, _: tick(value))
