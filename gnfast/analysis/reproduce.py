"""The papers' figures from small training runs: trains what is missing, keeps what each run gave, draws."""

import concurrent.futures
import dataclasses
import functools
import json
import multiprocessing
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gnfast import metrics
from gnfast.analysis import tables
from gnfast.analysis.experiments import BASE, FIGURES, Record, Run
from gnfast.analysis.figures import Rows
from gnfast.analysis.report import write
from gnfast.analysis.tables import Subject
from gnfast.config.config import Config
from gnfast.data import ImageDataset, to_float
from gnfast.data import load as load_data
from gnfast.errors import FallbackWarning
from gnfast.interop.device import resolve_device
from gnfast.io.files import atomic_write, write_text
from gnfast.measure.gradient_norms import evaluation
from gnfast.metrics.arrays import read_arrays
from gnfast.runs.record import DamagedFileError, read_json
from gnfast.train.evaluate import sampler
from gnfast.train.networks import sample
from gnfast.train.probe import layer_sigmas
from gnfast.train.state import NonFiniteLossError, State

POINTS = 6
IMAGES = 256
JACOBIANS = 8
FAKES = 2048
EXTRACTOR = "classifier"


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
    echo: Callable[[str], None] = print,
) -> Path:
    """Draws figures, after training the runs that they need and that `out` does not hold yet.

    Args:
        scale: how large the runs are.
        names: of figures in `FIGURES`; empty for all.
        out: folder; gets records/RUN.json, a copy of the images, and PNG, CSV and index.html.
        jobs: runs at a time, each in a process with one thread; 0 for as many as there are CPUs.
        echo: called with a line per finished run.

    Returns:
        The page.

    Raises:
        ValueError: an unknown figure, or data that do not suit.
    """
    if unknown := [name for name in names if name not in FIGURES]:
        raise ValueError(f"--reproduce: got {unknown[0]!r}, want some of {', '.join(FIGURES)}")
    chosen = {name: FIGURES[name] for name in names or FIGURES}
    resolve_device(scale.device)
    if not (scale.steps_factor > 0 and scale.width > 0):
        raise ValueError("--steps-factor, --width: want positive numbers")
    dataset, images = _prepare(scale, out)
    runs = {run.name: run for spec in chosen.values() for run in spec.runs}
    missing = [run for run in runs.values() if _saved(run, scale, dataset, out) is None]
    if any("score" in run.measures for run in missing):
        # Trained once here, found ready by every process.
        _extractor(dataset, out, scale)
    for index, run in enumerate(_each(missing, scale, out, images, jobs), 1):
        echo(f"{index}/{len(missing)} {run}")
    records = {name: _saved(run, scale, dataset, out) for name, run in runs.items()}
    panels = [
        panel for spec in chosen.values() for panel in spec.panels([(run, records[run.name]) for run in spec.runs])
    ]
    lead = (
        f"Trained on {dataset}: {len(runs)} runs of small networks (width {scale.width:g}), steps × "
        f"{scale.steps_factor:g}. Each figure shows what a paper shows at full size; scores of runs this short compare "
        "methods under one budget and say nothing about the best that a method reaches."
    )
    return write(out, "What normalisation does to a critic", lead, panels)


def settings_of(run: Run, scale: Scale, channels: int) -> dict[str, Any]:
    """The fields of `gnfast.train.Config` that a run sets at a scale."""
    own = {"resolution": scale.resolution, "channels": channels, "width": scale.width, "device": scale.device}
    settings = {"data": scale.data, "threads": 1, **own, **BASE, **run.changes}
    return {**settings, "steps": max(1, round(settings["steps"] * scale.steps_factor))}


def train(
    run: Run,
    config: Config,
    dataset: ImageDataset,
    extractor: metrics.FeatureExtractor | None = None,
    statistics: Path | None = None,
) -> Record:
    """One run with its measurements.

    Args:
        run: what to measure, and what its rows are called.
        config: its settings.
        dataset: the real images.
        extractor: for the score; needed if the run measures it.
        statistics: folder for the real images' features, as `gnfast.metrics.evaluate` keeps them.
    """
    state = State(config, dataset, resolve_device(config.device))
    due = {round(config.steps * index / POINTS) for index in range(POINTS + 1)}
    rows: dict[str, Rows] = {}
    features = "" if extractor is None else extractor.name
    while True:
        if state.step in due:
            try:
                if state.pending:
                    state.take_losses()
                _over_training(run, state, rows)
            except (NonFiniteLossError, ValueError):
                return Record(rows, None, features, state.step)
        if state.step == config.steps:
            break
        state.update()
    if "critic" in run.measures:
        subject = _subject(run, state)
        values, norms = tables.spectrum_rows(subject)
        rows |= {"spectra": values, "operators": norms, "gradients": tables.gradient_rows(subject)}
        rows["differences"] = tables.finite_difference_rows(subject)
    distance = _distance(state, extractor, statistics) if "score" in run.measures else None
    return Record(rows, distance, features, None)


def _over_training(run: Run, state: State, rows: dict[str, Rows]) -> None:
    """Measurements at one step of training; a critic that is no longer finite raises ValueError."""
    keys = {"step": state.step}
    if "sigmas" in run.measures:
        with evaluation(state.critic):
            raw, applied = layer_sigmas(state.critic), layer_sigmas(state.critic, lambda layer: layer.weight)
        rows.setdefault("sigmas", []).extend(
            {"critic": run.label, **keys, "layer": layer, "raw": sigma, "applied": applied[layer]}
            for layer, sigma in raw.items()
        )
    if "domain" in run.measures:
        row = tables.domain_row(_subject(run, state))
        slope = {"slope_min": row["slope_generator_min"], "slope_max": row["slope_generator_max"]}
        rows.setdefault("domain", []).append(
            {**keys, "omega_min": row["omega_min"], "omega_max": row["omega_max"], **slope}
        )
    if "lipschitz" in run.measures:
        subject, depth = _subject(run, state), run.keys["depth"]
        rows.setdefault("layers", []).extend(
            tables.layer_lipschitz_rows(subject, count=JACOBIANS, step=state.step, depth=depth)
        )
        rows.setdefault("model", []).extend(tables.model_lipschitz_rows(subject, step=state.step, depth=depth))


def _subject(run: Run, state: State) -> Subject:
    config, dataset = state.config, state.batches.dataset
    random = torch.Generator().manual_seed(0)
    chosen = torch.randperm(len(dataset), generator=random)[:IMAGES]
    real = to_float(dataset.images[chosen], state.device).contiguous(memory_format=state.format)
    fake = sample(state.generator, *state.latents(len(real), random)).contiguous(memory_format=state.format)
    method = None if config.method == "none" else config.method
    return Subject(run.label, state.critic, real, fake, method, config.tau, config.eps, state.loss)


def _distance(state: State, extractor: metrics.FeatureExtractor, statistics: Path | None) -> float | None:
    dataset = state.batches.dataset
    draw = sampler(state.config, state.generator, state.config.seed + 3, batch_statistics=True)
    options = {"n_fake": min(len(dataset), FAKES), "batch_size": state.config.batch_g, "cache_dir": statistics}
    found = metrics.evaluate(draw, dataset, extractor, progress=False, kid_subsets=0, **options).distance
    return found if np.isfinite(found) else None


def _each(runs: list[Run], scale: Scale, out: Path, images: Path, jobs: int) -> Iterator[str]:
    """Trains runs and yields a line about each as it is done."""
    work = functools.partial(_train_and_save, scale=scale, out=out, images=images)
    count = min(jobs or os.cpu_count() or 1, max(1, len(runs)))
    if count == 1:
        yield from map(work, runs)
        return
    # Longest first would need estimates; spawned processes do not inherit threads.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(count, mp_context=context) as pool:
        futures = [pool.submit(work, run) for run in runs]
        try:
            for future in concurrent.futures.as_completed(futures):
                yield future.result()
        finally:
            for future in futures:
                future.cancel()


def _train_and_save(run: Run, scale: Scale, out: Path, images: Path) -> str:
    torch.set_num_threads(1)
    dataset = _dataset(images)
    extractor = _extractor(dataset, out, scale) if "score" in run.measures else None
    config = Config(**settings_of(run, scale, dataset.images.shape[1]))
    with warnings.catch_warnings():
        # Activations with curvature are there for comparison; that they need double backward is no news.
        warnings.simplefilter("ignore", FallbackWarning)
        record = train(run, config, dataset, extractor, out / "statistics")
    content = {"settings": _key(run, scale, dataset), **dataclasses.asdict(record)}
    (out / "records").mkdir(exist_ok=True)
    write_text(_path(run, out), json.dumps(content) + "\n")
    if record.diverged is not None:
        return f"{run.name}: diverged by step {record.diverged}"
    return f"{run.name}" + ("" if record.distance is None else f": Fréchet distance {record.distance:.4g}")


def _saved(run: Run, scale: Scale, dataset: ImageDataset, out: Path) -> Record | None:
    """What a run gave, if it was trained with just these settings and images."""
    try:
        content = read_json(_path(run, out))
    except (FileNotFoundError, DamagedFileError):
        return None
    fields = {"settings", *(field.name for field in dataclasses.fields(Record))}
    if not isinstance(content, dict) or content.keys() != fields:
        return None
    if content.pop("settings") != _key(run, scale, dataset):
        return None
    return Record(**content)


def _key(run: Run, scale: Scale, dataset: ImageDataset) -> dict[str, Any]:
    settings = settings_of(run, scale, dataset.images.shape[1])
    # The same images under another path are the same images.
    key = {**settings, "data": dataset.fingerprint, "measures": run.measures, "label": run.label}
    # As JSON gives it back: lists for tuples.
    return json.loads(json.dumps(key))


def _path(run: Run, out: Path) -> Path:
    return out / "records" / f"{run.name}.json"


def _prepare(scale: Scale, out: Path) -> tuple[ImageDataset, Path]:
    """The images that all runs use, also in a file that every process reads fast."""
    loaded = load_data(scale.data, resolution=scale.resolution, progress=False)
    if loaded.labels is None:
        raise ValueError(f"--data: {scale.data} has no class folders, which the score's features are trained on")
    order = torch.randperm(len(loaded), generator=torch.Generator().manual_seed(0))[: scale.images or None]
    dataset = ImageDataset(loaded.name, loaded.images[order], loaded.labels[order], loaded.classes)
    path = out / f"images-{dataset.fingerprint[:12]}.npz"
    if not path.exists():
        content = {"images": dataset.images.numpy(), "labels": dataset.labels.numpy()}
        with atomic_write(path) as part, part.open("wb") as file:
            np.savez(file, name=np.array(dataset.name), classes=np.array(dataset.classes), **content)
    return dataset, path


@functools.lru_cache(1)
def _dataset(path: Path) -> ImageDataset:
    found = read_arrays(path, ("images", "labels", "name", "classes"))
    images, labels = torch.from_numpy(found["images"]), torch.from_numpy(found["labels"])
    return ImageDataset(str(found["name"]), images, labels, tuple(map(str, found["classes"])))


@functools.lru_cache(1)
def _extractor(dataset: ImageDataset, out: Path, scale: Scale) -> metrics.FeatureExtractor:
    return metrics.load_extractor(
        EXTRACTOR, dataset, cache_dir=out / "extractors", device=resolve_device(scale.device), progress=False
    )
