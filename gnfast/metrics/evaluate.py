"""A generator's scores against a data set, with the data set's statistics cached."""

import dataclasses
import hashlib
import os
import time
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn

from gnfast.data import ImageDataset
from gnfast.errors import require_int
from gnfast.io.files import cache_root, expanded
from gnfast.metrics.extractors import load_extractor
from gnfast.metrics.features import FeatureExtractor, require_extractor
from gnfast.metrics.scores import Scores, compare
from gnfast.metrics.statistics import ImageStatistics, collect

KEEP = 50_000
"""Features kept per side for the kernel distance: all images of the papers' evaluations, 400 MB of Inception's."""
# Part of the cache's file names: statistics of another content or order get another number.
_VERSION = 2

# By extractor, then by data set fingerprint and number of images; an entry goes with its extractor.
_References = dict[tuple[str, int], ImageStatistics]
_REFERENCES: weakref.WeakKeyDictionary[FeatureExtractor, _References] = weakref.WeakKeyDictionary()


def evaluate(
    generate: Callable[[int], Tensor],
    real: ImageDataset | ImageStatistics,
    extractor: FeatureExtractor | Callable[[Tensor], Any],
    *,
    n_fake: int = 50_000,
    n_real: int | None = None,
    batch_size: int = 256,
    kid_subsets: int = 100,
    kid_subset_size: int = 1000,
    seed: int | None = None,
    cache_dir: str | os.PathLike | None = None,
    group: torch.distributed.ProcessGroup | None = None,
    progress: bool = True,
) -> Scores:
    """Fréchet distance, Inception score and kernel distance of generated images, in one pass over them.

    Args:
        generate: n -> (n, C, H, W) on any device: uint8, or floating point in [-1, 1].
        real: the real images, or their statistics.
        extractor: from `load_extractor`; or, where `real` is images, a function that it takes, on the CPU or where the
            parameters of a module are. Results name it.
        n_fake: how many images to generate, >= 2.
        n_real: how many of the real images are the reference, evenly spread over them; all if None.
        batch_size: how many at a time, also of the real ones.
        kid_subsets: subsets for the kernel distance; 0 for none, and no features are kept.
        kid_subset_size: images of each side in a subset; fewer where there are fewer.
        seed: which `generate` was seeded with, for the result; also of the kernel distance's draws.
        cache_dir: where reference statistics are kept; None is statistics in the cache folder.
        group: processes of `torch.distributed` that share the work: each is asked for its batches, in turn, and all get
            the result of one process that would have generated them all, bit for bit.
        progress: show bars on a terminal.

    Raises:
        ValueError: `generate` gives another shape or dtype, fewer than two images are asked for, or more real ones than
            there are; or `extractor` is neither, or a function with statistics.
    """
    require_int("n_fake", n_fake, 2)
    require_int("batch_size", batch_size, 1)
    require_int("kid_subsets", kid_subsets, 0)
    if callable(extractor) and not isinstance(extractor, FeatureExtractor) and isinstance(real, ImageDataset):
        device = next((p.device for p in extractor.parameters()), "cpu") if isinstance(extractor, nn.Module) else "cpu"
        extractor = load_extractor(extractor, real, device=device)
    require_extractor(extractor)
    how = {"batch_size": batch_size, "keep": KEEP if kid_subsets else 0, "group": group, "progress": progress}
    shape = None
    if isinstance(real, ImageDataset):
        shape = tuple(real.images.shape[1:])
        real = reference_statistics(real, extractor, n=n_real, cache_dir=cache_dir, **how)
    elif n_real is not None:
        raise ValueError(f"n_real: got {n_real}, wanted None with statistics, which are of images already chosen")
    started = time.perf_counter()
    fake = generated_statistics(generate, n_fake, extractor, shape=shape, **how)
    seconds = time.perf_counter() - started
    kid = {"kid_subsets": kid_subsets, "kid_subset_size": kid_subset_size}
    scores = compare(real, fake, **kid, seed=seed, details=extractor.details)
    return dataclasses.replace(scores, timing={"images_per_second": n_fake / seconds, **scores.timing})


def generated_statistics(
    generate: Callable[[int], Tensor],
    n: int,
    extractor: FeatureExtractor,
    *,
    shape: tuple[int, ...] | None = None,
    batch_size: int = 256,
    keep: int = KEEP,
    group: torch.distributed.ProcessGroup | None = None,
    progress: bool = True,
) -> ImageStatistics:
    """Statistics of `n` generated images, in the order in which they come; arguments as for `evaluate`.

    Raises:
        ValueError: `generate` gives another number, shape (C, H, W) or dtype, or `n` is below 2.
    """
    require_extractor(extractor)
    require_int("n", n, 2)
    require_int("batch_size", batch_size, 1)

    def next_images(start: int, count: int) -> Tensor:
        images = generate(count)
        if len(images) != count or (shape is not None and tuple(images.shape[1:]) != shape):
            wanted = f"({count}, {', '.join(map(str, shape or ('C', 'H', 'W')))})"
            raise ValueError(f"generate({count}): got images of shape {tuple(images.shape)}, wanted {wanted}")
        return images

    how = {"batch_size": batch_size, "keep": keep, "group": group, "progress": progress}
    return collect(next_images, n, extractor, what="generated images", **how)


def reference_statistics(
    dataset: ImageDataset,
    extractor: FeatureExtractor,
    *,
    n: int | None = None,
    batch_size: int = 256,
    keep: int = KEEP,
    cache_dir: str | os.PathLike | None = None,
    group: torch.distributed.ProcessGroup | None = None,
    progress: bool = True,
) -> ImageStatistics:
    """Statistics of `n` images of a data set (all if None), from the cache where they are there.

    Of N images they are those at ⌊i·N/n⌋, i from 0 to n - 1: a data set that is sorted by class keeps its proportions.
    They are taken in an order drawn from a fixed seed: the parts of an Inception score and the first `keep` images must
    not be of one class. Further arguments as for `evaluate`.

    They are kept in memory, and on disk where the extractor has a fingerprint: a name alone does not tell whether its
    weights are the same.

    Raises:
        ValueError: `batch_size` is below 1, or `n` is below two or more than the data set has.
    """
    require_extractor(extractor)
    require_int("batch_size", batch_size, 1)
    if len(dataset) < 2:
        raise ValueError(f"dataset: got {dataset.name} with {len(dataset)} images, wanted at least 2")
    total = image_count("n_real", n, dataset)
    keep, key = min(keep, total), (dataset.fingerprint, total)
    known = _REFERENCES.setdefault(extractor, {})
    path = _cache_path(dataset, total, extractor, cache_dir)
    statistics = known.get(key)
    if statistics is None and path is not None and path.exists():
        try:
            statistics = ImageStatistics.load(path)
        except ValueError as error:
            warnings.warn(f"reference statistics are computed again: {error}", stacklevel=2)
    kept = 0 if statistics is None or statistics.kept is None else len(statistics.kept)
    if _any(statistics is None or kept < keep, group, extractor):
        how = {"batch_size": batch_size, "keep": keep, "group": group, "progress": progress}
        statistics = dataset_statistics(dataset, extractor, n=total, **how)
        if path is not None and (group is None or torch.distributed.get_rank(group) == 0):
            try:
                statistics.save(path)
            except OSError as error:
                warnings.warn(f"reference statistics are not kept for next time: {error}", stacklevel=2)
    known[key] = statistics
    return statistics


def dataset_statistics(
    dataset: ImageDataset,
    extractor: FeatureExtractor,
    *,
    n: int | None = None,
    batch_size: int = 256,
    keep: int = KEEP,
    group: torch.distributed.ProcessGroup | None = None,
    progress: bool = True,
) -> ImageStatistics:
    """Statistics of `n` images of a data set (all if None), those that `reference_statistics` takes, uncached."""
    require_extractor(extractor)
    total = image_count("n", n, dataset)
    order = torch.randperm(total, generator=torch.Generator().manual_seed(0)) * len(dataset) // total

    def next_images(start: int, count: int) -> Tensor:
        return dataset.images[order[start : start + count]]

    how = {"batch_size": batch_size, "keep": keep, "group": group, "progress": progress}
    statistics = collect(next_images, total, extractor, what=f"images of {dataset.name}", **how)
    # Not on a GPU, where they would lie through a whole training run.
    return dataclasses.replace(statistics, kept=None if statistics.kept is None else statistics.kept.cpu())


def image_count(name: str, n: int | None, dataset: ImageDataset) -> int:
    """How many images `n` stands for, None for all; ValueError under that name where there are not so many."""
    total = len(dataset) if n is None else n
    if not 2 <= total <= len(dataset):
        raise ValueError(f"{name}: got {total}, wanted 2 to the {len(dataset)} images of {dataset.name}")
    return total


def _any(flag: bool, group: torch.distributed.ProcessGroup | None, extractor: FeatureExtractor) -> bool:
    """Whether any process of the group says so: what one finds in its cache, another may not."""
    if group is None:
        return flag
    flags = torch.tensor(int(flag), device=extractor.device)
    torch.distributed.all_reduce(flags, group=group)
    return bool(flags.item())


def _cache_path(
    dataset: ImageDataset, total: int, extractor: FeatureExtractor, cache_dir: str | os.PathLike | None
) -> Path | None:
    if extractor.fingerprint is None:
        return None
    folder = cache_root() / "statistics" if cache_dir is None else expanded(cache_dir)
    protocol = extractor.protocol.name if extractor.protocol else ""
    parts = (str(_VERSION), dataset.fingerprint, extractor.name, extractor.fingerprint, protocol)
    parts += () if total == len(dataset) else (str(total),)
    return folder / f"{dataset.name}-{hashlib.sha256(' '.join(parts).encode()).hexdigest()[:32]}.npz"
