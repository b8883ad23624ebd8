"""Figures on disk: each as PNG with its numbers as CSV, and one page that explains them and names their sources.

A panel is a name of `CAPTIONS` with the rows of its table.
"""

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

from gnfast.analysis import figures
from gnfast.analysis.rows import Rows
from gnfast.io.files import atomic_write, write_text
from gnfast.runs.drawing import drawing, png
from gnfast.runs.page import Html, element, embedded, page, section

GRAN = "GraN-GAN (Bhaskara et al., WACV 2022)"
GNGAN = "GN-GAN (Wu et al., ICCV 2021)"
SNGAN = "SN-GAN (Miyato et al., ICLR 2018)"
LIPSCHITZ = "Qin et al. (ECCV 2020)"


class Caption(NamedTuple):
    """What belongs to a figure.

    Attributes:
        title: a heading.
        text: what is drawn and how to read it; numbers of the first row stand in it in braces.
        source: the paper and its figure.
        draw: the figure from its rows.
    """

    title: str
    text: str
    source: str
    draw: Callable[[Rows], Figure]


Panels = dict[str, Rows]


def write_panels(folder: Path, heading: str, lead: str, panels: Panels) -> Path:
    """Writes NAME.png and NAME.csv for each panel, and index.html, which needs no other file.

    Args:
        folder: made if missing.
        heading, lead: title and first paragraph of the page, plain text.
        panels: names of `CAPTIONS` to rows, which all have the same keys.

    Returns:
        The page.
    """
    sections = [_written(folder, name, rows) for name, rows in panels.items()]
    path = folder / "index.html"
    write_text(path, page(heading, element("h1", heading), element("p", lead), *sections))
    return path


def _written(folder: Path, name: str, rows: Rows) -> Html:
    caption = CAPTIONS[name]
    with drawing():
        image = png(caption.draw(rows))
    with atomic_write(folder / f"{name}.png") as part:
        part.write_bytes(image)
    write_text(folder / f"{name}.csv", _csv(rows))
    return section(
        caption.title,
        element("p", caption.text.format_map(rows[0])),
        element("p", f"{caption.source}; numbers in {name}.csv", class_="soft"),
        embedded(image, "image/png", caption.title, class_="plot"),
        id=name,
    )


def _csv(rows: Rows) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


CAPTIONS = {
    "gradient-norms": Caption(
        "Gradient norms of critics",
        "The norm of each critic's input gradient at {count} real and as many generated images, after "
        "its own normalisation: least value, quartiles and largest value. A gradient-normalised critic stays below "
        "its dotted bound at every single image; a penalty or a normalised weight only moves the distribution.",
        f"{GRAN}, fig. 3",
        figures.gradient_norm_boxes,
    ),
    "finite-differences": Caption(
        "From the slope to the change over a distance",
        "How much a critic h changes when an image moves by δ along its gradient, divided by δ: at small δ this is "
        "the gradient norm. Where the curves bend, the image has left the linear piece that the gradient describes; "
        "where the largest exceeds the bound on the gradient, a normalised critic jumped between two pieces.",
        f"{GRAN}, fig. 4",
        figures.finite_difference_lines,
    ),
    "lipschitz-layers": Caption(
        "Lipschitz constant by depth",
        "The largest Jacobian norm of the first k layers over {images} real, generated, mixed and noise "
        "images, before any gradient normalisation. Layers of constant 1 cannot raise it (Theorem 5); a convolution "
        "whose reshaped weight has norm 1 can, by as much as its norm as an operator.",
        f"{GNGAN}, fig. 3 and Theorem 5",
        figures.lipschitz_by_layer,
    ),
    "lipschitz-training": Caption(
        "Lipschitz constant of whole critics over training",
        "The largest gradient norm of the critic that the loss sees, over {images} images of each kind "
        "(real, generated, mixed, noise): a lower bound of its Lipschitz constant. Gradient normalisation keeps it "
        "below 1 at every depth; under spectral normalisation it is what the layers make of it.",
        f"{GNGAN}, fig. 3",
        figures.lipschitz_over_training,
    ),
    "spectra": Caption(
        "Singular values of the layers",
        "All singular values of each layer's weight as a matrix with a row per output channel: of the weight that "
        "is applied (solid) and of the underlying parameter where they differ (dashed). A spectrum that falls "
        "steeply means that the layer passes on few directions.",
        f"{SNGAN}, figs. 3 and 9",
        figures.spectra,
    ),
    "operators": Caption(
        "A convolution is not its matrix",
        "The largest singular value of each layer's applied weight as a matrix, which is what spectral "
        "normalisation sets, next to that of the convolution on a map that wraps around and of the layer as it acts "
        "on its input. The operator applies the matrix to overlapping windows and is larger, by the kernel's side "
        "at most at stride 1.",
        "Sedghi, Gupta and Long (ICLR 2019)",
        figures.operators,
    ),
    "sigmas": Caption(
        "Largest singular values over training",
        "The largest singular value of each layer's parameter as a matrix at steps of training (solid), and of the "
        "weight that is applied where it differs (dashed). Under gradient and spectral normalisation nothing bounds "
        "the parameters; clipping bounds them from outside.",
        f"{SNGAN}, fig. 9",
        figures.sigmas_over_training,
    ),
    "loss-slopes": Caption(
        "The loss where the critic uses it",
        "The derivatives of the three parts of the loss over Ω, the range of the critic's values on real and "
        "generated images. The flatter they are, the more the loss acts as a linear one.",
        f"{LIPSCHITZ}, fig. 4",
        figures.loss_slopes,
    ),
    "loss-domains": Caption(
        "Domain and slopes of the loss over training",
        "Ω, the range of the critic's values on real and generated images, and below it the interval of the "
        "generator loss's derivative on Ω, over training. A small Lipschitz constant, or a small α, keeps Ω where "
        "any loss is almost linear.",
        f"{LIPSCHITZ}, fig. 4",
        figures.domains_over_training,
    ),
    "gradient-norm-training": Caption(
        "Gradient norms over training",
        "Median (line), quartiles (band) and largest value (dashed) of the critic's gradient norm at the same real "
        "images and the same latents throughout. It is what reaches the generator through the critic.",
        f"{GRAN}, fig. 3, over time",
        figures.gradient_norms_over_training,
    ),
    "domain-sweep": Caption(
        "Score against the size of the domain",
        "The generator's Fréchet distance (lower is better) against the norm k that each layer is normalised to, "
        "and against the factor α by which a loss's domain is scaled, per loss; crosses are runs that diverged. If "
        "losses only work where they are almost linear, all curves are alike for small k and α and part for large "
        "ones.",
        f"{LIPSCHITZ}, tables 2-5",
        figures.score_lines,
    ),
    "ablations": Caption(
        "Activations and ζ",
        "The generator's Fréchet distance (lower is better) for gradient-normalised critics with other activations "
        "and with ζ in f / (‖∇f‖ + ζ), one dot per seed. The theorems need a piecewise linear critic; Softplus with "
        "a large β is almost one.",
        f"{GNGAN}, figs. 4 and 5",
        figures.score_bars,
    ),
    "robustness": Caption(
        "Robustness to optimiser settings",
        "The generator's Fréchet distance (lower is better) under the papers' settings of learning rate, Adam's "
        "decay rates and critic updates; crosses are runs that diverged. A robust method has bars of even height.",
        f"{SNGAN}, figs. 1 and 2; {GRAN}, fig. 2",
        figures.score_bars,
    ),
}
