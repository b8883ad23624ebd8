"""The scores of generated images against real ones, with all that one needs to compare them with others."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gnfast.io.numbers import fixed, fixed_with_spread
from gnfast.metrics.features import INCEPTION
from gnfast.metrics.frechet import frechet_distance
from gnfast.metrics.kid import kernel_distance
from gnfast.metrics.statistics import ImageStatistics

_IN_COMMON = {
    "extractor": "the same extractor",
    "protocol": "the same protocol",
    "fingerprint": "the same extractor's weights",
    "shape": "the same channels and size",
}


@dataclass(frozen=True)
class Scores:
    """What `evaluate` found.

    Args:
        distance: the Fréchet distance, in the features' units squared: FID where `is_fid`.
        extractor: the name of the features' extractor. A distance in other features than Inception's is not FID.
        n_real: how many real images the reference is from; None where its file does not say.
        n_fake: how many generated images; the distance is biased upwards when there are few. None as above.
        protocol: how images were prepared; None where there is no choice.
        seed: of the latent vectors and of the kernel distance's draws; None where nothing was drawn.
        is_mean, is_std: the Inception score of the generated images; None without logits or with fewer than 10 images.
        kid_mean, kid_std: the kernel distance, times 1000 as papers report it; None without features of both sides, and
            no deviation where the one subset is all images.
        details: the extractor's figures (the classifier's "held_out_accuracy", a fraction).
        dim: the number of features; None where it is not known.
        timing: "distance_seconds", and "images_per_second" of generating, preparing and mapping to features.
    """

    distance: float
    extractor: str
    n_real: int | None
    n_fake: int | None
    protocol: str | None = None
    seed: int | None = None
    is_mean: float | None = None
    is_std: float | None = None
    kid_mean: float | None = None
    kid_std: float | None = None
    details: Mapping[str, float] = field(default_factory=dict)
    timing: Mapping[str, float] = field(default_factory=dict, compare=False)
    dim: int | None = None

    @property
    def is_fid(self) -> bool:
        """Whether the distance may be called FID: it is in the features of Inception's official weights."""
        return self.extractor == INCEPTION

    @property
    def distance_name(self) -> str:
        """ "FID", or for other features what the distance is."""
        return "FID" if self.is_fid else f"Fréchet distance in features of {self.extractor}"

    @property
    def covariance(self) -> str | None:
        """One line where a side has no more images than features; None where none is known to."""
        sides = ((self.n_real, "real"), (self.n_fake, "generated"))
        few = [f"{n} {kind}" for n, kind in sides if n is not None and self.dim is not None and n <= self.dim]
        if not few:
            return None
        return (
            f"singular: {' and '.join(few)} images for {self.dim} features; compare this distance with others of the "
            "same N alone"
        )

    def rows(self) -> list[tuple[str, str]]:
        """The scores under the names that they may be called by, for people."""
        found = [(self.distance_name, fixed(self.distance))]
        if self.is_mean is not None:
            name = "IS" if self.is_fid else f"class score by {self.extractor}"
            found.append((name, fixed_with_spread(self.is_mean, self.is_std)))
        if self.kid_mean is not None:
            name = "KID × 1000" if self.is_fid else f"kernel distance × 1000 in features of {self.extractor}"
            alone = self.kid_std is None
            found.append((name, fixed(self.kid_mean) if alone else fixed_with_spread(self.kid_mean, self.kid_std)))
        return found

    def __str__(self) -> str:
        scores = ", ".join(f"{name} {value}" for name, value in self.rows())
        protocol = f", protocol {self.protocol}" if self.protocol else ""
        counts = [n if n is not None else "unknown number of" for n in (self.n_real, self.n_fake)]
        return f"{scores} ({counts[0]} real / {counts[1]} generated images{protocol})"

    def __float__(self) -> float:
        return self.distance

    def as_dict(self) -> dict[str, Any]:
        """Plain values, without those that there are none of and without the timing."""
        names = ("distance", "extractor", "protocol", "n_real", "n_fake", "seed")
        names += ("is_mean", "is_std", "kid_mean", "kid_std", "covariance")
        known = {name: value for name in names if (value := getattr(self, name)) is not None}
        return {"distance_name": self.distance_name, **known, **self.details}


def compare(
    real: ImageStatistics,
    fake: ImageStatistics,
    *,
    kid_subsets: int = 100,
    kid_subset_size: int = 1000,
    seed: int | None = None,
    details: Mapping[str, float] | None = None,
) -> Scores:
    """The scores of two sets of images, on the device of the generated ones' statistics.

    Args:
        real, fake: of the same extractor and protocol.
        kid_subsets, kid_subset_size, seed: as for `kernel_distance`; 0 subsets for none, None for the seed 0.
        details: figures about the extractor.

    Raises:
        ValueError: `require_comparable` or `frechet_distance` refuses the two.
    """
    require_comparable(real.origin, fake.origin)
    started = time.perf_counter()
    distance = frechet_distance(fake.features, real.features)
    timing = {"distance_seconds": time.perf_counter() - started}
    kid = (None, None)
    if kid_subsets and real.kept is not None and fake.kept is not None and min(len(real.kept), len(fake.kept)) > 1:
        how = {"subsets": kid_subsets, "subset_size": kid_subset_size, "seed": seed or 0}
        mean, std = kernel_distance(real.kept, fake.kept, **how)
        kid = (1000 * mean, None if std is None else 1000 * std)
    extractor = fake.extractor or real.extractor or "an unknown extractor"
    counts, protocol = (real.features.count, fake.features.count), fake.protocol or real.protocol
    scores = (*(fake.score or (None, None)), *kid)
    return Scores(distance, extractor, *counts, protocol, seed, *scores, dict(details or {}), timing, fake.features.dim)


def require_comparable(real: Mapping[str, str], fake: Mapping[str, str]) -> None:
    """Raises ValueError where `ImageStatistics.origin` of both differ; what one does not say may be anything."""
    for name, wanted in _IN_COMMON.items():
        if name in real and name in fake and real[name] != fake[name]:
            raise ValueError(f"real and generated images: got {real[name][:32]} and {fake[name][:32]}, wanted {wanted}")
