"""Scores of many runs as a figure: curves over a number, or bars side by side for settings that have names."""

import math
import statistics
from itertools import pairwise
from typing import TYPE_CHECKING

from gnfast.runs.drawing import canvas, colour, legend_outside, log_scale, log_values, marker
from gnfast.runs.rows import Rows, distinct, parts, values, where

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def score_figure(rows: Rows, family: str, place: str, hue: str, score: str, label: str) -> "Figure":
    """Means with standard deviations, single runs as dots on bars, runs without a score as crosses on top.

    Args:
        rows: one of each run.
        family: the column with what they vary, for which each value has axes of its own.
        place: the column with their setting, on the horizontal axis: numbers or names.
        hue: the column with what else they are, in the legend.
        score: the column with their scores; None of a run that diverged.
        label: of the vertical axis.
    """
    figure, grid = canvas(1, len(distinct(rows, family)), 3.6, sharey=True)
    known = [value for value in values(rows, score) if value is not None]
    top = max(known, default=1.0) * 1.3
    hues = distinct(rows, hue)
    for axes, (_, title, column) in zip(grid, parts(rows, family), strict=True):
        places = distinct(column, place)
        is_numeric = all(isinstance(value, int | float) for value in places)
        own = [name for name in hues if name in values(column, hue)]
        for slot, name in enumerate(own):
            index = hues.index(name)
            style = {"color": colour(index), "capsize": 3, "label": name}
            part = where(column, **{hue: name})
            # A number's own place, or that of a bar in its group.
            shift = (slot - (len(own) - 1) / 2) * 0.8 / len(own)
            at = {value if is_numeric else places.index(value) + shift: runs for _, value, runs in parts(part, place)}
            xs = sorted(at)
            found = [[value for value in values(at[x], score) if value is not None] for x in xs]
            # NaN breaks a curve, and draws no error bar.
            means = [statistics.mean(one) if one else float("nan") for one in found]
            errors = [statistics.stdev(one) if len(one) > 1 else float("nan") for one in found]
            if is_numeric:
                axes.errorbar(xs, means, errors, marker=marker(index), markersize=4, **style)
            else:
                axes.bar(xs, means, 0.75 / len(own), yerr=errors, alpha=0.75, **style)
                dots = [(x, value) for x, one in zip(xs, found, strict=True) if len(one) > 1 for value in one]
                axes.scatter([x for x, _ in dots], [value for _, value in dots], color="black", s=7, zorder=3)
            lost = [x for x in xs if None in values(at[x], score)]
            axes.scatter(lost, [top * 1.05**index for _ in lost], color=style["color"], marker="x")
        _name_places(axes, places, title, 70 / len(grid) if not is_numeric else None)
        log_values(axes, known)
    grid[0].set_ylabel(label)
    is_lost = None in values(rows, score)
    if is_lost:
        grid[0].scatter([], [], color="black", marker="x", label="diverged")
    if len(hues) > 1 or is_lost:
        legend_outside(figure, grid)
    return figure


def _name_places(axes: "Axes", places: list, title: str, most: float | None) -> None:
    """Numbers at the horizontal axis (`most` is None), or names, slanted where they have more letters than `most`."""
    if most is not None:
        axes.set_xticks(range(len(places)), places, rotation=30 if sum(map(len, places)) > most else 0)
        axes.set_title(title)
        return
    if min(places) > 0 and max(places) >= 10 * min(places):
        log_scale(axes.xaxis)
        logs = sorted(map(math.log, places))
        # No two are closer than an eighth of the axis: each has its number.
        if all(8 * (after - before) >= logs[-1] - logs[0] for before, after in pairwise(logs)):
            axes.set_xticks(sorted(places))
    axes.set_xlabel(title)
