"""Every analysis of one critic, by name."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from gnfast.analysis.measurements import (
    Subject,
    domain_rows,
    finite_difference_rows,
    gradient_rows,
    layer_lipschitz_rows,
    norm_training_rows,
    sigma_rows,
    slope_rows,
    spectrum_rows,
)
from gnfast.analysis.panels import Panel, write_panels
from gnfast.analysis.rows import Rows
from gnfast.measure.loss_domain import PARTS


class NotApplicableError(ValueError):
    """An analysis needs something that this critic came without; the message says what."""


def analyze(subject: Subject, what: Sequence[str], out: Path, history: Rows = ()) -> tuple[Path, list[str]]:
    """Draws analyses of a critic.

    Args:
        subject: the critic and its images.
        what: names from `ANALYSES`; empty for all that apply.
        out: folder for PNG, CSV and index.html.
        history: the rows of the run's metrics.jsonl, if it is a run's.

    Returns:
        The page, and a line for each analysis that was left out because it does not apply.

    Raises:
        ValueError: an unknown name, or a named analysis that does not apply.
    """
    if unknown := [name for name in what if name not in ANALYSES]:
        raise ValueError(f"--what: got {unknown[0]!r}, want some of {', '.join(ANALYSES)}")
    drawn: list[Panel] = []
    left_out = []
    for name in what or ANALYSES:
        try:
            drawn += ANALYSES[name](subject, history)
        except NotApplicableError as error:
            if what:
                raise
            left_out.append(f"{name}: {error}")
    lead = (
        f"Measured at {len(subject.real)} real"
        + (f" and {len(subject.fake)} generated" if subject.fake is not None else "")
        + f" images of {' × '.join(map(str, subject.real.shape[1:]))}, with the critic in evaluation mode"
        + (f" and the normaliser {subject.method}." if subject.method else " and without gradient normalisation.")
    )
    return write_panels(out, f"Critic of {subject.name}", lead, drawn), left_out


def _gradients(subject: Subject, history: Rows) -> list[Panel]:
    return [Panel("gradient-norms", [row for one in _plain_and_normalised(subject) for row in gradient_rows(one)])]


def _finite_differences(subject: Subject, history: Rows) -> list[Panel]:
    rows = [row for one in _plain_and_normalised(subject) for row in finite_difference_rows(one)]
    return [Panel("finite-differences", rows)]


def _lipschitz(subject: Subject, history: Rows) -> list[Panel]:
    return [Panel("lipschitz-layers", layer_lipschitz_rows(subject))]


def _singular_values(subject: Subject, history: Rows) -> list[Panel]:
    values, norms = spectrum_rows(subject)
    return [Panel("spectra", values), Panel("operators", norms)]


def _loss_domain(subject: Subject, history: Rows) -> list[Panel]:
    if subject.loss is None or subject.fake is None:
        raise NotApplicableError("needs a run, whose loss and generator are known")
    return [Panel("loss-slopes", slope_rows(subject))]


def _training(subject: Subject, history: Rows) -> list[Panel]:
    domains = [row for part in PARTS for row in domain_rows(history, part, subject.name, part.replace("_", ", "))]
    found = {
        "gradient-norm-training": norm_training_rows(history),
        "sigmas": sigma_rows(history, subject.name),
        "loss-domains": domains,
    }
    if not all(found.values()):
        raise NotApplicableError("needs a run that logged these figures while it trained (--probe-every)")
    return [Panel(name, rows) for name, rows in found.items()]


def _plain_and_normalised(subject: Subject) -> list[Subject]:
    """f, and f̂ where there is a normaliser."""
    plain = dataclasses.replace(subject, name="f", method=None, tau=None, eps=None)
    return [plain, *([] if subject.method is None else [dataclasses.replace(subject, name=f"f̂ ({subject.method})")])]


ANALYSES: dict[str, Callable[[Subject, Rows], list[Panel]]] = {
    "gradients": _gradients,
    "finite-differences": _finite_differences,
    "lipschitz": _lipschitz,
    "singular-values": _singular_values,
    "loss-domain": _loss_domain,
    "training": _training,
}
"""Name of an analysis to its figures."""
