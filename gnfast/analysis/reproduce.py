"""The papers' figures from small training runs: a sweep trains what is missing, then the figures are drawn."""

import dataclasses
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from gnfast import metrics
from gnfast.analysis.experiments import BASE, EXPERIMENTS, FIGURES, PRESET
from gnfast.analysis.panels import write_panels
from gnfast.analysis.trained import Trained
from gnfast.data import ImageDataset
from gnfast.data import load as load_data
from gnfast.interop.device import resolve_device
from gnfast.io.files import atomic_write
from gnfast.runs.checkpoint import RunError
from gnfast.runs.launch import run_sweep
from gnfast.runs.sweep_file import Case, Sweep, sweep_of
from gnfast.runs.sweep_results import ENDED, collect

# Measurements over training, apart from one at the start.
POINTS = 6


@dataclass(frozen=True)
class Scale:
    """How large the runs are.

    Attributes:
        data: where real images come from, as `gnfast.data.load` takes it; with class labels, for the score's features.
        resolution: side of the images in pixels, a multiple of 8.
        images: how many of them, 0 for all.
        steps_factor: factor on the steps of every run.
        width: factor on the networks' channels.
        device: where to train.
    """

    data: str = "digits"
    resolution: int = 16
    images: int = 5000
    steps_factor: float = 1.0
    width: float = 0.25
    device: str = "cpu"


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
    if any(case.config().extractor == "classifier" for case in sweep.cases):
        # Trained once here, found ready by every run.
        metrics.load_extractor("classifier", dataset, device=device, progress=False)
    if stopped := run_sweep(sweep, progress=progress, echo=echo):
        return None, stopped
    found = collect(sweep).runs
    if failed := [run for run in found if run.state.status not in ENDED or run.record is None]:
        log = sweep.out / "output" / f"{failed[0].case.name}.txt"
        raise RunError(f"{len(failed)} of {len(found)} runs failed; {log}: {failed[0].state.message}")
    runs = [Trained(run, device) for run in found]
    panels = {}
    for figure in chosen:
        panels |= figure.panels([run for run in runs if run.experiment in figure.experiments])
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
    sweeps = [
        sweep_of(
            {
                "preset": PRESET,
                "base": BASE | own | spec.get("base", {}),
                "case": {"experiment": [{"name": name}], **spec.get("case", {})},
                "grid": spec.get("grid", {}),
            },
            out / "runs" / place,
        )
        for name, spec in ((name, EXPERIMENTS[name]) for name in experiments)
    ]
    cases = tuple(_scaled(case, scale.steps_factor) for sweep in sweeps for case in sweep.cases)
    return dataclasses.replace(sweeps[0], cases=cases, score="distance_raw", processes=jobs, threads=1)


def _scaled(case: Case, factor: float) -> Case:
    steps = max(1, round(case.options["steps"] * factor))
    return dataclasses.replace(
        case, options=case.options | {"steps": steps, "probe_every": max(1, round(steps / POINTS))}
    )


def _prepared(scale: Scale, out: Path) -> tuple[str, ImageDataset]:
    """The images that all runs use, and where these find them: a part of a data set is written to a zip file."""
    loaded = load_data(scale.data, resolution=scale.resolution, progress=False)
    if loaded.labels is None:
        raise ValueError(f"--data: {scale.data} has no class folders, which the score's features are trained on")
    if not scale.images or len(loaded) <= scale.images:
        return scale.data, loaded
    order = torch.randperm(len(loaded), generator=torch.Generator().manual_seed(0))[: scale.images]
    path = out / f"images-{loaded.fingerprint[:12]}-{scale.images}.zip"
    if not path.exists():
        with atomic_write(path) as part, zipfile.ZipFile(part, "w") as archive:
            for name, image in _files(loaded, order.tolist()):
                with archive.open(name, "w") as file:
                    image.save(file, "PNG")
    return str(path), load_data(path, resolution=scale.resolution, progress=False)


def _files(dataset: ImageDataset, chosen: Iterable[int]) -> Iterator[tuple[str, Image.Image]]:
    """Images in a folder for each class."""
    for index in chosen:
        pixels = dataset.images[index].permute(1, 2, 0).numpy()
        picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels.copy())
        yield f"class-{int(dataset.labels[index]):04d}/{index:08d}.png", picture
