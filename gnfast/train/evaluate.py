"""Scores while training and of finished runs, in the features of an extractor that every result names."""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gnfast import metrics
from gnfast.config.config import Config
from gnfast.data import DataWarning, ImageDataset
from gnfast.data import load as load_data
from gnfast.interop.device import moved
from gnfast.io.numbers import number
from gnfast.metrics.evaluate import image_count
from gnfast.train.draws import latents
from gnfast.train.networks import sample
from gnfast.train.parallel import ALONE, Group
from gnfast.train.state import State

# Of the kernel distance, while training: enough for a curve. `gnfast eval` takes more.
KID_SUBSETS = 10


class Measures(NamedTuple):
    """What a run is measured with.

    Attributes:
        reference: the real images.
        extractor: what measures features; None where nothing is measured.
    """

    reference: ImageDataset
    extractor: metrics.FeatureExtractor | None = None


def evaluate(state: State, measures: Measures, progress: bool) -> tuple[metrics.Scores, metrics.Scores]:
    """The scores of the raw and of the averaged generator, as the run's settings say.

    Both, and every evaluation of a run, see the same latents, so that differences are the generators'. While the
    average is a copy, it is measured once. All processes of a run take part: each draws and measures its share of the
    batches, and all get the scores of one process.

    Raises:
        RuntimeError: the processes' extractors have different weights.
    """
    group = state.group
    group.require_same("the extractor's weights", measures.extractor.fingerprint)
    seed, count, batch = scores_seed(state.config.seed), state.config.n_fake, state.config.batch_g
    inputs = state.config.z_dim, state.config.classes, batch
    statistics = samples_with_batch_statistics(state.config.sample_bn, measures.extractor)

    def scores(generator: nn.Module) -> metrics.Scores:
        return metrics.evaluate(
            sampler(group.as_leads(generator), *inputs, seed, statistics, group),
            *measures,
            n_fake=count,
            n_real=state.config.n_real or None,
            batch_size=batch,
            kid_subsets=KID_SUBSETS,
            seed=seed,
            group=group.processes,
            progress=progress and count >= 10_000,
        )

    raw, ema = state.generators().values()
    of_raw = scores(raw)
    return of_raw, of_raw if state.ema.is_copy(state.step) else scores(ema)


def scores_seed(seed: int) -> int:
    """The seed of the latents that a run of this seed is scored with."""
    return seed + 3


def sampler(
    generator: nn.Module,
    z_dim: int,
    classes: int,
    batch: int,
    seed: int,
    batch_statistics: bool,
    group: Group = ALONE,
) -> Callable[[int], Tensor]:
    """A function count -> (count, C, H, W) in [-1, 1], count at most `batch`, of a generator where it is.

    Labels of class-conditional generators are uniform. Of the batches of one process, each of a group gets one in turn.
    """
    noise = torch.Generator().manual_seed(seed)
    place = next(generator.parameters())

    def draw(count: int) -> Tensor:
        # Whole batches even for the last one: its statistics must be those of a full batch.
        z, y = [latents(batch, z_dim, classes, noise) for _ in range(group.world)][group.rank]
        y = None if y is None else moved(y, place.device)
        return sample(generator, moved(z.to(place.dtype), place.device), y, batch_statistics=batch_statistics)[:count]

    return draw


def of_classes(generator: nn.Module, z_dim: int, seed: int, batch_statistics: bool) -> Callable[[Tensor], Tensor]:
    """A function (B,) labels -> (B, C, H, W) in [-1, 1] of a class-conditional generator where it is."""
    noise = torch.Generator().manual_seed(seed)
    place = next(generator.parameters())

    def draw(labels: Tensor) -> Tensor:
        z = latents(len(labels), z_dim, 0, noise).z.to(place.dtype)
        return sample(generator, moved(z, place.device), moved(labels, place.device), batch_statistics=batch_statistics)

    return draw


def as_row(raw: metrics.Scores, ema: metrics.Scores) -> dict[str, Any]:
    """The scores of the raw and the EMA generator as one row of metrics.jsonl."""
    row: dict[str, Any] = {}
    for key, name in (("distance", "distance"), ("is", "is_mean"), ("kid", "kid_mean")):
        for kind, scores in (("raw", raw), ("ema", ema)):
            if (value := getattr(scores, name)) is not None:
                row[f"{key}_{kind}"] = value
    row |= {"extractor": ema.extractor, "n_real": ema.n_real, "n_fake": ema.n_fake}
    return row | ({"protocol": ema.protocol} if ema.protocol else {})


def as_line(raw: metrics.Scores, ema: metrics.Scores) -> str:
    """The same for people, in one line."""
    parts = [f"{ema.distance_name} {number(ema.distance)} (EMA), {number(raw.distance)} (raw)"]
    if ema.is_mean is not None and raw.is_mean is not None:
        parts.append(f"{'IS' if ema.is_fid else 'class score'} {number(ema.is_mean)}, {number(raw.is_mean)}")
    if ema.kid_mean is not None and raw.kid_mean is not None:
        name = "KID" if ema.is_fid else "kernel distance"
        parts.append(f"{name} × 1000 {number(ema.kid_mean)}, {number(raw.kid_mean)}")
    counts = f"{ema.n_real} real and {ema.n_fake} generated images"
    return "; ".join([*parts, counts + (f", protocol {ema.protocol}" if ema.protocol else "")])


def samples_with_batch_statistics(sample_bn: str, extractor: metrics.FeatureExtractor) -> bool:
    """Whether batch norm takes the batch's statistics: as the run's setting says, unless the protocol insists."""
    return sample_bn == "batch" or (extractor.protocol is not None and extractor.protocol.batch_statistics)


def open_measures(config: Config, dataset: ImageDataset, device: torch.device, progress: bool) -> Measures:
    """What a run's settings say to measure with: the training images, unless `eval_split` names others.

    Raises:
        ValueError: there is no such extractor, protocol, weights or split, or not as many real images as `n_real` says.
    """
    if config.extractor == "none":
        return Measures(dataset)
    reference = load_split(config, config.eval_split, progress) if config.eval_split else dataset
    image_count("--n-real", config.n_real or None, reference)
    extractor = metrics.load_extractor(
        config.extractor,
        dataset,
        protocol=config.protocol,
        weights=config.extractor_weights or None,
        device=device,
        progress=progress,
    )
    return Measures(reference, extractor)


def load_split(config: Config, split: str, progress: bool, told: bool = False) -> ImageDataset:
    """A split of a run's data set, prepared as for training.

    Args:
        told: the user has been told what becomes of these images, when the run began.

    Raises:
        ValueError: there is no such data set or split; or the run names none, as one from Python with `dataset=`.
    """
    if not config.data:
        raise ValueError("--data: got none, wanted where the real images are")
    with warnings.catch_warnings():
        if told:
            warnings.filterwarnings("ignore", "(?!.* is damaged and prepared again)", DataWarning)
        return load_data(
            config.data,
            split=split,
            resolution=config.resolution,
            channels=config.channels,
            crop=config.crop,
            download=config.download,
            root=config.data_root or None,
            progress=progress,
        )
