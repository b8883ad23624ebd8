"""Measurements as rows for figures and CSV files: of one critic, and of what a run logged while it trained."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gnfast.engine import heads
from gnfast.losses import Loss
from gnfast.measure import (
    distributions,
    finite_differences,
    gradient_norms,
    layer_spectra,
    loss_domain,
    model_lipschitz,
    prefix_lipschitz,
    quantiles,
    slopes,
)
from gnfast.measure.gradient_norms import QUANTILES
from gnfast.measure.loss_domain import PARTS
from gnfast.runs.rows import Panels, Rows

# Of difference quotients: from 1e-4 to 100, two in each power of ten, at as many images.
DISTANCES = 10.0 ** (torch.arange(-8, 5).double() / 2)
QUOTIENTS = 64


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


def gradient_norm_panels(subjects: Iterable[Subject]) -> Panels:
    """The gradient norms of critics at their images."""
    rows = []
    for subject in subjects:
        for kind, x in {"real": subject.real, "generated": subject.fake}.items():
            if x is not None:
                norms = gradient_norms(subject.critic, x, **subject.normaliser).normalized_norm
                key = {"critic": subject.name, "images": kind, "count": len(x)}
                rows.append({**key, **quantiles(norms), "bound": subject.bound})
    return {"gradient-norms": rows}


def finite_difference_panels(subjects: Iterable[Subject]) -> Panels:
    """The difference quotients of critics at the first of their real images."""
    rows = []
    for subject in subjects:
        found = finite_differences(subject.critic, subject.real[:QUOTIENTS], DISTANCES, **subject.normaliser)
        for distance, values in zip(DISTANCES.tolist(), found, strict=True):
            values = values[~values.isnan()]
            numbers = quantiles(values) if len(values) else dict.fromkeys(QUANTILES, 0.0)
            rows.append({"critic": subject.name, "distance": distance, **numbers})
    return {"finite-differences": rows}


def spectrum_panels(subjects: Iterable[Subject]) -> Panels:
    """The singular values of critics' layers, and the largest of each as a matrix and as an operator."""
    spectra, operators = [], []
    for subject in subjects:
        for found in layer_spectra(subject.critic, subject.real[:1]):
            key = {"critic": subject.name, "layer": found.layer}
            pairs = zip(found.raw.tolist(), found.normalized.tolist(), strict=True)
            spectra += [{**key, "index": i, "raw": raw, "normalized": given} for i, (raw, given) in enumerate(pairs)]
            matrix = float(found.normalized[0])
            operators.append({**key, "matrix": matrix, "circular": found.circular, "operator": found.operator})
    return {"spectra": spectra, "operators": operators}


def layer_lipschitz_rows(subject: Subject, *, count: int = 32, step: int = 0, depth: int = 0) -> Rows:
    """For `lipschitz-layers`: over `count` images of each kind."""
    fake = None if subject.fake is None else subject.fake[:count]
    images = torch.cat(list(distributions(subject.real[:count], fake).values()))
    found = prefix_lipschitz(subject.critic, images)
    key = {"critic": subject.name, "depth": depth, "step": step}
    return [
        {**key, "index": index, "layer": layer, "constant": constant, "images": len(images)}
        for index, (layer, constant) in enumerate(found.items(), 1)
    ]


def model_lipschitz_rows(subject: Subject, *, step: int = 0, depth: int = 0) -> Rows:
    """For `lipschitz-training`: of the normalised critic, with the largest of each kind of image as well."""
    found = model_lipschitz(subject.critic, distributions(subject.real, subject.fake), **subject.normaliser)
    key = {"critic": subject.name, "depth": depth, "step": step}
    return [{**key, "constant": max(found.values()), "images": len(subject.real), **found}]


def slope_rows(subject: Subject, points: int = 200) -> Rows:
    """For `loss-slopes`: the derivative of each part of the loss over Ω."""
    logits = [gradient_norms(subject.critic, x, **subject.normaliser).normalized for x in (subject.real, subject.fake)]
    omega = loss_domain(subject.loss, *logits).omega
    places = omega[0] + (omega[1] - omega[0]) * torch.linspace(0, 1, points, dtype=torch.float64)
    return [
        {"part": part, "logit": logit, "slope": slope}
        for part in PARTS
        for logit, slope in zip(places.tolist(), slopes(getattr(subject.loss, part), places).tolist(), strict=True)
    ]


def norm_training_rows(history: Rows) -> Rows:
    """For `gradient-norm-training`."""
    return [
        {"images": kind, "step": row["step"], **dict(zip(QUANTILES, values, strict=True))}
        for key, kind in (("real", "real"), ("fake", "generated"))
        for row, values in _numbers(history, [f"grad_norm_{key}_{quantile}" for quantile in QUANTILES])
    ]


def sigma_rows(history: Rows, critic: str) -> Rows:
    """For `sigmas`."""
    layers = dict.fromkeys(key.removeprefix("sigma/") for row in history for key in row if key.startswith("sigma/"))
    rows = []
    for layer in layers:
        applied = {row["step"]: value for row, (value,) in _numbers(history, [f"sigma_applied/{layer}"])}
        for row, (raw,) in _numbers(history, [f"sigma/{layer}"]):
            key = {"critic": critic, "step": row["step"], "layer": layer}
            rows.append({**key, "raw": raw, "applied": applied.get(row["step"], raw)})
    return rows


def domain_rows(history: Rows, part: str, family: str, setting: str) -> Rows:
    """For `loss-domains`: with the slopes of one part of the loss."""
    names = ("omega_min", "omega_max", "slope_min", "slope_max")
    keys = [name.replace("slope", f"slope_{part}") for name in names]
    return [
        {"family": family, "setting": setting, "step": row["step"], **dict(zip(names, values, strict=True))}
        for row, values in _numbers(history, keys)
    ]


def _numbers(history: Rows, names: Sequence[str]) -> Iterator[tuple[dict[str, Any], list[float]]]:
    """The rows that have numbers under all the names, with these: others lack them, and the file may be damaged."""
    for row in history:
        found = [row.get(name) for name in names]
        if all(type(value) in (int, float) for value in found):
            yield row, found
