"""The runs that a table asks for: one for each cell and seed, shared by all cells and tables that ask for it."""

import contextlib
import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gnfast import metrics
from gnfast.config.config import Config, require_kinds
from gnfast.config.papers import Cell, Item, differing
from gnfast.config.presets import PRESETS
from gnfast.data import ImageDataset
from gnfast.interop.device import resolve_device
from gnfast.reproduce.scale import Scale
from gnfast.runs.checkpoint import RunError
from gnfast.runs.record import read_settings
from gnfast.runs.sweep_file import Case, Sweep, shown
from gnfast.train.evaluate import load_split

NO_DATA = "no data"


@dataclass(frozen=True)
class Wanted:
    """A cell, and the runs that it is measured by.

    Attributes:
        cell: of the item.
        cases: one for each seed; none where `left_out` says why.
        left_out: why nothing is trained for it; empty where something is.
    """

    cell: Cell
    cases: tuple[Case, ...] = ()
    left_out: str = ""


def wanted(item: Item, scale: Scale, seeds: int, out: Path, only: Sequence[str] = ()) -> list[Wanted]:
    """What a table asks for.

    Args:
        item: the table or figure.
        scale: how large the runs are.
        seeds: runs of each cell; the paper's number at full size and 1 below it, if 0.
        out: the folder of all runs; those of this scale are below it.
        only: parts of rows' and columns' names; cells that have none of them are left out. Empty for all.

    Raises:
        ValueError: a cell names a preset or settings that there are not.
    """
    count = seeds or (item.seeds if scale.is_full else 1)
    return [_wanted(item, cell, scale, range(count), out, only) for cell in item.cells]


def asked_for(cell: Cell, part: str) -> bool:
    """Whether a word of --only is in the names of a cell's row and column."""
    return part.lower() in f"{cell.row} {cell.column}".lower()


def _wanted(item: Item, cell: Cell, scale: Scale, seeds: range, out: Path, only: Sequence[str]) -> Wanted:
    if not cell.preset:
        return Wanted(cell, left_out=cell.why)
    if only and not any(asked_for(cell, part) for part in only):
        return Wanted(cell, left_out="not asked for (--only)")
    own = differing(item, cell, config_of(cell.preset, {}))
    config = config_of(cell.preset, own)
    if not (scale.stand_in or config.data or "imagenet" in scale.data or scale.options.get("data")):
        return Wanted(cell, left_out=f"{NO_DATA}: {PRESETS[cell.preset].needs}")
    options = own | scale.settings(config)
    name = ",".join([cell.preset, *(f"{option}={shown(value, '+')}" for option, value in sorted(own.items()))])
    folder = out / scale.name / "runs"

    def case(seed: int) -> Case:
        file = re.sub(r"[^\w.,=+-]", "-", f"{name},seed={seed}")
        return Case({"run": name, "seed": seed}, cell.preset, {**options, "seed": seed}, folder / file)

    return Wanted(cell, tuple(map(case, seeds)))


def config_of(preset: str, options: dict[str, Any]) -> Config:
    """The settings of a preset with some replaced.

    Raises:
        ValueError: there is no such preset, or no such setting.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset: got {preset!r}, which there is not")
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
    require_kinds(values)
    return dataclasses.replace(PRESETS[preset].config, **values)


def sweep_of(found: Sequence[Wanted], out: Path, scale: Scale, processes: int, devices: Sequence[str]) -> Sweep:
    """The runs of some cells as one sweep, each once, all of the first seed before any of the next."""
    cases = {case.name: case for one in found for case in one.cases}
    ordered = sorted(cases.values(), key=lambda case: case.labels["seed"])
    threads = 1 if processes > 1 and not devices else 0
    return Sweep(out / scale.name / "runs", tuple(ordered), "", processes, tuple(devices), threads)


def with_data(found: Sequence[Wanted], progress: bool) -> list[Wanted]:
    """The cells whose images can be had, prepared; the others are left out, with the reason.

    Extractors that are trained on the images are trained here, once, and found ready by every run. Where images have no
    classes to train one on, runs are not scored.
    """
    known: dict[tuple[Any, ...], ImageDataset | str] = {}
    ready = []
    for one in found:
        if not one.cases:
            ready.append(one)
            continue
        config = one.cases[0].config()
        key = (config.data, config.split, config.resolution, config.channels, config.crop, config.data_root)
        if key not in known:
            known[key] = images_of(config, progress)
        images = known[key]
        if isinstance(images, str):
            ready.append(Wanted(one.cell, left_out=f"{NO_DATA}: {images}"))
        else:
            ready.append(dataclasses.replace(one, cases=tuple(fitted_to(images, case) for case in one.cases)))
    return ready


def as_trained(one: Wanted) -> Wanted:
    """The cell with as many classes as its runs have, which are those of the images that they were trained on."""

    def fitted(case: Case) -> Case:
        with contextlib.suppress(RunError):
            classes = read_settings(case.folder)[1].get("classes")
            if case.config().classes and type(classes) is int and classes > 0:
                return dataclasses.replace(case, options=case.options | {"classes": classes})
        return case

    return dataclasses.replace(one, cases=tuple(map(fitted, one.cases)))


def images_of(config: Config, progress: bool) -> ImageDataset | str:
    """The images of a run, or why they cannot be had."""
    try:
        images = load_split(config, config.split, progress)
    except (ValueError, OSError) as error:
        return " ".join(str(error).split())
    if config.extractor == "classifier" and images.labels is not None:
        metrics.load_extractor("classifier", images, device=resolve_device(config.device), progress=progress)
    return images


def fitted_to(images: ImageDataset, case: Case) -> Case:
    """The run on these images: with their number of classes, and unscored where a classifier has none to learn."""
    config, options = case.config(), dict(case.options)
    if config.classes:
        options["classes"] = len(images.classes)
    if config.extractor == "classifier" and images.labels is None:
        options["extractor"] = "none"
    return dataclasses.replace(case, options=options)
