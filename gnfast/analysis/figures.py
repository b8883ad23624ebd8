"""The figures: each function draws one from a tidy table, the rows that the CSV file beside it holds.

Colours are Okabe and Ito's, which colour-blind readers can tell apart; where lines are many, markers differ too.
"""

from collections.abc import Iterable
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, ScalarFormatter

Rows = list[dict[str, Any]]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
MARKERS = "osD^v<>P"
WIDTH = 8.5
NO_SCORE = "x"


def gradient_norm_boxes(rows: Rows) -> Figure:
    """Box plots over images, one group per critic, one box per kind of image.

    Args:
        rows: critic, images, min, q25, median, q75, max; the bound the critic's method gives as `bound` or None.
    """
    critics, kinds = _distinct(rows, "critic"), _distinct(rows, "images")
    figure, (axes,) = _figure(1, 1, 3.6)
    step = 0.8 / len(kinds)
    shown = _near_the_largest(rows)
    for row in rows:
        if row not in shown:
            note = f"below:\n{row['median']:.1e}" if row["images"] == kinds[0] else ""
            place = critics.index(row["critic"])
            axes.text(place, 0.02, note, transform=axes.get_xaxis_transform(), ha="center", fontsize=7.5)
            continue
        index = kinds.index(row["images"])
        place = critics.index(row["critic"]) + (index - (len(kinds) - 1) / 2) * step
        stats = {"whislo": row["min"], "q1": row["q25"], "med": row["median"], "q3": row["q75"], "whishi": row["max"]}
        _box(axes, stats, place, step * 0.8, COLOURS[index], row["images"] if row["critic"] == critics[0] else None)
        if row.get("bound"):
            left = critics.index(row["critic"])
            axes.hlines(row["bound"], left - 0.45, left + 0.45, color="black", linestyle=":", linewidth=1)
    axes.set_xticks(range(len(critics)), critics)
    _log(axes, "y", (value for row in shown for value in (row["min"], row["max"])))
    axes.set_ylabel("gradient norm of the critic")
    _title(axes, "Gradient norms at images: least, quartiles, largest (dotted: the method's bound)")
    _legend(axes)
    return figure


def finite_difference_lines(rows: Rows) -> Figure:
    """Difference quotients against the distance: medians as lines, quartiles as bands, the largest dashed.

    Args:
        rows: critic, distance, q25, median, q75, max.
    """
    figure, (axes,) = _figure(1, 1, 3.8)
    shown = _near_the_largest(rows)
    for index, critic in enumerate(_distinct(rows, "critic")):
        part = [row for row in rows if row["critic"] == critic]
        places, colour = [row["distance"] for row in part], COLOURS[index % len(COLOURS)]
        label = critic if any(row in shown for row in part) else f"{critic} (below)"
        axes.plot(places, [row["median"] for row in part], color=colour, marker=MARKERS[index], ms=3, label=label)
        axes.fill_between(places, [r["q25"] for r in part], [r["q75"] for r in part], color=colour, alpha=0.2, lw=0)
        axes.plot(places, [row["max"] for row in part], color=colour, linestyle="--", linewidth=0.8)
    axes.set_xscale("log")
    _log(axes, "y", (row[name] for row in shown for name in ("q25", "max")))
    axes.set_ylim(bottom=min(row["q25"] for row in shown) / 1.5 or None)
    axes.set_xlabel("distance δ along the gradient (pixel values in [-1, 1])")
    axes.set_ylabel("|h(x + δv) - h(x)| / δ")
    _title(axes, "Difference quotients: median, quartiles (band), largest (dashed)")
    _legend(axes)
    return figure


def lipschitz_by_layer(rows: Rows) -> Figure:
    """The constants of the first k layers against k, darker from the beginning of training to its end.

    Args:
        rows: critic, depth, step, index (from 1), layer, constant.
    """
    critics, depths = _distinct(rows, "critic"), _distinct(rows, "depth")
    figure, grid = _figure(len(critics), len(depths), 2.5 * len(critics), sharey=True)
    for place, axes in enumerate(grid):
        critic, depth = critics[place // len(depths)], depths[place % len(depths)]
        part = [row for row in rows if row["critic"] == critic and row["depth"] == depth]
        steps = _distinct(part, "step")
        for shade, step in enumerate(steps):
            line = [row for row in part if row["step"] == step]
            strength = 0.25 + 0.75 * (shade + 1) / len(steps)
            edge = shade in (0, len(steps) - 1)
            axes.plot(
                [row["index"] for row in line],
                [row["constant"] for row in line],
                color=COLOURS[critics.index(critic)],
                alpha=strength,
                marker="o",
                ms=2.5,
                linewidth=1.2,
                label=f"step {step}" if edge and len(steps) > 1 else None,
            )
        _log(axes, "y", (row["constant"] for row in rows))
        _title(axes, f"{critic}, {depth} layers" if depth else critic)
        axes.set_xticks(range(1, 1 + max((row["index"] for row in part), default=1)))
        if place % len(depths) == 0:
            axes.set_ylabel("largest Jacobian norm of\nthe first k layers")
        if place // len(depths) == len(critics) - 1:
            axes.set_xlabel("k")
        _legend(axes)
    return figure


def lipschitz_over_training(rows: Rows) -> Figure:
    """The largest gradient norm of whole critics over training.

    Args:
        rows: critic, depth, step, constant (the largest over all kinds of images).
    """
    figure, (axes,) = _figure(1, 1, 3.4)
    critics, depths = _distinct(rows, "critic"), _distinct(rows, "depth")
    for critic in critics:
        for style, depth in zip(("-", "--", ":", "-."), depths, strict=False):
            line = [row for row in rows if row["critic"] == critic and row["depth"] == depth]
            axes.plot(
                [row["step"] for row in line],
                [row["constant"] for row in line],
                color=COLOURS[critics.index(critic)],
                linestyle=style,
                marker=MARKERS[critics.index(critic)],
                ms=3,
                label=f"{critic}, {depth} layers",
            )
    _log(axes, "y", (row["constant"] for row in rows))
    axes.set_xlabel("generator updates")
    axes.set_ylabel("largest gradient norm")
    _title(axes, "Estimated Lipschitz constant of the whole critic")
    _legend(axes)
    return figure


def spectra(rows: Rows) -> Figure:
    """Singular values of every layer, of the weight that is applied (lines) and of the parameter (dashed).

    Args:
        rows: critic, layer, index (from 0), raw, normalized.
    """
    critics = _distinct(rows, "critic")
    # A layer with a single output has one singular value, which is no spectrum; `operators` shows it.
    layers = _distinct([row for row in rows if row["index"]], "layer") or _distinct(rows, "layer")
    columns = min(4, len(layers))
    lines = -(-len(layers) // columns)
    figure, grid = _figure(lines, columns, 2.3 * lines)
    for axes, layer in zip(grid, layers, strict=False):
        for index, critic in enumerate(critics):
            part = [row for row in rows if row["critic"] == critic and row["layer"] == layer]
            places = [row["index"] for row in part]
            style = {"color": COLOURS[index % len(COLOURS)], "linewidth": 1.2}
            single = {"marker": MARKERS[index % len(MARKERS)], "ms": 4} if len(part) == 1 else {}
            axes.plot(places, [row["normalized"] for row in part], **style, **single, label=critic)
            if any(row["raw"] != row["normalized"] for row in part):
                axes.plot(places, [row["raw"] for row in part], **style, **single, linestyle="--", alpha=0.6)
        _log(axes, "y", (r[name] for r in rows if r["layer"] == layer for name in ("raw", "normalized")))
        _title(axes, layer)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    for axes in grid[len(layers) :]:
        axes.set_axis_off()
    for axes in grid[::columns]:
        axes.set_ylabel("singular value")
    for axes in grid[max(0, len(layers) - columns) : len(layers)]:
        axes.set_xlabel("index")
    _legend_below(figure, grid[0])
    return figure


def operators(rows: Rows) -> Figure:
    """The largest singular value of each layer as a matrix and as an operator.

    Args:
        rows: critic, layer, matrix, circular (or None), operator.
    """
    critics = _distinct(rows, "critic")
    figure, grid = _figure(1, len(critics), 3.4, sharey=True)
    kinds = {
        "matrix": "reshaped weight",
        "circular": "operator, map wraps around (stride 1)",
        "operator": "operator as it acts",
    }
    for axes, critic in zip(grid, critics, strict=True):
        part = [row for row in rows if row["critic"] == critic]
        for index, (name, label) in enumerate(kinds.items()):
            known = [(place, row[name]) for place, row in enumerate(part) if row[name] is not None]
            places = [place + (index - 1) * 0.27 for place, _ in known]
            axes.bar(places, [value for _, value in known], width=0.25, color=COLOURS[index], label=label)
        axes.set_xticks(range(len(part)), [row["layer"] for row in part], rotation=45, ha="right")
        _title(axes, critic)
    grid[0].set_ylabel("largest singular value")
    _legend_below(figure, grid[0])
    return figure


def sigmas_over_training(rows: Rows) -> Figure:
    """The largest singular value of each layer's parameter over training, dashed that of the applied weight.

    Args:
        rows: critic, step, layer, raw, applied.
    """
    critics, layers = _distinct(rows, "critic"), _distinct(rows, "layer")
    figure, grid = _figure(1, len(critics), 2.9, sharey=True)
    for axes, critic in zip(grid, critics, strict=True):
        for index, layer in enumerate(layers):
            line = [row for row in rows if row["critic"] == critic and row["layer"] == layer]
            steps, style = [row["step"] for row in line], {"color": COLOURS[index % len(COLOURS)], "linewidth": 1.2}
            marker = {"marker": MARKERS[index % len(MARKERS)], "ms": 2.5}
            axes.plot(steps, [row["raw"] for row in line], **style, **marker, label=layer)
            if any(abs(row["raw"] - row["applied"]) > 1e-3 * row["raw"] for row in line):
                axes.plot(steps, [row["applied"] for row in line], **style, linestyle="--")
        _log(axes, "y", (row[name] for row in rows for name in ("raw", "applied")))
        _title(axes, critic)
        axes.set_xlabel("generator updates")
    grid[0].set_ylabel("largest singular value")
    _legend_below(figure, grid[0])
    return figure


def domains_over_training(rows: Rows) -> Figure:
    """Ω above and the interval of the generator loss's slope below, over training, one column per family of settings.

    Args:
        rows: family, setting, step, omega_min, omega_max, slope_min, slope_max.
    """
    families = _distinct(rows, "family")
    figure, grid = _figure(2, len(families), 5.2)
    for column, family in enumerate(families):
        part = [row for row in rows if row["family"] == family]
        for line, (low, high, label) in enumerate(
            (
                ("omega_min", "omega_max", "Ω: values of the critic"),
                ("slope_min", "slope_max", "slopes of the loss on Ω"),
            )
        ):
            axes = grid[line * len(families) + column]
            for index, setting in enumerate(_distinct(part, "setting")):
                band = [row for row in part if row["setting"] == setting]
                steps = [row["step"] for row in band]
                lows, highs = [row[low] for row in band], [row[high] for row in band]
                colour = COLOURS[index % len(COLOURS)]
                axes.fill_between(steps, lows, highs, color=colour, alpha=0.25, lw=0)
                axes.plot(steps, lows, color=colour, linewidth=1)
                axes.plot(steps, highs, color=colour, linewidth=1, label=setting)
            if line == 0:
                _symlog(axes, (row[name] for row in part for name in (low, high)))
                _title(axes, family)
                _legend(axes)
            else:
                axes.set_xlabel("generator updates")
            if column == 0:
                axes.set_ylabel(label)
    return figure


def gradient_norms_over_training(rows: Rows) -> Figure:
    """Gradient norms over training: medians as lines, quartiles as bands, the largest dashed.

    Args:
        rows: images, step, q25, median, q75, max.
    """
    figure, (axes,) = _figure(1, 1, 3.2)
    for index, kind in enumerate(_distinct(rows, "images")):
        part = [row for row in rows if row["images"] == kind]
        steps, colour = [row["step"] for row in part], COLOURS[index]
        axes.plot(steps, [row["median"] for row in part], color=colour, label=kind)
        axes.fill_between(steps, [r["q25"] for r in part], [r["q75"] for r in part], color=colour, alpha=0.2, lw=0)
        axes.plot(steps, [row["max"] for row in part], color=colour, linestyle="--", linewidth=0.8)
    _log(axes, "y", (row[name] for row in rows for name in ("q25", "max")))
    axes.set_xlabel("generator updates")
    axes.set_ylabel("gradient norm of the critic")
    _legend(axes)
    return figure


def loss_slopes(rows: Rows) -> Figure:
    """The derivatives of a loss's parts over the range of the critic's values.

    Args:
        rows: part, logit, slope.
    """
    figure, (axes,) = _figure(1, 1, 3.2)
    for index, part in enumerate(_distinct(rows, "part")):
        line = [row for row in rows if row["part"] == part]
        label = part.replace("_", ", ")
        style = {"color": COLOURS[index], "linestyle": ("-", "--", ":")[index]}
        axes.plot([r["logit"] for r in line], [r["slope"] for r in line], **style, label=label)
    axes.set_xlabel("critic's value, over Ω")
    axes.set_ylabel("derivative of the loss")
    _legend(axes)
    return figure


def score_lines(rows: Rows) -> Figure:
    """The Fréchet distance against a setting: a column per family, a line per loss; crosses on top are diverged runs.

    Args:
        rows: family, value, loss, distance (None for a run that diverged); `features` names the distance's features.
    """
    families, losses = _distinct(rows, "family"), _distinct(rows, "loss")
    figure, grid = _figure(1, len(families), 3.4, sharey=True)
    known = [row["distance"] for row in rows if row["distance"] is not None]
    top = max(known, default=1.0) * 1.3
    for axes, family in zip(grid, families, strict=True):
        for index, loss in enumerate(losses):
            line = [row for row in rows if row["family"] == family and row["loss"] == loss]
            colour = COLOURS[index % len(COLOURS)]
            # A run that diverged breaks the line.
            heights = [float("nan") if row["distance"] is None else row["distance"] for row in line]
            axes.plot([r["value"] for r in line], heights, color=colour, marker=MARKERS[index], ms=4, label=loss)
            lost = [row["value"] for row in line if row["distance"] is None]
            axes.scatter(lost, [top * 1.05**index for _ in lost], color=colour, marker=NO_SCORE)
        axes.set_xscale("log")
        _log(axes, "y", known)
        axes.set_xlabel(family)
    grid[0].set_ylabel(f"Fréchet distance\n({rows[0]['features']})")
    _legend_below(figure, grid[0])
    return figure


def score_bars(rows: Rows) -> Figure:
    """The Fréchet distance by setting and critic: means as bars, single runs as dots, diverged runs as crosses on top.

    Args:
        rows: family, setting, critic, seed, distance (None for a run that diverged); `features`.
    """
    families = _distinct(rows, "family")
    figure, grid = _figure(1, len(families), 3.6, sharey=True)
    known = [row["distance"] for row in rows if row["distance"] is not None]
    top = max(known, default=1.0) * 1.3
    critics = _distinct(rows, "critic")
    for axes, family in zip(grid, families, strict=True):
        part = [row for row in rows if row["family"] == family]
        settings, inside = _distinct(part, "setting"), _distinct(part, "critic")
        step = 0.8 / len(inside)
        for critic in inside:
            index = critics.index(critic)
            label = critic
            for place, setting in enumerate(settings):
                values = [r["distance"] for r in part if r["setting"] == setting and r["critic"] == critic]
                good = [value for value in values if value is not None]
                x = place + (inside.index(critic) - (len(inside) - 1) / 2) * step
                if good:
                    mean = sum(good) / len(good)
                    axes.bar(x, mean, width=step * 0.9, color=COLOURS[index % len(COLOURS)], label=label, alpha=0.75)
                    label = None
                if len(values) > 1:
                    axes.scatter([x] * len(good), good, color="black", s=7, zorder=3)
                if len(good) < len(values):
                    axes.scatter([x], [top], color=COLOURS[index % len(COLOURS)], marker=NO_SCORE)
        axes.set_xticks(range(len(settings)), settings, rotation=20 if max(map(len, settings)) > 6 else 0)
        _log(axes, "y", known)
        _title(axes, family)
        _legend(axes)
    grid[0].set_ylabel(f"Fréchet distance\n({rows[0]['features']})")
    return figure


def _figure(rows: int, columns: int, height: float, sharey: bool = False) -> tuple[Figure, list[Axes]]:
    # Figure, not pyplot: no global state and no display.
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=sharey).ravel().tolist()
    for axes in grid:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=8)
        axes.xaxis.label.set_size(9)
        axes.yaxis.label.set_size(9)
    return figure, grid


def _box(axes: Axes, stats: dict[str, float], place: float, width: float, colour: str, label: str | None) -> None:
    drawn = axes.bxp([{**stats, "fliers": []}], [place], widths=width, patch_artist=True, showfliers=False)
    for patch in drawn["boxes"]:
        patch.set(facecolor=colour, alpha=0.6, edgecolor="black", linewidth=0.8)
        if label:
            patch.set_label(label)
    for line in (*drawn["medians"], *drawn["whiskers"], *drawn["caps"]):
        line.set(color="black", linewidth=0.9)


def _title(axes: Axes, text: str) -> None:
    axes.set_title(text, fontsize=9.5)


def _legend(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=7.5)


def _legend_below(figure: Figure, axes: Axes) -> None:
    """One legend for all axes, under them."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 6), frameon=False, fontsize=7.5)


def _near_the_largest(rows: Rows) -> Rows:
    """Rows of critics whose medians come within 1/1000 of the largest: an axis for all would show none well."""
    largest = max(row["median"] for row in rows)
    best = {critic: max(r["median"] for r in rows if r["critic"] == critic) for critic in _distinct(rows, "critic")}
    return [row for row in rows if best[row["critic"]] >= largest / 1000]


def _log(axes: Axes, which: str, values: Iterable[float]) -> None:
    """A logarithmic axis where all values are positive and span more than a factor of 5."""
    finite = [value for value in values if value is not None]
    if finite and min(finite) > 0 and max(finite) > 5 * min(finite):
        getattr(axes, f"set_{which}scale")("log")
        if max(finite) < 100 * min(finite):
            # A decade or two has too few powers of ten to read values from.
            axis = getattr(axes, f"{which}axis")
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter(ScalarFormatter())
            axis.set_minor_formatter(NullFormatter())


def _symlog(axes: Axes, values: Iterable[float]) -> None:
    sizes = [abs(value) for value in values if value]
    if sizes and max(sizes) > 20 * min(sizes):
        axes.set_yscale("symlog", linthresh=max(min(sizes), max(sizes) * 1e-9))


def _distinct(rows: Rows, name: str) -> list[Any]:
    return list(dict.fromkeys(row[name] for row in rows))
