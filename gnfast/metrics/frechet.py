"""The Fréchet distance between two Gaussians that are fitted to features."""

import os

import numpy as np
import torch
from torch import Tensor

from gnfast.errors import InputError, require_int
from gnfast.metrics.arrays import read_arrays, write_arrays

# Files hold covariances that were computed in float32, too.
_ROUNDING = torch.finfo(torch.float32).eps


class FeatureStatistics:
    """Count, mean and covariance of feature vectors that come in chunks, in float64.

    Chunks are merged by Chan's update, which does not lose digits as sums of squares do.

    Source: Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances" (1979).

    Args:
        dim: D, the length of a feature vector.
        device: where the sums are kept and chunks are reduced; one that knows float64.
    """

    def __init__(self, dim: int, device: torch.device | str = "cpu") -> None:
        self.dim = require_int("dim", dim, 1)
        self.count: int | None = 0
        self._mean = torch.zeros(dim, dtype=torch.float64, device=device)
        # The sum of outer products of the vectors' deviations, or the covariance, as a file has it.
        self._second = torch.zeros(dim, dim, dtype=torch.float64, device=device)
        self._is_sum = True
        # The vectors themselves, while there are at most D: they are a smaller factor of the covariance than its own.
        self._vectors: Tensor | None = torch.zeros(0, dim, dtype=torch.float64, device=device)

    @property
    def mean(self) -> Tensor:
        """(D,) float64; ValueError where there is no vector yet."""
        self._require(1)
        return self._mean.clone()

    @property
    def cov(self) -> Tensor:
        """(D, D) float64, with the divisor count - 1; ValueError where there are fewer than two vectors.

        It is symmetric, and the same after saving and loading, bit for bit.
        """
        self._require(2)
        return _symmetric(self._second / (self.count - 1)) if self._is_sum else self._second.clone()

    @property
    def factor(self) -> Tensor | None:
        """(D, N) float64 F with `cov` = F Fᵀ, where the 2 to D vectors themselves have come; otherwise None."""
        if self._vectors is None or len(self._vectors) < 2:
            return None
        return ((self._vectors - self._mean) / (self.count - 1) ** 0.5).T

    def update(self, features: Tensor) -> None:
        """Add vectors.

        Args:
            features: (N, D), any floating dtype and device; N may be 0.

        Raises:
            ValueError: another shape or dtype, a value that is not finite, or statistics that do not know their count.
        """
        self._require_count()
        if features.dim() != 2 or features.shape[1] != self.dim or not features.is_floating_point():
            raise ValueError(
                f"features: got {features.dtype} of shape {tuple(features.shape)}, "
                f"wanted floating point of shape (N, {self.dim})"
            )
        chunk = features.detach().to(self._mean.device, torch.float64)
        if not torch.isfinite(chunk).all():
            bad = int((~torch.isfinite(chunk)).any(1).sum())
            raise ValueError(f"features: got NaN or infinity in {bad} of {len(chunk)} vectors, wanted finite ones")
        if len(chunk):
            mean = chunk.mean(0)
            centred = chunk - mean
            self._merge(len(chunk), mean, centred.T @ centred)
            known = self._vectors is not None and self.count <= self.dim
            self._vectors = torch.cat([self._vectors, chunk]) if known else None

    def merge(self, other: "FeatureStatistics") -> None:
        """Add the vectors that `other` has seen.

        Raises:
            ValueError: `other` is of another dimension, or one of them does not know its count.
        """
        if other.dim != self.dim:
            raise ValueError(f"other: got dimension {other.dim}, wanted {self.dim}")
        self._require_count()
        other._require_count()
        if other.count:
            device = self._mean.device
            self._merge(other.count, other._mean.to(device), other._scatter().to(device))
            self._vectors = None

    def save(self, path: str | os.PathLike) -> None:
        """Write `mu` (D,), `sigma` (D, D) and, where it is known, `n` as an .npz file, atomically.

        Raises:
            ValueError: there are fewer than two vectors.
        """
        write_arrays(path, self.arrays())

    def arrays(self) -> dict[str, np.ndarray]:
        """What `save` writes."""
        known = {} if self.count is None else {"n": np.int64(self.count)}
        return {"mu": self.mean.cpu().numpy(), "sigma": self.cov.cpu().numpy(), **known}

    @classmethod
    def load(cls, path: str | os.PathLike) -> "FeatureStatistics":
        """Read what `save` wrote, or `mu` and `sigma` from the papers' code or pytorch-fid; their `count` is None.

        Raises:
            InputError: the file is damaged, lacks `mu` or `sigma`, or they are not a mean and a covariance: another
                shape or kind of numbers, not finite, not symmetric or with negative eigenvalues.
            OSError: the file cannot be opened.
        """
        place = os.fspath(path)
        found = read_arrays(path, ("mu", "sigma", "n"))
        for name in ("mu", "sigma"):
            if name not in found:
                raise InputError(f"{place}: it has no {name}, wanted an .npz file with mu and sigma")
        mu, sigma, n = found["mu"], found["sigma"], found.get("n")
        if mu.ndim != 1 or not len(mu) or sigma.shape != (len(mu), len(mu)):
            raise InputError(f"{place}: got mu {mu.shape} and sigma {sigma.shape}, wanted (D,) and (D, D)")
        if mu.dtype.kind not in "iuf" or sigma.dtype.kind not in "iuf":
            raise InputError(f"{place}: got mu and sigma of {mu.dtype} and {sigma.dtype}, wanted real numbers")
        if n is not None and (n.shape != () or n.dtype.kind not in "iu" or n < 2):
            raise InputError(f"{place}: got n {n.dtype} {n.shape}: {n}, wanted an integer of at least 2, or none")
        statistics = cls(len(mu))
        statistics.count = None if n is None else int(n)
        statistics._mean = torch.from_numpy(mu.astype(np.float64))
        statistics._second = _covariance(place, torch.from_numpy(sigma.astype(np.float64)))
        statistics._is_sum, statistics._vectors = False, None
        if not torch.isfinite(statistics._mean).all():
            raise InputError(f"{place}: mu: got NaN or infinity, wanted finite numbers")
        return statistics

    def _scatter(self) -> Tensor:
        return self._second if self._is_sum else self._second * (self.count - 1)

    def _merge(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        total = self.count + count
        step = mean - self._mean
        self._second, self._is_sum = self._scatter(), True
        self._second += scatter + torch.outer(step, step) * (self.count * count / total)
        self._mean += step * (count / total)
        self.count = total

    def _require(self, count: int) -> None:
        if self.count is not None and self.count < count:
            raise ValueError(f"statistics: got {self.count} feature vectors, wanted at least {count}")

    def _require_count(self) -> None:
        if self.count is None:
            raise ValueError("statistics from a file without n cannot be added to: their count is unknown")


def _covariance(place: str, matrix: Tensor) -> Tensor:
    """The matrix, symmetric to the last bit; InputError where it is not a covariance up to rounding."""
    if not torch.isfinite(matrix).all():
        raise InputError(f"{place}: sigma: got NaN or infinity, wanted finite numbers")
    largest = matrix.abs().max()
    if (gap := (matrix - matrix.T).abs().max()) > 100 * _ROUNDING * largest:
        raise InputError(f"{place}: sigma: entries across its diagonal differ by {gap:.3g}, wanted a symmetric matrix")
    matrix = _symmetric(matrix)
    if _cholesky(matrix) is None:
        lowest, highest = torch.linalg.eigvalsh(matrix)[[0, -1]]
        if lowest < -len(matrix) * _ROUNDING * highest.clamp(min=0):
            raise InputError(
                f"{place}: sigma: got the eigenvalue {lowest:.3g} (its largest is {highest:.3g}), wanted a covariance, "
                "without negative ones"
            )
    return matrix


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """|μ_a - μ_b|² + tr(Σ_a + Σ_b - 2 √(Σ_a Σ_b)), in float64 on the device of `a`.

    The trace of the root is the sum of the roots of the eigenvalues of Rᵀ Σ_b R with Σ_a = R Rᵀ, which is symmetric and
    has the eigenvalues of Σ_a Σ_b: real by construction, where a matrix square root of the product may be complex.
    R is a Cholesky factor, which keeps the digits of small eigenvalues, or of eigenvectors where both are singular.
    Where `a` is of at most D vectors, R is those themselves, and the matrix as small as they are few.

    Source: Dowson and Landau, "The Fréchet distance between multivariate normal distributions" (1982), eq. 4.

    Args:
        a, b: of the same dimension, each of at least two vectors.

    Returns:
        The distance (squared, as is the custom), in the features' units squared; >= 0.

    Raises:
        ValueError: the dimensions differ, a count is below two, or a value is not finite.
    """
    if a.dim != b.dim:
        raise ValueError(f"a and b: got dimensions {a.dim} and {b.dim}, wanted the same")
    device = a.mean.device
    means, covs = (a.mean, b.mean.to(device)), (a.cov, b.cov.to(device))
    if not all(torch.isfinite(part).all() for part in (*means, *covs)):
        raise ValueError("a and b: got NaN or infinity in a mean or covariance, wanted finite numbers")
    # Not that of `b`: a reference may come from a file, without vectors, and its distance must be the same to the bit.
    root = _trace_of_root(*covs, a.factor)
    distance = (means[0] - means[1]).square().sum() + covs[0].trace() + covs[1].trace() - 2 * root
    return max(0.0, float(distance))


def _trace_of_root(a: Tensor, b: Tensor, narrow: Tensor | None) -> Tensor:
    """tr √(a b) for two symmetric semidefinite matrices; a = narrow narrowᵀ where that is known."""
    if narrow is not None:
        return _roots(torch.linalg.eigvalsh(_symmetric(narrow.T @ b @ narrow))).sum()
    factored = [(factor, other) for one, other in ((a, b), (b, a)) if (factor := _cholesky(one)) is not None]
    if factored:
        factor, other = factored[0]
    else:
        values, vectors = torch.linalg.eigh(a)
        factor, other = vectors * _roots(values), b
    # eigvalsh reads one triangle alone.
    values = torch.linalg.eigvalsh(_symmetric(factor.T @ other @ factor))
    return (values.clamp(min=0).sqrt() if len(factored) == 2 else _roots(values)).sum()


def _cholesky(matrix: Tensor) -> Tensor | None:
    """The lower factor, or None for a matrix that is singular to rounding."""
    factor, info = torch.linalg.cholesky_ex(matrix)
    noise = matrix.diagonal().abs().max() * len(matrix) * torch.finfo(matrix.dtype).eps
    return factor if not info and factor.diagonal().square().min() > noise else None


def _symmetric(matrix: Tensor) -> Tensor:
    """The symmetric part; a matrix that is symmetric already does not change by a bit."""
    return (matrix + matrix.T) / 2


def _roots(values: Tensor) -> Tensor:
    """Square roots of a semidefinite matrix's eigenvalues; those that are rounding alone, of either sign, are 0."""
    noise = values.abs().max() * len(values) * torch.finfo(values.dtype).eps
    return torch.where(values > noise, values, 0).sqrt()
