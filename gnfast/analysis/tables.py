"""The measurements of one critic as rows for figures and CSV files."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gnfast.analysis.figures import Rows
from gnfast.engine import heads
from gnfast.losses import Loss
from gnfast.measure.finite_differences import finite_differences
from gnfast.measure.gradient_norms import gradient_norms, quantiles
from gnfast.measure.lipschitz_constants import distributions, model_lipschitz, prefix_lipschitz
from gnfast.measure.loss_domain import PARTS, loss_domain, slopes
from gnfast.measure.singular_values import layer_spectra

QUANTILE_NAMES = ("min", "q25", "median", "q75", "max")
DECADES = (-4, 2)
PER_DECADE = 2


@dataclass(frozen=True)
class Subject:
    """A critic with what it is measured at.

    Attributes:
        name: what figures call it.
        critic: the network without its normaliser.
        real: (N, C, H, W) real images in [-1, 1].
        fake: (N, C, H, W) generated ones, or None.
        method, tau, eps: the normaliser, as in `gnfast.normalize_gradient`; None for none.
        loss: that it was trained with, or None.
    """

    name: str
    critic: nn.Module
    real: Tensor
    fake: Tensor | None = None
    method: heads.Method | None = None
    tau: float | None = None
    eps: float | None = None
    loss: Loss | None = None

    @property
    def normaliser(self) -> dict[str, Any]:
        """The options of `gnfast.normalize_gradient`."""
        return {"method": self.method, "tau": self.tau, "eps": self.eps}

    @property
    def bound(self) -> float | None:
        """What the normaliser bounds the gradient norm by, if it does."""
        if self.method in ("gn", "pgn-table"):
            return 1.0
        return 1 / (self.tau or 1.0) if self.method == "gran" else None


def gradient_rows(subject: Subject, normalized: bool = True) -> Rows:
    """For `gradient_norm_boxes`: of f̂, or of f."""
    rows = []
    images = {"real": subject.real} | ({} if subject.fake is None else {"generated": subject.fake})
    for kind, x in images.items():
        norms = gradient_norms(subject.critic, x, **(subject.normaliser if normalized else {})).normalized_norm
        numbers = dict(zip(QUANTILE_NAMES, quantiles(norms).tolist(), strict=True))
        rows.append(
            {
                "critic": subject.name,
                "images": kind,
                "count": len(x),
                **numbers,
                "bound": subject.bound if normalized else None,
            }
        )
    return rows


def finite_difference_rows(subject: Subject, count: int = 64) -> Rows:
    """For `finite_difference_lines`: at the first `count` real images."""
    exponents = torch.arange(DECADES[0] * PER_DECADE, DECADES[1] * PER_DECADE + 1) / PER_DECADE
    distances = 10.0 ** exponents.double()
    found = finite_differences(subject.critic, subject.real[:count], distances, **subject.normaliser)
    rows = []
    for distance, values in zip(distances.tolist(), found, strict=True):
        values = values[~values.isnan()]
        numbers = quantiles(values).tolist() if len(values) else [0.0] * len(QUANTILE_NAMES)
        rows.append({"critic": subject.name, "distance": distance, **dict(zip(QUANTILE_NAMES, numbers, strict=True))})
    return rows


def layer_lipschitz_rows(subject: Subject, *, count: int = 32, step: int = 0, depth: int = 0) -> Rows:
    """For `lipschitz_by_layer`: over `count` images of each kind."""
    fake = None if subject.fake is None else subject.fake[:count]
    images = torch.cat(list(distributions(subject.real[:count], fake).values()))
    found = prefix_lipschitz(subject.critic, images)
    key = {"critic": subject.name, "depth": depth, "step": step}
    return [
        {**key, "index": index, "layer": layer, "constant": constant, "images": len(images)}
        for index, (layer, constant) in enumerate(found.items(), 1)
    ]


def model_lipschitz_rows(subject: Subject, *, step: int = 0, depth: int = 0) -> Rows:
    """For `lipschitz_over_training`: of the normalised critic, with the largest of each kind of image as well."""
    found = model_lipschitz(subject.critic, distributions(subject.real, subject.fake), **subject.normaliser)
    key = {"critic": subject.name, "depth": depth, "step": step}
    return [{**key, "constant": max(found.values()), "images": len(subject.real), **found}]


def spectrum_rows(subject: Subject) -> tuple[Rows, Rows]:
    """For `spectra` and for `operators`."""
    values, norms = [], []
    for found in layer_spectra(subject.critic, subject.real[:1]):
        key = {"critic": subject.name, "layer": found.layer}
        pairs = zip(found.raw.tolist(), found.normalized.tolist(), strict=True)
        values += [{**key, "index": i, "raw": raw, "normalized": given} for i, (raw, given) in enumerate(pairs)]
        matrix = float(found.normalized[0])
        norms.append({**key, "matrix": matrix, "circular": found.circular, "operator": found.operator})
    return values, norms


def domain_row(subject: Subject) -> dict[str, float]:
    """Ω of a subject with a loss and generated images, and the slopes of each part of the loss on it."""
    domain = loss_domain(subject.loss, *_logits(subject))
    row = {"omega_min": float(domain.omega[0]), "omega_max": float(domain.omega[1])}
    for name, (low, high) in domain.slopes.items():
        row |= {f"slope_{name}_min": float(low), f"slope_{name}_max": float(high)}
    return row


def slope_rows(subject: Subject, points: int = 200) -> Rows:
    """For `loss_slopes`: the derivative of each part of the loss over Ω."""
    omega = loss_domain(subject.loss, *_logits(subject)).omega
    places = omega[0] + (omega[1] - omega[0]) * torch.linspace(0, 1, points, dtype=torch.float64)
    return [
        {"part": part, "logit": logit, "slope": slope}
        for part in PARTS
        for logit, slope in zip(places.tolist(), slopes(getattr(subject.loss, part), places).tolist(), strict=True)
    ]


def _logits(subject: Subject) -> tuple[Tensor, Tensor]:
    real, fake = (
        gradient_norms(subject.critic, images, **subject.normaliser).normalized
        for images in (subject.real, subject.fake)
    )
    return real, fake
