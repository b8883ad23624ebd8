"""Every analysis of one critic, by name; `compare` has those of several."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from gnfast.analysis import measurements as measured
from gnfast.analysis.measurements import Subject
from gnfast.analysis.panels import write_panels
from gnfast.analysis.pooling import pooled
from gnfast.measure.loss_domain import PARTS
from gnfast.runs.rows import Panels, Rows


class NotApplicableError(ValueError):
    """An analysis needs something that this critic came without; the message says what."""


def analyze(
    subject: Subject,
    what: Sequence[str],
    out: Path,
    history: Rows = (),
    tell: Callable[[str], None] = lambda name: None,
) -> tuple[Path, list[str]]:
    """Draws analyses of a critic.

    Args:
        subject: the critic and its images.
        what: names from `ANALYSES`; empty for all that apply.
        out: folder for PNG, CSV and index.html.
        history: the rows of the run's metrics.jsonl, if it is a run's.
        tell: called with the name of each analysis before it begins, which may take a minute.

    Returns:
        The page, and a line for each analysis that was left out because it does not apply.

    Raises:
        ValueError: an unknown name, or a named analysis that does not apply.
    """
    require_known(what)
    drawn: Panels = {}
    left_out = []
    for name in what or ANALYSES:
        tell(name)
        try:
            drawn |= ANALYSES[name](subject, history)
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
    return write_panels(out, f"Critic of {subject.name}", lead, pooled([drawn])), left_out


def require_known(what: Sequence[str]) -> None:
    """Raises ValueError unless all are names of analyses."""
    if wrong := [name for name in what if name not in ANALYSES]:
        raise ValueError(f"--what: got {wrong[0]!r}, wanted some of {', '.join(ANALYSES)}")


def lipschitz(subject: Subject, history: Rows) -> Panels:
    """By layer, and over training where the run logged it; then the last point is over all images given here."""
    found = {"lipschitz-layers": measured.layer_lipschitz_rows(subject)}
    if logged := measured.lipschitz_training_rows(history, subject.name):
        found["lipschitz-training"] = logged + measured.model_lipschitz_rows(subject, step=subject.step)
    return found


def loss_domain(subject: Subject, history: Rows) -> Panels:
    """The slopes of its loss over Ω."""
    if subject.loss is None or subject.fake is None:
        raise NotApplicableError("needs a run, whose loss and generator are known")
    return {"loss-slopes": measured.slope_rows(subject)}


def require_logged(found: Panels) -> Panels:
    """The tables; raises NotApplicableError if one is empty."""
    if not all(found.values()):
        raise NotApplicableError("needs figures that a run logs every --probe-every steps; this one has none")
    return found


def _both(subject: Subject) -> Iterator[Subject]:
    """f, and f̂ where there is a normaliser."""
    yield dataclasses.replace(subject, name="f", method=None, tau=None, eps=None)
    if subject.method is not None:
        yield dataclasses.replace(subject, name=f"f̂ ({subject.method})")


def _training(subject: Subject, history: Rows) -> Panels:
    domains = [measured.domain_rows(history, part, subject.name, part.replace("_", ", ")) for part in PARTS]
    return require_logged(
        {
            "gradient-norm-training": measured.norm_training_rows(history),
            "sigmas": measured.sigma_rows(history, subject.name),
            "loss-domains": [row for rows in domains for row in rows],
        }
    )


ANALYSES: dict[str, Callable[[Subject, Rows], Panels]] = {
    "gradients": lambda subject, history: {
        "gradient-norms": [row for one in _both(subject) for row in measured.gradient_norm_rows(one)]
    },
    "finite-differences": lambda subject, history: {
        "finite-differences": [row for one in _both(subject) for row in measured.finite_difference_rows(one)]
    },
    "lipschitz": lipschitz,
    "singular-values": lambda subject, history: measured.spectrum_panels(subject),
    "loss-domain": loss_domain,
    "training": _training,
}
"""Name of an analysis to its figures."""
