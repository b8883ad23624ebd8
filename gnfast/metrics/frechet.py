"""The Fréchet distance between two Gaussians that are fitted to features."""

import os
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gnfast.data.files import atomic_write


class FeatureStatistics:
    """Count, mean and covariance of feature vectors that come in chunks, in float64 on the CPU.

    Chunks are merged by Chan's update, which does not lose digits as sums of squares do.

    Source: Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances" (1979).

    Args:
        dim: D, the length of a feature vector.
    """

    def __init__(self, dim: int) -> None:
        if isinstance(dim, bool) or not isinstance(dim, int) or dim < 1:
            raise ValueError(f"dim must be an int of at least 1, got {dim!r}")
        self.dim = dim
        self.count = 0
        self._mean = torch.zeros(dim, dtype=torch.float64)
        self._scatter = torch.zeros(dim, dim, dtype=torch.float64)

    @property
    def mean(self) -> Tensor:
        """(D,) float64.

        Raises:
            ValueError: there is no vector yet.
        """
        self._require(1)
        return self._mean.clone()

    @property
    def cov(self) -> Tensor:
        """(D, D) float64, with the divisor count - 1.

        Raises:
            ValueError: there are fewer than two vectors.
        """
        self._require(2)
        return self._scatter / (self.count - 1)

    def update(self, features: Tensor) -> None:
        """Add vectors.

        Args:
            features: (N, D), any floating dtype and device; N may be 0.

        Raises:
            ValueError: another shape or dtype, or a value that is not finite.
        """
        if features.dim() != 2 or features.shape[1] != self.dim or not features.is_floating_point():
            raise ValueError(
                f"features must be floating point of shape (N, {self.dim}), "
                f"got {features.dtype} of shape {tuple(features.shape)}"
            )
        chunk = features.detach().to("cpu", torch.float64)
        if not torch.isfinite(chunk).all():
            bad = int((~torch.isfinite(chunk)).any(1).sum())
            raise ValueError(f"features must be finite, got NaN or infinity in {bad} of {len(chunk)} vectors")
        if len(chunk):
            mean = chunk.mean(0)
            centred = chunk - mean
            self._merge(len(chunk), mean, centred.T @ centred)

    def merge(self, other: "FeatureStatistics") -> None:
        """Add the vectors that `other` has seen.

        Raises:
            ValueError: `other` is of another dimension.
        """
        if other.dim != self.dim:
            raise ValueError(f"other must be of dimension {self.dim}, got {other.dim}")
        if other.count:
            self._merge(other.count, other._mean, other._scatter)

    def save(self, path: str | os.PathLike) -> None:
        """Write `mu` (D,), `sigma` (D, D) and `n` as an .npz file, atomically.

        Raises:
            ValueError: there are fewer than two vectors.
        """
        mu, sigma = self.mean.numpy(), self.cov.numpy()
        with atomic_write(Path(path)) as part, part.open("wb") as file:
            np.savez(file, mu=mu, sigma=sigma, n=np.int64(self.count))

    @classmethod
    def load(cls, path: str | os.PathLike) -> "FeatureStatistics":
        """Read what `save` wrote.

        Raises:
            ValueError: the file is damaged, lacks one of `mu`, `sigma` and `n`, or their shapes do not fit.
            FileNotFoundError: there is no such file.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                mu, sigma, n = (np.asarray(file[key]) for key in ("mu", "sigma", "n"))
        except FileNotFoundError:
            raise
        except (KeyError, ValueError, OSError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} must be an .npz file with mu, sigma and n, but: {error}") from error
        if mu.ndim != 1 or not len(mu) or sigma.shape != (len(mu), len(mu)) or n.shape != () or int(n) < 2:
            raise ValueError(
                f"{path} must hold mu (D,), sigma (D, D) and n >= 2, got mu {mu.shape}, sigma {sigma.shape}, n {n}"
            )
        statistics = cls(len(mu))
        statistics.count = int(n)
        statistics._mean = torch.from_numpy(mu.astype(np.float64))
        statistics._scatter = torch.from_numpy(sigma.astype(np.float64)) * (statistics.count - 1)
        return statistics

    def _merge(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        total = self.count + count
        step = mean - self._mean
        self._scatter += scatter + torch.outer(step, step) * (self.count * count / total)
        self._mean += step * (count / total)
        self.count = total

    def _require(self, count: int) -> None:
        if self.count < count:
            raise ValueError(f"statistics need at least {count} feature vectors, got {self.count}")


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """|μ_a - μ_b|² + tr(Σ_a + Σ_b - 2 √(Σ_a Σ_b)), in float64.

    The trace of the root is the sum of the roots of the eigenvalues of √Σ_a Σ_b √Σ_a, which is symmetric and has the
    eigenvalues of Σ_a Σ_b: real by construction, with singular covariances too, where a matrix square root of the
    product may be complex.

    Source: Dowson and Landau, "The Fréchet distance between multivariate normal distributions" (1982), eq. 4.

    Args:
        a, b: of the same dimension, each of at least two vectors.

    Returns:
        The distance (squared, as is the custom), in the features' units squared; >= 0.

    Raises:
        ValueError: the dimensions differ, a count is below two, or a value is not finite.
    """
    if a.dim != b.dim:
        raise ValueError(f"a and b must have the same dimension, got {a.dim} and {b.dim}")
    for name, one in (("a", a), ("b", b)):
        if one.count < 2:
            raise ValueError(f"{name} must hold at least 2 feature vectors, got {one.count}")
        if not (torch.isfinite(one.mean).all() and torch.isfinite(one.cov).all()):
            raise ValueError(f"{name} must be finite, its mean or covariance is not")
    cov_a, cov_b = a.cov, b.cov
    values, vectors = torch.linalg.eigh(cov_a)
    root_a = (vectors * _roots(values)) @ vectors.T
    product = root_a @ cov_b @ root_a
    # Rounding leaves the product a little asymmetric, and eigvalsh reads one triangle.
    trace_root = _roots(torch.linalg.eigvalsh((product + product.T) / 2)).sum()
    distance = (a.mean - b.mean).square().sum() + cov_a.trace() + cov_b.trace() - 2 * trace_root
    return max(0.0, float(distance))


def _roots(values: Tensor) -> Tensor:
    """Square roots of a semidefinite matrix's eigenvalues; those that are rounding alone, of either sign, are 0."""
    noise = values.abs().max() * len(values) * torch.finfo(values.dtype).eps
    return torch.where(values > noise, values, 0).sqrt()
