"""The figures: each function draws one from a tidy table, the rows that the CSV file of the same name holds."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gnfast.analysis.rows import Rows, distinct, parts, values, where
from gnfast.runs.drawing import canvas, colour, legend, legend_outside, log_scale, log_values, marker
from gnfast.runs.score_figure import Score, score_figure

STEPS = "generator updates"
OPERATORS = {
    "matrix": "reshaped weight",
    "circular": "operator, map wraps around (stride 1)",
    "operator": "operator as it acts",
}


def gradient_norm_boxes(rows: Rows) -> Figure:
    """Box plots over images, one group per critic, one box per kind of image.

    Args:
        rows: critic, images, min, q25, median, q75, max; the bound the critic's method gives as `bound` or None.
    """
    kinds = distinct(rows, "images")
    figure, (axes,) = canvas(1, 1, 3.6)
    step = 0.8 / len(kinds)
    shown = _near_the_largest(rows)
    for place, critic, part in parts(rows, "critic"):
        if part[0] not in shown:
            note = f"below:\n{part[0]['median']:.1e}"
            axes.text(place, 0.02, note, transform=axes.get_xaxis_transform(), ha="center", fontsize=7.5)
            continue
        for row in part:
            index = kinds.index(row["images"])
            label = row["images"] if critic == rows[0]["critic"] else None
            _box(axes, row, place + (index - (len(kinds) - 1) / 2) * step, step * 0.8, colour(index), label)
        if part[0].get("bound"):
            axes.hlines(part[0]["bound"], place - 0.45, place + 0.45, color="black", linestyle=":", linewidth=1)
    critics = distinct(rows, "critic")
    axes.set_xticks(range(len(critics)), critics)
    log_values(axes, values(shown, "min", "max"))
    axes.set(ylabel="gradient norm of the critic")
    axes.set_title("Gradient norms at images: least, quartiles, largest (dotted: the method's bound)")
    legend(axes)
    return figure


def finite_difference_lines(rows: Rows) -> Figure:
    """Difference quotients against the distance: medians as lines, quartiles as bands, the largest dashed.

    Args:
        rows: critic, distance, q25, median, q75, max.
    """
    figure, (axes,) = canvas(1, 1, 3.8)
    shown = _near_the_largest(rows)
    for index, critic, part in parts(rows, "critic"):
        label = critic if any(row in shown for row in part) else f"{critic} (below)"
        _quantile_lines(axes, part, "distance", index, marker=marker(index), ms=3, label=label)
    log_scale(axes.xaxis)
    log_values(axes, values(shown, "q25", "max"))
    axes.set_ylim(bottom=min(row["q25"] for row in shown) / 1.5 or None)
    axes.set(xlabel="distance δ along the gradient (pixel values in [-1, 1])", ylabel="|h(x + δv) - h(x)| / δ")
    axes.set_title("Difference quotients: median, quartiles (band), largest (dashed)")
    legend(axes)
    return figure


def lipschitz_by_layer(rows: Rows) -> Figure:
    """The constants of the first k layers against k, darker from the beginning of training to its end.

    Args:
        rows: critic, depth, step, index (from 1), layer, constant.
    """
    critics, depths = distinct(rows, "critic"), distinct(rows, "depth")
    figure, grid = canvas(len(critics), len(depths), 2.5 * len(critics), sharey=True)
    for place, axes in enumerate(grid):
        line, column = divmod(place, len(depths))
        part = where(rows, critic=critics[line], depth=depths[column])
        steps = distinct(part, "step")
        for shade, step, curve in parts(part, "step"):
            edge = shade in (0, len(steps) - 1) and len(steps) > 1
            style = {"color": colour(line), "alpha": 0.25 + 0.75 * (shade + 1) / len(steps), "marker": "o", "ms": 2.5}
            _plot(axes, curve, "index", "constant", label=f"step {step}" if edge else None, **style)
        log_values(axes, values(rows, "constant"))
        axes.set_title(f"{critics[line]}, {depths[column]} layers" if depths[column] else critics[line])
        axes.set_xticks(range(1, 1 + max(values(part, "index"), default=1)))
        if column == 0:
            axes.set_ylabel("largest Jacobian norm of\nthe first k layers")
        if line == len(critics) - 1:
            axes.set_xlabel("k")
        legend(axes)
    return figure


def lipschitz_over_training(rows: Rows) -> Figure:
    """The largest gradient norm of whole critics over training.

    Args:
        rows: critic, depth, step, constant (the largest over all kinds of images).
    """
    figure, (axes,) = canvas(1, 1, 3.4)
    styles = dict(zip(distinct(rows, "depth"), ("-", "--", ":", "-."), strict=False))
    for index, critic, part in parts(rows, "critic"):
        for _, depth, line in parts(part, "depth"):
            style = {"color": colour(index), "marker": marker(index), "ms": 3, "linestyle": styles[depth]}
            _plot(axes, line, "step", "constant", label=f"{critic}, {depth} layers", **style)
    log_values(axes, values(rows, "constant"))
    axes.set(xlabel=STEPS, ylabel="largest gradient norm")
    axes.set_title("Estimated Lipschitz constant of the whole critic")
    legend(axes)
    return figure


def spectra(rows: Rows) -> Figure:
    """Singular values of every layer, of the weight that is applied (lines) and of the parameter (dashed).

    Args:
        rows: critic, layer, index (from 0), raw, normalized.
    """
    # A layer with a single output has one singular value, which is not a spectrum; `operators` shows it.
    layers = distinct([row for row in rows if row["index"]], "layer") or distinct(rows, "layer")
    columns = min(4, len(layers))
    lines = -(-len(layers) // columns)
    figure, grid = canvas(lines, columns, 2.3 * lines)
    critics = distinct(rows, "critic")
    for axes, layer in zip(grid, layers, strict=False):
        found = where(rows, layer=layer)
        for _, critic, part in parts(found, "critic"):
            index = critics.index(critic)
            style = {"color": colour(index)} | ({"marker": marker(index), "ms": 4} if len(part) == 1 else {})
            _plot(axes, part, "index", "normalized", label=critic, **style)
            if any(row["raw"] != row["normalized"] for row in part):
                _plot(axes, part, "index", "raw", linestyle="--", alpha=0.6, **style)
        log_values(axes, values(found, "raw", "normalized"))
        axes.set_title(layer)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    for axes in grid[len(layers) :]:
        axes.set_axis_off()
    for axes in grid[::columns]:
        axes.set_ylabel("singular value")
    for axes in grid[max(0, len(layers) - columns) : len(layers)]:
        axes.set_xlabel("index")
    legend_outside(figure, grid)
    return figure


def operators(rows: Rows) -> Figure:
    """The largest singular value of each layer as a matrix and as an operator.

    Args:
        rows: critic, layer, matrix, circular (or None), operator.
    """
    figure, grid = canvas(1, len(distinct(rows, "critic")), 3.4, sharey=True)
    for axes, (_, critic, part) in zip(grid, parts(rows, "critic"), strict=True):
        for index, (name, label) in enumerate(OPERATORS.items()):
            known = [(place, row[name]) for place, row in enumerate(part) if row[name] is not None]
            places = [place + (index - 1) * 0.27 for place, _ in known]
            axes.bar(places, [value for _, value in known], width=0.25, color=colour(index), label=label)
        axes.set_xticks(range(len(part)), values(part, "layer"), rotation=45, ha="right")
        axes.set_title(critic)
    grid[0].set_ylabel("largest singular value")
    legend_outside(figure, grid)
    return figure


def sigmas_over_training(rows: Rows) -> Figure:
    """The largest singular value of each layer's parameter over training, dashed that of the applied weight.

    Args:
        rows: critic, step, layer, raw, applied.
    """
    layers = distinct(rows, "layer")
    figure, grid = canvas(1, len(distinct(rows, "critic")), 2.9, sharey=True)
    for axes, (_, critic, part) in zip(grid, parts(rows, "critic"), strict=True):
        for _, layer, line in parts(part, "layer"):
            index = layers.index(layer)
            _plot(axes, line, "step", "raw", color=colour(index), marker=marker(index), ms=2.5, label=layer)
            if any(abs(row["raw"] - row["applied"]) > 1e-3 * row["raw"] for row in line):
                _plot(axes, line, "step", "applied", color=colour(index), linestyle="--")
        log_values(axes, values(rows, "raw", "applied"))
        axes.set_title(critic)
        axes.set_xlabel(STEPS)
    grid[0].set_ylabel("largest singular value")
    legend_outside(figure, grid)
    return figure


def domains_over_training(rows: Rows) -> Figure:
    """Ω above and the interval of the loss's slope below, over training, one column per family of settings.

    Args:
        rows: family, setting, step, omega_min, omega_max, slope_min, slope_max.
    """
    families = distinct(rows, "family")
    figure, grid = canvas(2, len(families), 5.2)
    for column, family, part in parts(rows, "family"):
        above, below = grid[column], grid[len(families) + column]
        for axes, name in ((above, "omega"), (below, "slope")):
            for index, setting, band in parts(part, "setting"):
                _band(axes, band, "step", f"{name}_min", f"{name}_max", index, alpha=0.25)
                _plot(axes, band, "step", f"{name}_min", color=colour(index), linewidth=1)
                _plot(axes, band, "step", f"{name}_max", color=colour(index), linewidth=1, label=setting)
        _symlog(above, values(part, "omega_min", "omega_max"))
        above.set_title(family)
        legend(above)
        below.set_xlabel(STEPS)
    grid[0].set_ylabel("Ω: values of the critic")
    grid[len(families)].set_ylabel("slopes of the loss on Ω")
    return figure


def gradient_norms_over_training(rows: Rows) -> Figure:
    """Gradient norms over training: medians as lines, quartiles as bands, the largest dashed.

    Args:
        rows: images, step, q25, median, q75, max.
    """
    figure, (axes,) = canvas(1, 1, 3.2)
    for index, kind, part in parts(rows, "images"):
        _quantile_lines(axes, part, "step", index, label=kind)
    log_values(axes, values(rows, "q25", "max"))
    axes.set(xlabel=STEPS, ylabel="gradient norm of the critic")
    legend(axes)
    return figure


def loss_slopes(rows: Rows) -> Figure:
    """The derivatives of a loss's parts over the range of the critic's values.

    Args:
        rows: part, logit, slope.
    """
    figure, (axes,) = canvas(1, 1, 3.2)
    for index, part, line in parts(rows, "part"):
        style = {"color": colour(index), "linestyle": ("-", "--", ":")[index]}
        _plot(axes, line, "logit", "slope", label=part.replace("_", ", "), **style)
    axes.set(xlabel="critic's value, over Ω", ylabel="derivative of the loss")
    legend(axes)
    return figure


def score_lines(rows: Rows) -> Figure:
    """The Fréchet distance against a setting: a column per family, a line per loss.

    Args:
        rows: family, value, loss, distance (None for a run that diverged); `features` names the distance's features.
    """
    return _scores(rows, "value", "loss")


def score_bars(rows: Rows) -> Figure:
    """The Fréchet distance by setting and critic, a column per family.

    Args:
        rows: family, setting, critic, seed, distance (None for a run that diverged); `features`.
    """
    return _scores(rows, "setting", "critic")


def _scores(rows: Rows, place: str, hue: str) -> Figure:
    families = {}
    for _, family, column in parts(rows, "family"):
        scores = families[family] = []
        for _, name, part in parts(column, hue):
            for _, setting, runs in parts(part, place):
                known = [value for value in values(runs, "distance") if value is not None]
                scores.append(Score(setting, name, known, lost=len(runs) - len(known)))
    return score_figure(families, f"Fréchet distance\n({rows[0]['features']})")


def _plot(axes: Axes, rows: Rows, x: str, y: str, **style: Any) -> None:
    axes.plot(values(rows, x), values(rows, y), **style)


def _band(axes: Axes, rows: Rows, x: str, low: str, high: str, index: int, alpha: float) -> None:
    lows, highs = values(rows, low), values(rows, high)
    axes.fill_between(values(rows, x), lows, highs, color=colour(index), alpha=alpha, lw=0)


def _quantile_lines(axes: Axes, rows: Rows, x: str, index: int, **style: Any) -> None:
    """The median as a line, the quartiles as a band, the largest dashed."""
    _plot(axes, rows, x, "median", color=colour(index), **style)
    _band(axes, rows, x, "q25", "q75", index, alpha=0.2)
    _plot(axes, rows, x, "max", color=colour(index), linestyle="--", linewidth=0.8)


def _box(axes: Axes, row: dict[str, Any], place: float, width: float, color: str, label: str | None) -> None:
    ends = {"whislo": row["min"], "q1": row["q25"], "med": row["median"], "q3": row["q75"], "whishi": row["max"]}
    lines = {part: {"color": "black", "linewidth": 0.9} for part in ("medianprops", "whiskerprops", "capprops")}
    face = {"facecolor": color, "alpha": 0.6, "edgecolor": "black", "linewidth": 0.8}
    drawn = axes.bxp([ends], [place], widths=width, patch_artist=True, showfliers=False, boxprops=face, **lines)
    drawn["boxes"][0].set_label(label or "_")


def _symlog(axes: Axes, numbers: list[float]) -> None:
    sizes = [abs(value) for value in numbers if value]
    if sizes and max(sizes) > 20 * min(sizes):
        axes.set_yscale("symlog", linthresh=max(min(sizes), max(sizes) * 1e-9))
        axes.yaxis.set_major_formatter("{x:g}")


def _near_the_largest(rows: Rows) -> Rows:
    """Rows of critics whose medians come within 1/1000 of the largest: an axis for all would show none well."""
    largest = max(values(rows, "median"))
    groups = [part for _, _, part in parts(rows, "critic")]
    return [row for part in groups if max(values(part, "median")) >= largest / 1000 for row in part]
