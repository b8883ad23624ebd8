"""The trainings that are compared, with their images and what measures them: made before anything is timed."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gnfast import metrics
from gnfast.bench.iteration import PAPERS_WAY
from gnfast.bench.mode import PRECISIONS
from gnfast.config.config import AUTO, Config
from gnfast.config.precision import resolved
from gnfast.config.presets import PRESETS
from gnfast.data import ImageDataset, Request, find, registered
from gnfast.data.registry import SETS
from gnfast.io.files import expanded
from gnfast.metrics.weights import load_weights
from gnfast.reproduce.runs import fitted_to, images_of
from gnfast.reproduce.scale import Scale
from gnfast.runs.sweep_file import Case
from gnfast.train.evaluate import open_measures

GNFAST, PAPERS = "gnfast", "the papers' way"
"""The two that train; rows of speed have further ones."""

# The layout of the papers' code, and PyTorch's default for products on a GPU, TF32 in convolutions.
PAPERS_RUN = PAPERS_WAY | {"memory_format": "contiguous", "precision": "tf32"}
FOLDERS = {GNFAST: "gnfast", PAPERS: "papers"}
# Fifty thousand, as the papers have it, would take longer to score than many of these runs train for.
MOST_FAKE = 10_000


@dataclass(frozen=True)
class Training:
    """A preset to be trained both ways.

    Attributes:
        preset: its name.
        cases: the two runs, without what follows from their time.
        images: the real ones.
        note: why it is measured as it is; empty where that goes without saying.
    """

    preset: str
    cases: dict[str, Case]
    images: ImageDataset
    note: str = ""

    @property
    def config(self) -> Config:
        """gnfast's settings."""
        return self.cases[GNFAST].config()


def prepared(
    presets: Sequence[str],
    scale: Scale,
    out: Path,
    device: torch.device,
    progress: bool,
    echo: Callable[[str], None],
) -> tuple[list[Training], dict[str, str]]:
    """The trainings of the presets whose images can be had, and why the others cannot be, by their names.

    Data sets are read, classifiers are trained and real images are measured here, once, so that no run's time has it.

    Raises:
        ValueError: no preset has images, or a setting of one is wrong.
    """
    cases = {name: _case(name, scale, out, device) for name in presets}
    # First of all, since reading one data set may take an hour.
    lost = {name: why for name, case in cases.items() if (why := _missing(case.config()))}
    for line in left_out(lost) if len(lost) < len(cases) else ():
        echo(f"not measured: {line}")
    trainings = []
    for name in [name for name in presets if name not in lost]:
        images = images_of(cases[name].config(), progress)
        if isinstance(images, str):
            lost[name] = images
            echo(f"not measured: {name}: {images}")
            continue
        trainings.append(_training(fitted_to(images, cases[name]), images, device, progress))
        if trainings[-1].note:
            echo(f"{name}: {trainings[-1].note}")
    if not trainings:
        raise ValueError(f"--presets: there are no images for any: {'; '.join(left_out(lost))}")
    return trainings, lost


def left_out(lost: dict[str, str]) -> list[str]:
    """Why presets are not measured, in a line for all that have that in common."""
    return [", ".join(name for name in lost if lost[name] == why) + f": {why}" for why in dict.fromkeys(lost.values())]


def precision_of(config: Config, device: torch.device) -> str:
    """The precision of a run's products on a device, one of `PRECISIONS`.

    Raises:
        ValueError: it is another.
    """
    if (found := resolved(config.precision, device)) not in PRECISIONS:
        raise ValueError(f"--set: got precision={config.precision}, wanted auto or one of {', '.join(PRECISIONS)}")
    return found


def _case(name: str, scale: Scale, out: Path, device: torch.device) -> Case:
    """gnfast's run of a preset.

    Raises:
        ValueError: a setting that it cannot have.
    """
    config = PRESETS[name].config
    options = scale.settings(config) | {"device": str(device)}
    if config.data in scale.data and SETS[config.data].archive is None:
        # Faces and scenes, whose splits only the named set knows.
        options |= {"data": config.data, "data_root": scale.data[config.data]}
    if "n_fake" not in scale.options:
        options["n_fake"] = min(options.get("n_fake", config.n_fake), MOST_FAKE)
    case = Case({}, name, options, out / name / FOLDERS[GNFAST])
    precision_of(case.config(), device)
    return case


def _missing(config: Config) -> str:
    """Why there are no images, as far as can be told without reading them; empty if they are there."""
    if not config.data:
        return "its images have no official archive: give --data imagenet=PATH"
    named = ("split", "resolution", "channels", "crop", "download")
    root = expanded(config.data_root) if config.data_root else None
    try:
        find(config.data, Request(**{name: getattr(config, name) for name in named}, root=root))
    except (ValueError, OSError) as error:
        advice = f"; or give --data {config.data}=PATH" if config.data in registered() else ""
        return " ".join(str(error).split()) + advice
    return ""


def _training(case: Case, images: ImageDataset, device: torch.device, progress: bool) -> Training:
    """A preset's training, with what measures it ready."""
    case, note = _scored(case, images, progress)
    config = case.config()
    measures = open_measures(config, images, device, progress)
    if measures.extractor is not None:
        how = {"n": config.n_real or None, "batch_size": config.batch_g, "progress": progress}
        metrics.reference_statistics(measures.reference, measures.extractor, **how)
    papers = dataclasses.replace(case, options=case.options | PAPERS_RUN, folder=case.folder.with_name(FOLDERS[PAPERS]))
    return Training(case.preset, {GNFAST: case, PAPERS: papers}, images, note)


def _scored(case: Case, images: ImageDataset, progress: bool) -> tuple[Case, str]:
    """The run with an extractor that there is, and what to say of that."""
    config, why = case.config(), ""
    if config.extractor == "inception":
        try:
            load_weights(config.extractor_weights or None, progress=progress)
            return case, ""
        except ValueError as error:
            why = f"no FID: {' '.join(str(error).split())}; "
    if config.extractor in ("inception", AUTO):
        case = _with(case, extractor="none" if images.labels is None else "classifier")
    if case.config().extractor == "none":
        return case, f"{why}not trained, for nothing measures it: a classifier needs classes (--set extractor=…)"
    return case, f"{why}distances are in the features of a classifier" if why else ""


def _with(case: Case, **options: Any) -> Case:
    return dataclasses.replace(case, options=case.options | options)
