"""What one pass over images leaves: all that the scores are computed from."""

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed
from torch import Tensor
from tqdm import tqdm

from gnfast.errors import InputError
from gnfast.metrics.arrays import read_arrays, write_arrays
from gnfast.metrics.features import FeatureExtractor, require_extractor
from gnfast.metrics.frechet import FeatureStatistics
from gnfast.metrics.inception_score import InceptionScore

SPLITS = 10
_NAMES = ("extractor", "protocol", "fingerprint", "shape")


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
        shape: the images' channels, height and width, as `3x32x32`; None for a file that does not say.
    """

    features: FeatureStatistics
    kept: Tensor | None = None
    score: tuple[float, float] | None = None
    extractor: str | None = None
    protocol: str | None = None
    fingerprint: str | None = None
    shape: str | None = None

    @property
    def origin(self) -> dict[str, str]:
        """What statistics must have in common to be compared, as far as it is known: extractor, protocol, …"""
        return {name: value for name in _NAMES if (value := getattr(self, name))}

    def save(self, path: str | os.PathLike) -> None:
        """Write an .npz file, atomically: `mu`, `sigma`, `n` as others do, and the rest under the fields' names."""
        arrays = self.features.arrays()
        if self.kept is not None:
            arrays["kept"] = self.kept.cpu().numpy()
        if self.score is not None:
            arrays["score"] = np.array(self.score)
        arrays |= {name: np.array(value) for name, value in self.origin.items()}
        write_arrays(path, arrays)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "ImageStatistics":
        """Read what `save` wrote, or a file with `mu` and `sigma` alone.

        Raises:
            InputError: the file is damaged, lacks those two, or holds what `save` would not write.
            OSError: the file cannot be opened.
        """
        place = os.fspath(path)
        features = FeatureStatistics.load(path)
        found = read_arrays(path, ("kept", "score", *_NAMES))
        kept, score = found.get("kept"), found.get("score")
        if kept is not None:
            fits = kept.ndim == 2 and kept.shape[1] == features.dim and 0 < len(kept) <= (features.count or len(kept))
            if not fits or kept.dtype != np.float32:
                wanted = f"(k, {features.dim}) float32 of no more than the n images"
                raise InputError(f"{place}: kept: got {kept.dtype} {kept.shape}, wanted {wanted}")
            if not np.isfinite(kept).all():
                raise InputError(f"{place}: kept: got NaN or infinity, wanted finite numbers")
        if score is not None and not (score.shape == (2,) and score.dtype.kind == "f" and np.isfinite(score).all()):
            raise InputError(f"{place}: score: got {score.dtype} {score.shape}, wanted two finite numbers")
        names = {name: _text(place, name, found[name]) for name in _NAMES if name in found}
        return cls(
            features,
            None if kept is None else torch.from_numpy(kept),
            None if score is None else tuple(score.tolist()),
            **names,
        )


def _text(place: str, name: str, array: np.ndarray) -> str:
    """An array's text, if it is one that can be shown."""
    with contextlib.suppress(SystemError, ValueError):  # What NumPy raises for numbers that are not characters.
        if array.shape == () and array.dtype.kind == "U" and len(text := str(array)) < 200 and text.isprintable():
            return text
    raise InputError(f"{place}: {name}: got {array.dtype} {array.shape}, wanted a short text")


def collect(
    images: Callable[[int, int], Tensor],
    total: int,
    extractor: FeatureExtractor,
    *,
    what: str,
    batch_size: int,
    keep: int,
    group: torch.distributed.ProcessGroup | None,
    progress: bool,
) -> ImageStatistics:
    """One pass over images, on the extractor's device; further arguments as for `evaluate`.

    Args:
        images: start and n to the n images (n, C, H, W) that follow the first `start` ones.
        total: how many images, >= 2.
        extractor: what maps them to features.
        what: they are, for the bar.
        keep: how many images' features to keep.

    Raises:
        InputError: images of two shapes.
    """
    rank, world = (0, 1) if group is None else (group.rank(), group.size())
    statistics = FeatureStatistics(extractor.dim, extractor.device)
    kept = torch.zeros(min(keep, total), extractor.dim, device=extractor.device)
    score, shape = None, None
    if extractor.classes is not None and total >= SPLITS:
        score = InceptionScore(extractor.classes, total, SPLITS, extractor.device)
    with tqdm(total=total, desc=f"features of {what}", unit="img", disable=None if progress else True) as bar:
        for begin in range(0, total, world * batch_size):
            start, found = begin + rank * batch_size, (None, None)
            if start < total:
                batch = images(start, min(batch_size, total - start))
                if (before := shape) != (shape := "x".join(map(str, batch.shape[1:]))) and before:
                    raise InputError(f"images: got {before} and {shape}, wanted one shape")
                found = extractor.features_and_logits(batch)
            # One after the other, in the order of the stream: the sums are those of one process, bit for bit.
            for features, logits in [found] if group is None else _gathered(group, extractor, batch_size, *found):
                features = features[: total - begin]
                statistics.update(features)
                kept[begin : begin + len(features)] = features[: max(0, len(kept) - begin)]
                if score is not None:
                    score.update(logits[: len(features)], begin)
                bar.update(len(features))
                begin += len(features)
    result = None if score is None else score.result()
    return ImageStatistics(statistics, kept if len(kept) else None, result, **origin(extractor), shape=shape)


def _gathered(
    group: torch.distributed.ProcessGroup,
    extractor: FeatureExtractor,
    batch_size: int,
    features: Tensor | None,
    logits: Tensor | None,
) -> list[tuple[Tensor, Tensor]]:
    """Features and logits of each process's batch, `batch_size` rows with zeros below; a process may have none."""
    # In float64, which holds all other dtypes: those of processes without a batch are not known.
    own = torch.zeros(
        batch_size, extractor.dim + (extractor.classes or 0), dtype=torch.float64, device=extractor.device
    )
    if features is not None:
        given = torch.cat([features.double()] + ([] if logits is None else [logits.double()]), 1)
        own[: len(given)] = given
    parts = [torch.empty_like(own) for _ in range(group.size())]
    torch.distributed.all_gather(parts, own, group=group)
    return [(part[:, : extractor.dim], part[:, extractor.dim :]) for part in parts]


def origin(extractor: FeatureExtractor) -> dict[str, str]:
    """What the statistics of an extractor say of it."""
    require_extractor(extractor)
    protocol = extractor.protocol and extractor.protocol.name
    known = {"extractor": extractor.name, "protocol": protocol, "fingerprint": extractor.fingerprint}
    return {name: value for name, value in known.items() if value}
