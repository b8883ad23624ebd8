"""The distance of a generator's images from a data set's, with the reference statistics cached."""

import hashlib
import os
import warnings
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from gnfast.data import ImageDataset
from gnfast.data.files import cache_root
from gnfast.metrics.extractors import FeatureExtractor
from gnfast.metrics.frechet import FeatureStatistics, frechet_distance

# By extractor, then by data set fingerprint; an entry goes with its extractor.
_REFERENCES: weakref.WeakKeyDictionary[FeatureExtractor, dict[str, FeatureStatistics]] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class DistanceResult:
    """A Fréchet distance with what one needs to know to compare it with another.

    Args:
        value: the distance, in the features' units squared.
        extractor: the name of the features' extractor. A distance in other features than Inception's is no FID.
        n_real: how many real images the reference is from.
        n_fake: how many generated images; the distance is biased upwards when there are few.
        details: the extractor's figures (the classifier's "held_out_accuracy", a fraction).
    """

    value: float
    extractor: str
    n_real: int
    n_fake: int
    details: Mapping[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        return (
            f"Fréchet distance {self.value:.4g} "
            f"({self.extractor} features, {self.n_real} real / {self.n_fake} generated)"
        )

    def __float__(self) -> float:
        return self.value

    def as_dict(self) -> dict[str, Any]:
        """Plain values under prefixed keys, for metrics.jsonl."""
        return {
            "frechet_distance": self.value,
            "frechet_extractor": self.extractor,
            "frechet_n_real": self.n_real,
            "frechet_n_fake": self.n_fake,
            **{f"frechet_{key}": value for key, value in self.details.items()},
        }


def evaluate(
    generate: Callable[[int], Tensor],
    dataset: ImageDataset,
    extractor: FeatureExtractor,
    *,
    n_fake: int = 2000,
    batch_size: int = 256,
    cache_dir: str | os.PathLike | None = None,
    progress: bool = True,
) -> DistanceResult:
    """The Fréchet distance between generated images and a data set.

    Args:
        generate: n -> (n, C, H, W) uint8, of the data set's C, H and W, on any device.
        dataset: the real images; all of them are the reference.
        extractor: from `load_extractor`.
        n_fake: how many images to generate, >= 2.
        batch_size: how many at a time, also of the real ones.
        cache_dir: where reference statistics are kept; None is statistics in the cache folder.
        progress: show bars on a terminal.

    Raises:
        ValueError: `generate` gives another shape or dtype, or fewer than two images are asked for.
    """
    if isinstance(n_fake, bool) or not isinstance(n_fake, int) or n_fake < 2:
        raise ValueError(f"n_fake must be an int of at least 2, got {n_fake!r}")
    reference = reference_statistics(dataset, extractor, batch_size=batch_size, cache_dir=cache_dir, progress=progress)
    fake = FeatureStatistics(extractor.dim)
    with _bar("generated images", n_fake, progress) as bar:
        while fake.count < n_fake:
            n = min(batch_size, n_fake - fake.count)
            images = generate(n)
            wanted = (n, *dataset.images.shape[1:])
            if images.dtype != torch.uint8 or tuple(images.shape) != wanted:
                raise ValueError(
                    f"generate({n}) must give uint8 of shape {wanted}, "
                    f"got {images.dtype} of shape {tuple(images.shape)}"
                )
            fake.update(extractor(images))
            bar.update(n)
    value = frechet_distance(reference, fake)
    return DistanceResult(value, extractor.name, reference.count, fake.count, dict(extractor.details))


def reference_statistics(
    dataset: ImageDataset,
    extractor: FeatureExtractor,
    *,
    batch_size: int = 256,
    cache_dir: str | os.PathLike | None = None,
    progress: bool = True,
) -> FeatureStatistics:
    """Statistics of the whole data set, from the cache where they are there; arguments as for `evaluate`.

    They are kept in memory, and on disk where the extractor has a fingerprint: a name alone does not tell whether its
    weights are the same.

    Raises:
        ValueError: `batch_size` is below 1, or the data set has fewer than two images.
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size must be an int of at least 1, got {batch_size!r}")
    if len(dataset) < 2:
        raise ValueError(f"dataset must have at least 2 images, {dataset.name} has {len(dataset)}")
    known = _REFERENCES.setdefault(extractor, {})
    if dataset.fingerprint in known:
        return known[dataset.fingerprint]
    path = None
    if extractor.fingerprint is not None:
        folder = cache_root() / "statistics" if cache_dir is None else Path(cache_dir).expanduser()
        key = hashlib.sha256(f"{dataset.fingerprint} {extractor.name} {extractor.fingerprint}".encode()).hexdigest()
        path = folder / f"{dataset.name}-{key[:32]}.npz"
    statistics = None
    if path is not None and path.exists():
        try:
            statistics = FeatureStatistics.load(path)
        except ValueError as error:
            warnings.warn(f"reference statistics are computed again: {error}", stacklevel=2)
    if statistics is None:
        statistics = FeatureStatistics(extractor.dim)
        with _bar("real images", len(dataset), progress) as bar:
            for images in dataset.images.split(batch_size):
                statistics.update(extractor(images))
                bar.update(len(images))
        if path is not None:
            statistics.save(path)
    known[dataset.fingerprint] = statistics
    return statistics


def _bar(what: str, total: int, progress: bool) -> tqdm:
    return tqdm(total=total, desc=f"features of {what}", unit="img", disable=None if progress else True)
