"""Line charts as inline SVG that follow the page's light or dark colours."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gnfast.runs.page import Html, element

WIDTH, HEIGHT = 560, 230
LEFT, RIGHT, TOP, BOTTOM = 52, 8, 8, 26
COLOURS = 10
# Longer curves are drawn as means of as many stretches, on a band from their smallest to their largest value.
BINS = 300
# Curves of up to so many points show them.
DOTS = 60


@dataclass(frozen=True)
class Series:
    """A curve.

    Attributes:
        label: its name in the legend.
        points: (x, y), finite, by rising x.
    """

    label: str
    points: Sequence[tuple[float, float]]


def line_chart(title: str, series: Sequence[Series], *, log: bool = False, note: str = "") -> Html:
    """A figure with a title, a legend and the curves; empty if no curve has a point.

    Args:
        title: what the vertical axis shows.
        series: the curves; empty ones are left out.
        log: a logarithmic vertical axis, where all values are positive and they differ by more than a factor of 3.
        note: said beside the title.
    """
    drawn = [one for one in series if one.points]
    if not drawn:
        return Html("")
    legend = [
        element("span", element("i", style=f"--c: var(--s{index % COLOURS})"), one.label)
        for index, one in enumerate(drawn)
    ]
    caption = element("figcaption", element("b", title), *legend, element("span", note))
    return element("figure", caption, _svg(drawn, log))


def _svg(series: Sequence[Series], log: bool) -> Html:
    xs = [x for one in series for x, _ in one.points]
    ys = [y for one in series for _, y in one.points]
    log = log and min(ys) > 0 and max(ys) > 3 * min(ys)
    x_scale = _Scale(min(xs), max(xs), LEFT, WIDTH - RIGHT)
    y_scale = _Scale(min(ys), max(ys), HEIGHT - BOTTOM, TOP, log)
    parts = [_rule(x_scale, y_scale, tick) for tick in y_scale.ticks()]
    parts += [_label(tick, x_scale(tick), HEIGHT - 8, "middle") for tick in x_scale.ticks()]
    parts += [_curve(one, index, x_scale, y_scale) for index, one in enumerate(series)]
    return element("svg", *parts, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img")


class _Scale:
    """Maps values to pixels, linearly or by their logarithm."""

    def __init__(self, low: float, high: float, start: float, end: float, log: bool = False):
        self.log = log
        # Closer than any number can tell apart: there is no tick between them.
        if high - low < 1e-12 * max(abs(low), abs(high)) or high - low < 1e-290:
            low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
        self.low, self.high, self.start, self.end = low, high, start, end

    def __call__(self, value: float) -> float:
        low, high, at = (
            (math.log(v) for v in (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        )
        return self.start + (at - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round values within the scale: four to eight, or 1, 2, 5 of each power of ten."""
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            wanted = (1, 2, 5) if len(powers) <= 3 else (1,)
            marks = [digit * 10.0**power for power in powers for digit in wanted]
        else:
            raw = (self.high - self.low) / 5
            unit = 10.0 ** math.floor(math.log10(raw))
            step = next(unit * digit for digit in (1, 2, 5, 10) if unit * digit >= raw)
            first = math.ceil(self.low / step)
            # Rounded, since 3 * 0.1 is not 0.3.
            marks = [round(n * step, 12) for n in range(first, math.floor(self.high / step) + 1)]
        return [mark for mark in marks if self.low <= mark <= self.high]


def _rule(x_scale: _Scale, y_scale: _Scale, tick: float) -> Html:
    y = y_scale(tick)
    line = element("line", x1=x_scale.start, x2=x_scale.end, y1=f"{y:.1f}", y2=f"{y:.1f}", class_="rule")
    return Html(line + _label(tick, LEFT - 7, y + 4, "end"))


def _label(value: float, x: float, y: float, anchor: str) -> Html:
    text = f"{value / 1000:g}k" if value >= 10_000 else f"{value:.4g}"
    return element("text", text, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor)


def _curve(series: Series, index: int, x_scale: _Scale, y_scale: _Scale) -> Html:
    parts = []
    bins = _bins(series.points)
    if len(bins) < len(series.points):
        upper = [(x, high) for x, _, _, high in bins]
        lower = [(x, low) for x, _, low, _ in reversed(bins)]
        parts.append(element("path", d=_path(upper + lower, x_scale, y_scale) + "Z", class_="band"))
    parts.append(element("path", d=_path([(x, y) for x, y, _, _ in bins], x_scale, y_scale), class_="curve"))
    if len(series.points) <= DOTS:
        parts += [
            element(
                "circle",
                element("title", f"{series.label}, {x:,}: {y:.4g}"),
                cx=f"{x_scale(x):.1f}",
                cy=f"{y_scale(y):.1f}",
                r=2.4,
            )
            for x, y in series.points
        ]
    return element("g", *parts, style=f"--c: var(--s{index % COLOURS})")


def _bins(points: Sequence[tuple[float, float]]) -> list[tuple[float, float, float, float]]:
    """(x, mean, smallest, largest) of each stretch."""
    size = -(-len(points) // BINS)
    chunks = [points[start : start + size] for start in range(0, len(points), size)]
    return [
        (chunk[-1][0], sum(y for _, y in chunk) / len(chunk), min(y for _, y in chunk), max(y for _, y in chunk))
        for chunk in chunks
    ]


def _path(points: Sequence[tuple[float, float]], x_scale: _Scale, y_scale: _Scale) -> str:
    return "M" + "L".join(f"{x_scale(x):.1f} {y_scale(y):.1f}" for x, y in points)
