"""Curves over training, as a part of a page: a legend that is text, a drawing, and the values where they are few."""

from collections.abc import Sequence
from typing import NamedTuple

from gnfast.io.numbers import number
from gnfast.runs.drawing import colour, drawing, log_values, name_ticks, svg
from gnfast.runs.page import Html, element, embedded, table

# Longer curves are drawn as means of as many stretches, on a band from their smallest to their largest value.
BINS = 300
# Curves of up to so many points show them, and a table of their values.
DOTS = 60


class Series(NamedTuple):
    """A curve: its name in the legend, and (x, y), finite, by rising x."""

    label: str
    points: Sequence[tuple[float, float]]


def line_chart(title: str, series: Sequence[Series], *, log: bool = False, note: str = "") -> Html:
    """A figure with a title, a legend and the curves; empty if no curve has a point.

    Args:
        title: what the vertical axis shows.
        series: the curves; empty ones are left out.
        log: a logarithmic vertical axis, where all values are positive and they differ by more than a factor of 3.
        note: said next to the title.
    """
    drawn = [one for one in series if one.points]
    if not drawn:
        return Html("")
    first: dict[tuple[tuple[float, float], ...], Series] = {}
    pairs = [(one, first.setdefault(tuple(one.points), one)) for one in drawn]
    hidden = [f"{one.label} lies on {under.label}" for one, under in pairs if one is not under]
    note = "; ".join(filter(None, [note, *hidden]))
    legend = [
        element("span", element("i", style=f"background: {colour(index)}"), one.label)
        for index, one in enumerate(drawn)
    ]
    caption = element("figcaption", element("b", title), *legend, element("span", note, class_="note"))
    image = embedded(_drawn(drawn, log), "image/svg+xml", title, class_="plot")
    return element("figure", caption, image, _values(drawn))


def _drawn(series: Sequence[Series], log: bool) -> bytes:
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, MaxNLocator

    with drawing():
        figure = Figure(figsize=(5.6, 2.3))
        # Fitting margins to labels would take as long as all the rest, and this is drawn while a run trains.
        axes = figure.subplots(gridspec_kw={"left": 0.13, "bottom": 0.1, "right": 0.98, "top": 0.96})
        axes.tick_params(labelsize=8)
        for index, one in enumerate(series):
            _draw(axes, one, index)
        # Steps are whole: 200k.
        axes.xaxis.set_major_locator(MaxNLocator(steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        values = [y for one in series for _, y in one.points]
        if min(values) == max(values):
            # Ticks around it would be of values that there are none of.
            axes.set_yticks(values[:1])
        elif log:
            log_values(axes, values, 3)
        if axes.get_yscale() == "linear":
            name_ticks(axes.yaxis)
        return svg(figure)


def _draw(axes, series: Series, index: int) -> None:
    bins = _bins(series.points)
    xs, means, lows, highs = zip(*bins, strict=True)
    if len(bins) < len(series.points):
        axes.fill_between(xs, lows, highs, color=colour(index), alpha=0.16, linewidth=0, gid=f"band-{index}")
    dots = {"marker": "o", "markersize": 2.5} if len(series.points) <= DOTS else {}
    axes.plot(xs, means, color=colour(index), gid=f"curve-{index}", **dots)


def _bins(points: Sequence[tuple[float, float]]) -> list[tuple[float, float, float, float]]:
    """(x, mean, smallest, largest) of each stretch."""
    size = -(-len(points) // BINS)
    bins = []
    for start in range(0, len(points), size):
        xs, ys = zip(*points[start : start + size], strict=True)
        bins.append((xs[-1], sum(ys) / len(ys), min(ys), max(ys)))
    return bins


def _values(series: Sequence[Series]) -> Html:
    """The values of short curves, to unfold."""
    short = [(one.label, dict(one.points)) for one in series if len(one.points) <= DOTS]
    if not short:
        return Html("")
    places = sorted({x for _, points in short for x in points})
    rows = [(f"{x:,}", *(number(points[x]) if x in points else "" for _, points in short)) for x in places]
    content = table(("step", *(label for label, _ in short)), rows)
    return element("details", element("summary", "values"), content)
