"""What one pass over images leaves: all that the scores are computed from."""

import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed
from torch import Tensor
from tqdm import tqdm

from gnfast.files import atomic_write
from gnfast.metrics.features import FeatureExtractor
from gnfast.metrics.frechet import FeatureStatistics
from gnfast.metrics.inception_score import InceptionScore

SPLITS = 10
# What statistics must have in common to be compared.
_NAMES = ("extractor", "protocol", "fingerprint")


@dataclass(frozen=True)
class ImageStatistics:
    """Features of a set of images, summed up.

    Args:
        features: count, mean and covariance.
        kept: (k, D) float32 features of the stream's first k images, for the kernel distance, or None.
        score: the Inception score's mean and standard deviation, or None.
        extractor: the name of the features' extractor; None for a file that does not say.
        protocol: the name of how images were prepared; None where there is no choice, or the file does not say.
        fingerprint: of the extractor's weights; None where it is unknown.
    """

    features: FeatureStatistics
    kept: Tensor | None = None
    score: tuple[float, float] | None = None
    extractor: str | None = None
    protocol: str | None = None
    fingerprint: str | None = None

    def save(self, path: str | os.PathLike) -> None:
        """Write an .npz file, atomically: `mu`, `sigma`, `n` as others do, and the rest under the fields' names."""
        arrays = self.features.arrays()
        if self.kept is not None:
            arrays["kept"] = self.kept.cpu().numpy()
        if self.score is not None:
            arrays["score"] = np.array(self.score)
        arrays |= {name: np.array(value) for name in _NAMES if (value := getattr(self, name))}
        with atomic_write(Path(path)) as part, part.open("wb") as file:
            np.savez(file, **arrays)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "ImageStatistics":
        """Read what `save` wrote, or a file with `mu` and `sigma` alone.

        Raises:
            ValueError: the file is damaged or lacks those two.
            FileNotFoundError: there is no such file.
        """
        features = FeatureStatistics.load(path)
        try:
            with np.load(path, allow_pickle=False) as file:
                rest = {key: np.asarray(file[key]) for key in ("kept", "score", *_NAMES) if key in file}
        except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} is damaged: {error}") from error
        kept = torch.from_numpy(rest["kept"]) if "kept" in rest else None
        if kept is not None and (kept.dim() != 2 or kept.shape[1] != features.dim or kept.dtype != torch.float32):
            raise ValueError(f"{path} must hold kept (k, {features.dim}) float32, got {kept.dtype} {tuple(kept.shape)}")
        score = tuple(rest["score"].tolist()) if "score" in rest else None
        return cls(features, kept, score, **{key: str(rest[key]) for key in _NAMES if key in rest})


def collect(
    images: Callable[[int, int], Tensor],
    total: int,
    extractor: FeatureExtractor,
    *,
    batch_size: int,
    keep: int,
    group: torch.distributed.ProcessGroup | None = None,
    bar: tqdm | None = None,
) -> ImageStatistics:
    """One pass over images, on the extractor's device.

    Args:
        images: start and n to the n images (n, C, H, W) that follow the first `start` ones.
        total: how many images, >= 2.
        extractor: what maps them to features.
        batch_size: how many at a time.
        keep: how many images' features to keep.
        group: processes of `torch.distributed` that take turns at the batches; each gets the whole result.
        bar: is told of each batch.
    """
    rank, world = 0, 1
    if group is not None:
        rank, world = torch.distributed.get_rank(group), torch.distributed.get_world_size(group)
    statistics = FeatureStatistics(extractor.dim, extractor.device)
    # At each image's place, so that its neighbours do not depend on the number of processes.
    kept = torch.zeros(min(keep, total), extractor.dim, device=extractor.device)
    score = None
    if extractor.classes is not None and total >= SPLITS:
        score = InceptionScore(extractor.classes, total, SPLITS, extractor.device)
    for start in range(rank * batch_size, total, world * batch_size):
        n = min(batch_size, total - start)
        features, logits = extractor.features_and_logits(images(start, n))
        statistics.update(features)
        kept[start : start + n] = features[: max(0, len(kept) - start)]
        if score is not None:
            score.update(logits, start)
        if bar is not None:
            bar.update(n)
    if group is not None:
        statistics.all_reduce(group)
        torch.distributed.all_reduce(kept, group=group)
        if score is not None:
            score.all_reduce(group)
    return ImageStatistics(
        statistics,
        kept if len(kept) else None,
        None if score is None else score.result(),
        extractor.name,
        extractor.protocol.name if extractor.protocol else None,
        extractor.fingerprint,
    )
