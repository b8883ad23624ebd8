"""The papers' figures: each function draws one from a tidy table, the rows that the CSV file of the same name holds.

Its docstring is what the page says about it; names in braces stand for numbers of the first row.
"""

from collections.abc import Callable

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gnfast.analysis.marks import band, boxes, plot, quantile_lines, symlog, tiled
from gnfast.measure.loss_domain import PARTS
from gnfast.runs.drawing import canvas, colour, legend, legend_outside, log_values, marker
from gnfast.runs.rows import Rows, distinct, parts, values, where
from gnfast.runs.score_figure import score_figure

GRAN = "GraN-GAN (Bhaskara et al., WACV 2022)"
GNGAN = "GN-GAN (Wu et al., ICCV 2021)"
SNGAN = "SN-GAN (Miyato et al., ICLR 2018)"
LIPSCHITZ = "Qin et al. (ECCV 2020)"
STEPS = "generator updates"
OPERATORS = {
    "matrix": "reshaped weight",
    "circular": "operator, map wraps around (stride 1)",
    "operator": "operator as it acts",
}


Draw = Callable[[Rows], Figure]
PANELS: dict[str, tuple[str, str, Draw]] = {}
"""Of each figure the heading, the source (a paper, and a figure of it) and what draws it."""


def _panel(name: str, title: str, source: str) -> Callable[[Draw], Draw]:
    def register(draw: Draw) -> Draw:
        PANELS[name] = (title, source, draw)
        return draw

    return register


@_panel("gradient-norms", "Gradient norms of critics", f"{GRAN}, fig. 3")
def _gradient_norms(rows: Rows) -> Figure:
    """The norm of each critic's input gradient at {count} real and as many generated images, after its own
    normalisation: least value, quartiles and largest value. A gradient-normalised critic stays below its dotted bound
    at every single image; a penalty or a normalised weight only moves the distribution.
    """
    kinds, critics = distinct(rows, "images"), distinct(rows, "critic")
    figure, (axes,) = canvas(1, 1, 3.6)
    width = 0.8 / len(kinds)
    shown = _near_the_largest(rows)
    for index, kind in enumerate(kinds):
        part = where(shown, images=kind)
        places = [critics.index(row["critic"]) + (index - (len(kinds) - 1) / 2) * width for row in part]
        boxes(axes, part, places, 0.8 * width, colour(index), kind)
    for place, _, part in parts(rows, "critic"):
        first = part[0]
        if first not in shown:
            note = f"below:\n{first['median']:.1e}"
            axes.text(place, 0.02, note, transform=axes.get_xaxis_transform(), ha="center", fontsize=7.5)
        elif first.get("bound"):
            axes.hlines(first["bound"], place - 0.45, place + 0.45, color="black", linestyle=":", linewidth=1)
    axes.set_xticks(range(len(critics)), critics, rotation=30 if sum(map(len, critics)) > 70 else 0)
    log_values(axes, values(shown, "min", "max"))
    axes.set(ylabel="gradient norm of the critic")
    axes.set_title("Gradient norms at images: least, quartiles, largest (dotted: the method's bound)")
    legend(axes)
    return figure


@_panel("finite-differences", "From the slope to the change over a distance", f"{GRAN}, fig. 4")
def _finite_differences(rows: Rows) -> Figure:
    """How much a critic h changes when an image moves by δ along its gradient, divided by δ, at {count} images of each
    kind: at small δ this is the gradient norm. Where the boxes move, images have left the linear piece that the
    gradient describes; where the largest exceeds the bound on the gradient (dotted), a normalised critic jumped between
    two pieces.
    """
    kinds, distances = distinct(rows, "images"), distinct(rows, "distance")
    figure, grid, left, bottom = tiled(len(distinct(rows, "critic")), 2.6, columns=3)
    width = 0.8 / len(kinds)
    for axes, (_, critic, found) in zip(grid, parts(rows, "critic"), strict=True):
        for index, kind in enumerate(kinds):
            part = where(found, images=kind)
            places = [distances.index(row["distance"]) + (index - (len(kinds) - 1) / 2) * width for row in part]
            boxes(axes, part, places, 0.9 * width, colour(index), kind)
        decades = [place for place, distance in enumerate(distances) if f"{distance:.3e}".startswith("1.000")]
        axes.set_xticks(decades[::2], [f"{distances[place]:g}" for place in decades[::2]])
        log_values(axes, values(found, "q25", "max"))
        axes.set_ylim(bottom=min(values(found, "q25")) / 3 or None)
        if found[0]["bound"]:
            axes.axhline(found[0]["bound"], color="black", linestyle=":", linewidth=1)
        axes.set_title(critic)
    for axes in bottom:
        axes.set_xlabel("δ (pixel values in [-1, 1])")
    for axes in left:
        axes.set_ylabel("|h(x + δv) - h(x)| / δ")
    legend_outside(figure, grid)
    return figure


@_panel("lipschitz-layers", "Lipschitz constant by depth", f"{GNGAN}, fig. 3 and Theorem 5")
def _lipschitz_by_layer(rows: Rows) -> Figure:
    """The largest Jacobian norm of the first k layers over {images} real, generated, mixed and noise images, before
    any gradient normalisation. Layers of constant 1 cannot raise it (Theorem 5); a convolution whose reshaped weight
    has norm 1 can, by as much as its norm as an operator.
    """
    depths = distinct(rows, "depth")
    figure, grid = canvas(1, len(depths), 3.4, sharey=True)
    for axes, (_, depth, column) in zip(grid, parts(rows, "depth"), strict=True):
        for index, critic, part in parts(column, "critic"):
            steps = distinct(part, "step")
            # Darker from the beginning of training to its end.
            for shade, step, curve in parts(part, "step"):
                edge = shade in (0, len(steps) - 1)
                label = f"{critic}, step {step}" if len(steps) > 1 else critic
                style = {"color": colour(index), "alpha": 0.25 + 0.75 * (shade + 1) / len(steps)}
                style |= {"marker": marker(index), "ms": 3, "label": label if edge else None}
                plot(axes, curve, "index", "constant", **style)
        log_values(axes, values(rows, "constant"))
        axes.set(xlabel="k, counted from the input", title=f"{depth} layers" if depth else "")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    grid[0].set_ylabel("largest Jacobian norm\nof the first k layers")
    legend_outside(figure, grid)
    return figure


@_panel("lipschitz-training", "Lipschitz constant of whole critics over training", f"{GNGAN}, fig. 3")
def _lipschitz_over_training(rows: Rows) -> Figure:
    """The largest gradient norm of the critic that the loss sees, over {images} images of each kind (where a run
    logged it: real and generated ones; the last point is over all images and kinds analysed): a lower bound of its
    Lipschitz constant. Gradient normalisation keeps it below 1 at every depth; under spectral normalisation it is what
    the layers make of it.
    """
    figure, (axes,) = canvas(1, 1, 3.4)
    styles = dict(zip(distinct(rows, "depth"), ("-", "--", ":", "-."), strict=False))
    for index, critic, part in parts(rows, "critic"):
        for _, depth, line in parts(part, "depth"):
            style = {"color": colour(index), "marker": marker(index), "ms": 3, "linestyle": styles[depth]}
            plot(axes, line, "step", "constant", label=f"{critic}, {depth} layers" if depth else critic, **style)
    log_values(axes, values(rows, "constant"))
    axes.set(xlabel=STEPS, ylabel="largest gradient norm")
    axes.set_title("Estimated Lipschitz constant of the whole critic")
    legend(axes)
    return figure


@_panel("spectra", "Singular values of the layers", f"{SNGAN}, fig. 3")
def _spectra(rows: Rows) -> Figure:
    """The squared singular values of the weight that each layer applies, as a matrix with a row per output channel,
    each layer's divided by its largest; unscaled ones, and those of the parameters, are in the table. A spectrum that
    falls steeply means that the layer passes on few directions.
    """
    # A layer with a single output has one singular value, which is not a spectrum; `operators` shows it.
    layers = distinct([row for row in rows if row["index"]], "layer") or distinct(rows, "layer")
    figure, grid, left, bottom = tiled(len(layers), 2.3)
    critics = distinct(rows, "critic")
    for axes, layer in zip(grid, layers, strict=True):
        squares = []
        for _, critic, part in parts(where(rows, layer=layer), "critic"):
            index, largest = critics.index(critic), part[0]["normalized"] or 1.0
            scaled = [{**row, "square": (row["normalized"] / largest) ** 2} for row in part]
            style = {"marker": marker(index), "ms": 4} if len(part) == 1 else {}
            plot(axes, scaled, "index", "square", color=colour(index), label=critic, **style)
            squares += values(scaled, "square")
        log_values(axes, squares, factor=1e4)
        axes.set_title(layer)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    for axes in left:
        axes.set_ylabel("σ² / largest σ²")
    for axes in bottom:
        axes.set_xlabel("index, largest first")
    legend_outside(figure, grid)
    return figure


@_panel("operators", "A convolution is not its matrix", "Sedghi, Gupta and Long (ICLR 2019)")
def _operators(rows: Rows) -> Figure:
    """The largest singular value of each layer's applied weight as a matrix, which is what spectral normalisation
    sets, next to that of the convolution on a map that wraps around and of the layer as it acts on its input. The
    operator applies the matrix to overlapping windows and is larger, by the kernel's side at most at stride 1.
    """
    figure, grid, left, _ = tiled(len(distinct(rows, "critic")), 3.4, sharey=True)
    for axes, (_, critic, part) in zip(grid, parts(rows, "critic"), strict=True):
        for index, (name, label) in enumerate(OPERATORS.items()):
            known = [(place, row[name]) for place, row in enumerate(part) if row[name] is not None]
            places = [place + (index - 1) * 0.27 for place, _ in known]
            axes.bar(places, [value for _, value in known], width=0.25, color=colour(index), label=label)
        axes.set_xticks(range(len(part)), values(part, "layer"), rotation=45, ha="right")
        axes.set_title(critic)
    for axes in left:
        axes.set_ylabel("largest singular value")
    legend_outside(figure, grid)
    return figure


@_panel("sigmas", "Largest singular values over training", f"{SNGAN}, fig. 9")
def _sigmas_over_training(rows: Rows) -> Figure:
    """The largest singular value of the weight that each layer applies, as a matrix, at steps of training (solid), and
    of the parameter behind it where that differs (dashed). Under gradient and spectral normalisation nothing
    bounds the parameters; clipping bounds them from outside.
    """
    layers = distinct(rows, "layer")
    figure, grid, left, _ = tiled(len(distinct(rows, "critic")), 2.9, sharey=True)
    for axes, (_, critic, part) in zip(grid, parts(rows, "critic"), strict=True):
        for _, layer, line in parts(part, "layer"):
            index = layers.index(layer)
            plot(axes, line, "step", "applied", color=colour(index), marker=marker(index), ms=2.5, label=layer)
            if any(abs(row["raw"] - row["applied"]) > 1e-3 * row["raw"] for row in line):
                plot(axes, line, "step", "raw", color=colour(index), linestyle="--")
        log_values(axes, values(rows, "raw", "applied"))
        axes.set(title=critic, xlabel=STEPS)
    for axes in left:
        axes.set_ylabel("largest singular value\n(dashed: of the parameter)")
    legend_outside(figure, grid)
    return figure


@_panel("loss-slopes", "The loss where the critic uses it", f"{LIPSCHITZ}, fig. 4")
def _loss_slopes(rows: Rows) -> Figure:
    """The derivatives of the three parts of the loss over Ω, the range of the critic's values on real and generated
    images. The flatter they are, the more the loss acts as a linear one.
    """
    figure, grid, left, bottom = tiled(len(distinct(rows, "critic")), 3.0, columns=3)
    for axes, (_, critic, found) in zip(grid, parts(rows, "critic"), strict=True):
        for index, part in enumerate(PARTS):
            style = {"color": colour(index), "linestyle": ("-", "--", ":")[index]}
            plot(axes, where(found, part=part), "logit", "slope", label=part.replace("_", ", "), **style)
        axes.set_title(critic)
    for axes in bottom:
        axes.set_xlabel("critic's value, over Ω")
    for axes in left:
        axes.set_ylabel("derivative of the loss")
    legend_outside(figure, grid)
    return figure


@_panel("loss-domains", "Domain and slopes of the loss over training", f"{LIPSCHITZ}, fig. 4")
def _domains_over_training(rows: Rows) -> Figure:
    """Ω, the range of the critic's values on real and generated images, and below it the interval on Ω of the slope of
    the critic's loss for real images, over training. A small Lipschitz constant, or a small α, keeps Ω where any loss
    is almost linear.
    """
    families = distinct(rows, "family")
    figure, grid = canvas(2, len(families), 6.2)
    for column, family, part in parts(rows, "family"):
        above, below = grid[column], grid[len(families) + column]
        for axes, name in ((above, "omega"), (below, "slope")):
            for index, setting, line in parts(part, "setting"):
                # Faint: one of the bands lies in another.
                band(axes, line, "step", f"{name}_min", f"{name}_max", index, alpha=0.08)
                style = {"color": colour(index), "marker": marker(index), "markersize": 3.5}
                plot(axes, line, "step", f"{name}_min", linestyle="--", **style)
                plot(axes, line, "step", f"{name}_max", label=setting, **style)
        symlog(above, values(part, "omega_min", "omega_max"))
        above.set_title(family)
        below.set_xlabel(STEPS)
        below.legend(title=family, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, columnspacing=1)
    grid[0].set_ylabel("Ω: largest (solid) and least (dashed)\nvalue of the critic")
    grid[len(families)].set_ylabel("largest (solid) and least (dashed)\nslope of the loss on Ω")
    return figure


@_panel("gradient-norm-training", "Gradient norms over training", f"{GRAN}, fig. 3, over time")
def _gradient_norms_over_training(rows: Rows) -> Figure:
    """Median (line), quartiles (band) and largest value (dashed) of the critic's gradient norm at the same real images
    and the same latents throughout. It is what reaches the generator through the critic.
    """
    figure, (axes,) = canvas(1, 1, 3.2)
    for index, kind, part in parts(rows, "images"):
        quantile_lines(axes, part, "step", index, label=kind)
    log_values(axes, values(rows, "q25", "max"))
    axes.set(xlabel=STEPS, ylabel="gradient norm of the critic")
    legend(axes)
    return figure


@_panel("domain-sweep", "Score against the size of the domain", f"{LIPSCHITZ}, tables 2-5")
def _domain_sweep(rows: Rows) -> Figure:
    """The generator's Fréchet distance (lower is better) against the norm k that each layer is normalised to, and
    against the factor α by which a loss's domain is scaled, per loss; crosses are runs that diverged. If losses only
    work where they are almost linear, all curves are alike for small k and α and part for large ones.
    """
    return _scores(rows, "value", "loss")


@_panel("ablations", "Activations and ζ", f"{GNGAN}, figs. 4 and 5")
def _ablations(rows: Rows) -> Figure:
    """The generator's Fréchet distance (lower is better) for gradient-normalised critics with other activations and
    with ζ in f / (‖∇f‖ + ζ), one dot per seed. The theorems need a piecewise linear critic; Softplus with a large β is
    almost one.
    """
    return _scores(rows, "setting", "critic")


@_panel("robustness", "Robustness to optimiser settings", f"{SNGAN}, figs. 1 and 2; {GRAN}, fig. 2")
def _robustness(rows: Rows) -> Figure:
    """The generator's Fréchet distance (lower is better) under the papers' settings of learning rate, Adam's decay
    rates and critic updates; crosses are runs that diverged. A robust method has bars of even height.
    """
    return _scores(rows, "setting", "critic")


def _scores(rows: Rows, place: str, hue: str) -> Figure:
    label = f"Fréchet distance, lower is better\n({rows[0]['features']})"
    return score_figure(rows, "family", place, hue, "distance", label)


def _near_the_largest(rows: Rows) -> Rows:
    """Rows of critics whose medians come within 1/1000 of the largest: an axis for all would show none well."""
    largest = max(values(rows, "median"))
    groups = [part for _, _, part in parts(rows, "critic")]
    return [row for part in groups if max(values(part, "median")) >= largest / 1000 for row in part]
