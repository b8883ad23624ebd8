"""Every analysis of one critic, by name."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from gnfast.analysis import panels, tables
from gnfast.analysis.figures import Rows
from gnfast.analysis.report import Panel, write
from gnfast.analysis.tables import Subject
from gnfast.train.probe import QUANTILE_NAMES

KINDS = {"real": "real", "fake": "generated"}
History = list[dict[str, Any]]


class NotApplicableError(ValueError):
    """An analysis needs something that this critic came without; the message says what."""


def analyze(subject: Subject, what: Sequence[str], out: Path, history: History = ()) -> tuple[Path, list[str]]:
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
    return write(out, f"Critic of {subject.name}", lead, drawn), left_out


def _gradients(subject: Subject, history: History) -> list[Panel]:
    rows = tables.gradient_rows(_renamed(subject, "f"), normalized=False)
    if subject.method is not None:
        rows += tables.gradient_rows(_renamed(subject, f"f̂ ({subject.method})"))
    return [panels.gradient_norms(rows)]


def _finite_differences(subject: Subject, history: History) -> list[Panel]:
    plain = Subject("f", subject.critic, subject.real)
    rows = tables.finite_difference_rows(plain)
    if subject.method is not None:
        rows += tables.finite_difference_rows(_renamed(subject, f"f̂ ({subject.method})"))
    return [panels.finite_differences(rows)]


def _lipschitz(subject: Subject, history: History) -> list[Panel]:
    return [panels.lipschitz_layers(tables.layer_lipschitz_rows(subject))]


def _singular_values(subject: Subject, history: History) -> list[Panel]:
    values, norms = tables.spectrum_rows(subject)
    return [panels.spectra(values), panels.operators(norms)]


def _loss_domain(subject: Subject, history: History) -> list[Panel]:
    if subject.loss is None or subject.fake is None:
        raise NotApplicableError("needs a run, whose loss and generator are known")
    return [panels.loss_slopes(tables.slope_rows(subject))]


def _training(subject: Subject, history: History) -> list[Panel]:
    rows = [row for row in history if _holds(row, (f"grad_norm_{kind}_{q}" for kind in KINDS for q in QUANTILE_NAMES))]
    if not rows:
        raise NotApplicableError("needs a run that logged these figures while it trained (--probe-every)")
    return [
        panels.gradient_norm_training(_live_norms(rows)),
        panels.sigmas(_live_sigmas(rows, subject.name)),
        panels.loss_domains(_live_domains(rows, subject.name)),
    ]


def _live_norms(history: History) -> Rows:
    return [
        {"images": kind, "step": row["step"], **{q: row[f"grad_norm_{key}_{q}"] for q in QUANTILE_NAMES}}
        for key, kind in KINDS.items()
        for row in history
    ]


def _live_sigmas(history: History, name: str) -> Rows:
    prefix = "sigma/"
    return [
        {"critic": name, "step": row["step"], "layer": key.removeprefix(prefix), "raw": value, "applied": value}
        for row in history
        for key, value in row.items()
        if key.startswith(prefix) and _holds(row, [key])
    ]


def _live_domains(history: History, name: str) -> Rows:
    return [
        {
            "family": name,
            "setting": part.replace("_", ", "),
            "step": row["step"],
            "omega_min": row["omega_min"],
            "omega_max": row["omega_max"],
            "slope_min": row[f"slope_{part}_min"],
            "slope_max": row[f"slope_{part}_max"],
        }
        for part in ("critic_real", "critic_fake", "generator")
        for row in history
        if _holds(row, ("omega_min", "omega_max", f"slope_{part}_min", f"slope_{part}_max"))
    ]


def _holds(row: dict[str, Any], names: Iterable[str]) -> bool:
    """Whether a row has numbers under all the names: the file may be damaged."""
    return all(type(row.get(name)) in (int, float) for name in names)


def _renamed(subject: Subject, name: str) -> Subject:
    return Subject(**{**vars(subject), "name": name})


ANALYSES: dict[str, Callable[[Subject, History], list[Panel]]] = {
    "gradients": _gradients,
    "finite-differences": _finite_differences,
    "lipschitz": _lipschitz,
    "singular-values": _singular_values,
    "loss-domain": _loss_domain,
    "training": _training,
}
"""Name of an analysis to its figures."""
