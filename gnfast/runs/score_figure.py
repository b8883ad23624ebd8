"""Scores of many runs as a figure: curves over a number, or bars side by side for settings that have names."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gnfast.runs.drawing import canvas, colour, legend_outside, log_scale, log_values, marker

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Score:
    """The score of runs that differ in their seed alone.

    Attributes:
        place: their setting, on the horizontal axis: a number or a name.
        hue: what else they are, in the legend.
        values: one of each run that has a score.
        lost: how many have none, for they diverged.
    """

    place: float | str
    hue: str
    values: Sequence[float]
    lost: int = 0


def score_figure(families: dict[str, Sequence[Score]], label: str) -> "Figure":
    """Means with standard deviations, single runs as dots on bars, runs without a score as crosses on top.

    Args:
        families: by what they vary, the scores of a column of the figure.
        label: of the vertical axis.
    """
    figure, grid = canvas(1, len(families), 3.6, sharey=True)
    known = [value for scores in families.values() for score in scores for value in score.values]
    hues = list(dict.fromkeys(score.hue for scores in families.values() for score in scores))
    top = max(known, default=1.0) * 1.3
    for axes, (family, scores) in zip(grid, families.items(), strict=True):
        places = list(dict.fromkeys(score.place for score in scores))
        own = [hue for hue in hues if any(score.hue == hue for score in scores)]
        is_numeric = all(isinstance(place, int | float) for place in places)
        for hue in own:
            index = hues.index(hue)
            style = {"color": colour(index), "capsize": 3, "label": hue}
            part = {_x(score, places, own): score for score in scores if score.hue == hue}
            if is_numeric:
                axes.errorbar(*_means(part), marker=marker(index), markersize=4, **style)
            else:
                xs, means, errors = _means(part)
                axes.bar(xs, means, 0.75 / len(own), yerr=errors, alpha=0.75, **style)
                dots = [(x, v) for x, score in part.items() if len(score.values) > 1 for v in score.values]
                axes.scatter([x for x, _ in dots], [value for _, value in dots], color="black", s=7, zorder=3)
            lost = [x for x, score in part.items() if score.lost]
            axes.scatter(lost, [top * 1.05**index for _ in lost], color=style["color"], marker="x")
        if is_numeric:
            if min(places) > 0 and max(places) >= 10 * min(places):
                log_scale(axes.xaxis)
            axes.set_xlabel(family)
        else:
            crowded = sum(map(len, places)) > 70 / len(families)
            axes.set_xticks(range(len(places)), places, rotation=30 if crowded else 0)
            axes.set_title(family)
        log_values(axes, known)
    grid[0].set_ylabel(label)
    if len(hues) > 1:
        legend_outside(figure, grid)
    return figure


def _x(score: Score, places: list[Any], hues: list[str]) -> float:
    """A number's own place, or that of a bar in its group."""
    if not isinstance(score.place, str):
        return score.place
    return places.index(score.place) + (hues.index(score.hue) - (len(hues) - 1) / 2) * 0.8 / len(hues)


def _means(scores: dict[float, Score]) -> tuple[list[float], list[float], list[float]]:
    """Places, means (NaN of none, which breaks a curve) and standard deviations (0 of one value)."""
    places = sorted(scores)
    values = [scores[place].values for place in places]
    means = [statistics.mean(one) if one else float("nan") for one in values]
    return places, means, [statistics.stdev(one) if len(one) > 1 else 0.0 for one in values]
