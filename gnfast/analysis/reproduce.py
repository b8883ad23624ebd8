"""The papers' figures from small training runs: a sweep trains what is missing, then the figures are drawn."""

import dataclasses
import os
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from gnfast import metrics
from gnfast.analysis.experiments import BASE, EXPERIMENTS, FIGURES, PRESET, Trained
from gnfast.analysis.panels import write_panels
from gnfast.config.config import AUTO
from gnfast.data import ImageDataset
from gnfast.data import load as load_data
from gnfast.interop.device import resolve_device
from gnfast.io.files import atomic_write
from gnfast.runs.checkpoint import RunError
from gnfast.runs.launch import run_sweep
from gnfast.runs.sweep_file import Sweep, sweep_of
from gnfast.runs.sweep_results import ENDED, collect
from gnfast.train.logs import grid

# Measurements over training, apart from one at the start.
POINTS = 6


@dataclass(frozen=True)
class Scale:
    """How large the runs are."""

    data: str = "digits"
    """Where the real images come from, as for `train`. Scores are in the features of a classifier of their classes, or
    in Inception's where there are none."""
    resolution: int = 16
    """Side of the images in pixels, a multiple of 4."""
    images: int = 5000
    """How many images of the data set to use, the first of a random order; 0 for all."""
    steps_factor: float = 1.0
    """Factor on the number of steps of every run."""
    width: float = 0.25
    """Factor on the channels of the networks."""
    device: str = "cpu"
    """`cpu`, `cuda`, …; small networks gain nothing from a GPU."""


def reproduce(
    scale: Scale,
    names: Sequence[str],
    out: Path,
    *,
    jobs: int = 0,
    progress: bool = False,
    echo: Callable[[str], None] = print,
) -> tuple[Path | None, int]:
    """Draws figures, after training the runs that they need and that `out` does not hold yet.

    Args:
        scale: how large the runs are.
        names: of figures in `FIGURES`; empty for all.
        out: folder; gets the runs, in runs/, a copy of the images where not all are used, PNG, CSV and index.html.
        jobs: runs at a time, each in a process with one thread; 0 for as many as there are CPUs.
        progress: show a bar over the steps of all runs on stderr.
        echo: called with a line per run that ended.

    Returns:
        The page and 0, or None and the signal that stopped the runs.

    Raises:
        ValueError: an unknown figure, or data that do not suit.
        RunError: a run failed.
    """
    if unknown := [name for name in names if name not in FIGURES]:
        raise ValueError(f"--reproduce: got {unknown[0]!r}, wanted some of {', '.join(FIGURES)}")
    chosen = [FIGURES[name] for name in names or FIGURES]
    device = resolve_device(scale.device)
    if not (scale.steps_factor > 0 and scale.width > 0):
        raise ValueError(
            f"--steps-factor, --width: got {scale.steps_factor} and {scale.width}, wanted positive numbers"
        )
    source, dataset = _prepared(scale, out)
    experiments = dict.fromkeys(name for figure in chosen for name in figure.experiments)
    sweep = sweep_for(scale, experiments, source, dataset, out, jobs or os.cpu_count() or 1)
    for extractor in {case.config().extractor for case in sweep.cases} - {"none", AUTO}:
        # Trained or fetched once here, found ready by every run.
        metrics.load_extractor(extractor, dataset, device=device, progress=False)
    if stopped := run_sweep(sweep, progress=progress, echo=echo):
        return None, stopped
    found = collect(sweep).runs
    if failed := [run for run in found if run.state.status not in ENDED or run.record is None]:
        log = sweep.out / "output" / f"{failed[0].case.name}.txt"
        raise RunError(f"{len(failed)} of {len(found)} runs failed; {log}: {failed[0].state.message}")
    runs = [Trained(run, device) for run in found]
    panels = {}
    for figure in chosen:
        panels |= figure.panels([run for run in runs if run.labels["experiment"] in figure.experiments])
    lead = (
        f"Trained on {dataset}: {len(runs)} runs of small networks (width {scale.width:g}), steps × "
        f"{scale.steps_factor:g}. Each figure shows what a paper shows at full size; scores of runs this short compare "
        "methods under one budget and say nothing about the best that a method reaches."
    )
    return write_panels(out, "What normalisation does to a critic", lead, panels), 0


def sweep_for(
    scale: Scale, experiments: Iterable[str], source: str, dataset: ImageDataset, out: Path, jobs: int
) -> Sweep:
    """The runs of some experiments at a scale, as one sweep over the images of `source`."""
    # Runs of another scale are other runs.
    place = f"{dataset.fingerprint[:12]},width={scale.width:g},steps={scale.steps_factor:g}"
    channels = dataset.images.shape[1]
    own = {"data": source, "resolution": scale.resolution, "channels": channels, "width": scale.width}
    own |= {"device": scale.device, "n_fake": min(BASE["n_fake"], len(dataset))}
    own["extractor"] = "inception" if dataset.labels is None else "classifier"
    cases = []
    for name in experiments:
        spec = EXPERIMENTS[name]
        content = {
            "preset": PRESET,
            "base": BASE | own | spec.get("base", {}),
            "case": {"experiment": [{"name": name}], **spec.get("case", {})},
            "grid": spec.get("grid", {}),
        }
        sweep = sweep_of(content, out / "runs" / place)
        for case in sweep.cases:
            steps = max(1, round(case.options["steps"] * scale.steps_factor))
            options = case.options | {"steps": steps, "probe_every": max(1, round(steps / POINTS))}
            cases.append(dataclasses.replace(case, options=options))
    return dataclasses.replace(sweep, cases=tuple(cases), score="distance_raw", processes=jobs, threads=1)


def _prepared(scale: Scale, out: Path) -> tuple[str, ImageDataset]:
    """The images that all runs use, and where these find them: a part of a data set is written to a zip file."""
    loaded = load_data(scale.data, resolution=scale.resolution, progress=False)
    if not scale.images or len(loaded) <= scale.images:
        return scale.data, loaded
    order = torch.randperm(len(loaded), generator=torch.Generator().manual_seed(0))[: scale.images]
    path = out / f"images-{loaded.fingerprint[:12]}-{scale.images}.zip"
    if not path.exists():
        with atomic_write(path) as part, zipfile.ZipFile(part, "w") as archive:
            for index in order.tolist():
                picture = grid(loaded.images[index : index + 1], scale=1, gap=0)
                folder = "" if loaded.labels is None else f"class-{int(loaded.labels[index]):04d}/"
                with archive.open(f"{folder}{index:08d}.png", "w") as file:
                    picture.save(file, "PNG")
    return str(path), load_data(path, resolution=scale.resolution, progress=False)
