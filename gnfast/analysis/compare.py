"""Several runs on one page: each analysis of one critic, with all of them on the same axes."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from gnfast.analysis import measurements as measured
from gnfast.analysis import subjects
from gnfast.analysis.critic_analyses import (
    ANALYSES,
    NotApplicableError,
    lipschitz,
    loss_domain,
    require_known,
    require_logged,
)
from gnfast.analysis.measurements import Subject
from gnfast.analysis.panels import write_panels
from gnfast.analysis.pooling import pooled
from gnfast.interop.device import resolve_device
from gnfast.io.rows import read_rows
from gnfast.runs.checkpoint import run_of
from gnfast.runs.record import read_run
from gnfast.runs.rows import Panels, Rows


def compare(
    folders: Mapping[str, Sequence[Path]],
    what: Sequence[str],
    out: Path,
    *,
    best: bool = False,
    data: str = "",
    n: int = 1024,
    n_jacobians: int = 32,
    seed: int = 0,
    device: str = "auto",
    echo: Callable[[str], None] = print,
    tell: Callable[[str], None] = lambda name: None,
) -> list[Path]:
    """Draws analyses of several runs, which are measured one after the other.

    Args:
        folders: label to the run folders, or RUN/checkpoints/FILE.pt, that it stands for: their images share a box,
            their other numbers are averaged.
        what: names from `critic_analyses.ANALYSES`; empty for all that apply.
        out: folder for PNG, CSV and index.html.
        best: take each run's best checkpoint instead of its newest.
        data: where real images come from; each run's own data set if empty.
        n: images of each kind.
        n_jacobians: of these, at how many the Jacobians of layers are taken.
        seed: of the choice of images and of the latents.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, …
        echo: called with a line for each analysis that was left out because it does not apply to a run.
        tell: called with run and name of each analysis before it begins.

    Returns:
        The pictures, in the page's order.

    Raises:
        ValueError: no runs, an unknown name, data that do not fit, or a label for runs of different losses or methods.
        NotApplicableError: a named analysis does not apply to a run, or none to any.
        RunError: one is no run, or has no readable checkpoint.
    """
    require_known(what)
    if not folders or not all(folders.values()):
        raise ValueError(f"folders: got {dict(folders)}, wanted labels with a run or more each")
    for label, runs in folders.items():
        if len(kinds := {_kind(run): None for run in runs}) > 1:
            raise ValueError(f"--labels: {label!r} stands for runs with {' and with '.join(kinds)}, wanted one kind")
    where, found = resolve_device(device), []
    for label, run in ((label, run) for label, runs in folders.items() for run in runs):
        subject = subjects.of_run(run, best=best, data=data, count=n, device=where, seed=seed)
        subject = dataclasses.replace(subject, name=label, jacobians=n_jacobians)
        history = read_rows(run_of(run) / "metrics.jsonl")
        for name in what or ANALYSES:
            tell(f"{run}: {name}")
            try:
                found.append(COMPARED[name](subject, history))
            except NotApplicableError as error:
                if what:
                    raise NotApplicableError(f"{run}: {name}: {error}") from error
                echo(f"left out {name} of {run}: {error}")
    panels = pooled(found)
    write_panels(out, f"Critics of {', '.join(folders)}", _lead(folders, n), panels)
    return [out / f"{name}.png" for name in panels]


def _lead(folders: Mapping[str, Sequence[Path]], n: int) -> str:
    runs = "; ".join(f"{label}: {', '.join(map(str, runs))}" for label, runs in folders.items())
    images = f"Measured at up to {n} real and as many generated images, with the critics in evaluation mode"
    return f"{images} and each with its own normaliser. Runs: {runs}."


def _kind(run: Path) -> str:
    """Its loss and regularisation, with what bounds its gradients."""
    config = read_run(run_of(run)).config
    own = {"τ": config.tau, "ε": config.eps}
    return ", ".join([subjects.family(config), *(f"{name} = {value:g}" for name, value in own.items() if value)])


def _gradients(subject: Subject, history: Rows) -> Panels:
    return {"gradient-norms": measured.gradient_norm_rows(subject)}


def _finite_differences(subject: Subject, history: Rows) -> Panels:
    return {"finite-differences": measured.finite_difference_rows(subject)}


def _training(subject: Subject, history: Rows) -> Panels:
    domains = measured.domain_rows(history, "critic_real", subject.family, subject.name)
    return require_logged({"loss-domains": domains, "sigmas": measured.sigma_rows(history, subject.name)})


COMPARED: dict[str, Callable[[Subject, Rows], Panels]] = {
    "gradients": _gradients,
    "finite-differences": _finite_differences,
    "lipschitz": lipschitz,
    "singular-values": lambda subject, history: measured.spectrum_panels(subject),
    "loss-domain": loss_domain,
    "training": _training,
}
"""Name of an analysis to its figures, for a critic that is called by its label."""
