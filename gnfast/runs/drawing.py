"""Figures in one style, without a display; matplotlib is imported when the first one is drawn.

What is drawn stands in `with drawing()`: labels come from names of runs, layers and files, and are taken as they are.
"""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers can tell apart, and two more; markers differ where lines are many.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999", "#7a50b5", "#8a6242"]
MARKERS = "osD^v<>P"
WIDTH = 8.5

_STYLE = {
    # A $ in a name is not a formula.
    "text.parse_math": False,
    # The same figure is the same bytes.
    "svg.hashsalt": "gnfast",
    "svg.fonttype": "none",
    "path.simplify": False,
    "savefig.dpi": 130,
    # Pages show them at 700 pixels or so: text of 9 points has 10 there.
    "font.size": 9,
    "axes.titlesize": 10.5,
    "axes.labelsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.2,
    "legend.frameon": False,
    "legend.fontsize": 9,
}


@contextmanager
def drawing() -> Iterator[None]:
    """The style of all figures; they are saved inside as well."""
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        yield


def canvas(rows: int, columns: int, height: float, *, sharey: bool = False) -> "tuple[Figure, list[Axes]]":
    """A figure of so many inches in height, with its axes row by row."""
    # Figure, not pyplot: no global state and no display.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, sharey=sharey).ravel().tolist()


def colour(index: int) -> str:
    """The colour of the curve with this number."""
    return COLOURS[index % len(COLOURS)]


def marker(index: int) -> str:
    """Its marker."""
    return MARKERS[index % len(MARKERS)]


def tick(value: float, digits: int = 6) -> str:
    """A number at an axis: 20, 0.5, 5e-6, 1e8."""
    mantissa, _, exponent = f"{value:.{digits}e}".partition("e")
    plain = value == 0 or -5 < int(exponent) < 6
    return f"{value:.{digits}g}" if plain else f"{float(mantissa):.{digits}g}e{int(exponent)}"


def name_ticks(axis: "Axis") -> None:
    """Writes the ticks of a linear axis with six digits, or as many more as say where they are."""
    low, high = sorted(axis.get_view_interval())
    places = [place for place in axis.get_majorticklocs() if low <= place <= high]
    for digits in range(6, 13):
        names = [tick(place, digits) for place in places]
        if all(abs(float(name) - place) <= (high - low) / 200 for name, place in zip(names, places, strict=True)):
            break
    axis.set_ticks(places, names)


def log_scale(axis: "Axis") -> None:
    """Makes an axis logarithmic; its ticks are written as plain numbers."""
    from matplotlib.ticker import NullFormatter

    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.set_major_formatter(lambda value, _: tick(value))
    axis.set_minor_formatter(NullFormatter())


def log_values(axes: "Axes", values: Sequence[float], factor: float = 5) -> None:
    """A logarithmic vertical axis where all values are positive and span more than a factor."""
    from matplotlib.ticker import LogLocator

    if values and min(values) > 0 and max(values) > factor * min(values):
        log_scale(axes.yaxis)
        if max(values) < 100 * min(values):
            # A decade or two has too few powers of ten to read values from.
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))


def legend(axes: "Axes") -> None:
    """A legend, where a curve has a label."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend()


def legend_outside(figure: "Figure", grid: "Sequence[Axes]") -> None:
    """One legend for all axes, under them, where it hides nothing."""
    found = {label: handle for axes in grid for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=min(len(found), 6))


def svg(figure: "Figure") -> bytes:
    """The figure as an SVG file, which says neither when nor with what it was made."""
    return _saved(figure, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))


def png(figure: "Figure") -> bytes:
    """The figure as a PNG file."""
    return _saved(figure, format="png")


def _saved(figure: "Figure", **options: object) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, **options)
    return file.getvalue()
