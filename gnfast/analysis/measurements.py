"""Measurements as rows for figures: of one critic, and of what a run logged while it trained; `pooling` joins them."""

from collections.abc import Iterator, Sequence
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
    slopes,
)
from gnfast.measure.gradient_norms import QUANTILES, near
from gnfast.measure.loss_domain import PARTS
from gnfast.runs.rows import Panels, Rows
from gnfast.train.networks import present
from gnfast.train.probe import IMAGES

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
        labels: (N,) of a class-conditional critic's real images, and of the generated ones, which are made for them.
        method, tau, eps: the normaliser, as in `gnfast.normalize_gradient`; None for none.
        loss: that it was trained with, or None.
        family: its loss and regularisation in words.
        step: generator updates that it was trained for.
        jacobians: at how many images of each kind the Jacobians of its layers are taken, which take tens of passes.
    """

    name: str
    critic: nn.Module
    real: Tensor
    fake: Tensor | None = None
    method: heads.Method | None = None
    tau: float | None = None
    eps: float | None = None
    loss: Loss | None = None
    labels: Tensor | None = None
    family: str = ""
    step: int = 0
    jacobians: int = 32

    @property
    def kinds(self) -> list[tuple[str, Tensor]]:
        """The images by what they are."""
        return [(kind, x) for kind, x in (("real", self.real), ("generated", self.fake)) if x is not None]

    def given(self, images: Tensor) -> tuple[Tensor, ...]:
        """What the critic takes with its images, all of a kind: their labels too, where it is class-conditional."""
        return present(images, self.labels)

    @property
    def normaliser(self) -> dict[str, Any]:
        """The options of `gnfast.normalize_gradient`."""
        return {"method": self.method, "tau": self.tau, "eps": self.eps}

    @property
    def bound(self) -> float | None:
        """What the normaliser bounds the gradient norm by, if it does."""
        if self.method in ("gn", "pgn-table"):
            return 1.0
        return 1 / (self.tau or 1.0) if self.method in ("gran", "gran-shift") else None


def gradient_norm_rows(subject: Subject) -> Rows:
    """For `gradient-norms`: those of each kind of image, for `pooling.boxes`."""
    found = {kind: gradient_norms(subject.critic, *subject.given(x), **subject.normaliser) for kind, x in subject.kinds}
    keys = {"critic": subject.name, "bound": subject.bound}
    return [{**keys, "images": kind, "values": norms.normalized_norm} for kind, norms in found.items()]


def finite_difference_rows(subject: Subject) -> Rows:
    """For `finite-differences`: at the first images of each kind, for `pooling.boxes`."""
    rows = []
    for kind, x in subject.kinds:
        x, *labels = (tensor[:QUOTIENTS] for tensor in subject.given(x))
        found = finite_differences(subject.critic, x, DISTANCES, *labels, **subject.normaliser)
        for distance, values in zip(DISTANCES.tolist(), found, strict=True):
            key = {"critic": subject.name, "bound": subject.bound, "images": kind, "distance": distance}
            rows.append({**key, "values": values[~values.isnan()]})
    return rows


def spectrum_panels(subject: Subject) -> Panels:
    """The singular values of a critic's layers, and the largest of each as a matrix and as an operator."""
    spectra, operators = [], []
    first = (near(subject.critic, tensor[:1]) for tensor in subject.given(subject.real))
    for found in layer_spectra(subject.critic, *first):
        key = {"critic": subject.name, "layer": found.layer}
        pairs = zip(found.raw.tolist(), found.normalized.tolist(), strict=True)
        spectra += [{**key, "index": i, "raw": raw, "normalized": given} for i, (raw, given) in enumerate(pairs)]
        matrix = float(found.normalized[0])
        operators.append({**key, "matrix": matrix, "circular": found.circular, "operator": found.operator})
    return {"spectra": spectra, "operators": operators}


def layer_lipschitz_rows(subject: Subject, *, step: int = 0, depth: int = 0) -> Rows:
    """For `lipschitz-layers`: over `subject.jacobians` images of each kind."""
    count = subject.jacobians
    fake = None if subject.fake is None else subject.fake[:count]
    images = distributions(subject.real[:count], fake)
    labels = None if subject.labels is None else subject.labels[:count].repeat(len(images))
    stacked = torch.cat(list(images.values()))
    found = prefix_lipschitz(subject.critic, stacked, labels)
    key = {"critic": subject.name, "depth": depth, "step": step}
    return [
        {**key, "index": index, "layer": layer, "constant": constant, "images": len(stacked)}
        for index, (layer, constant) in enumerate(found.items(), 1)
    ]


def model_lipschitz_rows(subject: Subject, *, step: int = 0, depth: int = 0) -> Rows:
    """For `lipschitz-training`: of the normalised critic, over all kinds of images."""
    images = distributions(subject.real, subject.fake)
    found = model_lipschitz(subject.critic, images, subject.labels, **subject.normaliser)
    key = {"critic": subject.name, "depth": depth, "step": step}
    return [{**key, "constant": max(found.values()), "images": len(subject.real)}]


def lipschitz_training_rows(history: Rows, critic: str) -> Rows:
    """For `lipschitz-training`: what the run logged of its normalised critic at `probe.IMAGES` images of each kind."""
    names = ["grad_norm_real_max", "grad_norm_fake_max"]
    return [
        {"critic": critic, "depth": 0, "step": row["step"], "constant": max(values), "images": IMAGES}
        for row, values in _numbers(history, names)
    ]


def slope_rows(subject: Subject, points: int = 200) -> Rows:
    """For `loss-slopes`: the derivative of each part of the loss over Ω."""
    found = (gradient_norms(subject.critic, *subject.given(x), **subject.normaliser) for _, x in subject.kinds)
    logits = [norms.normalized for norms in found]
    omega = loss_domain(subject.loss, *logits).omega
    places = omega[0] + (omega[1] - omega[0]) * torch.linspace(0, 1, points, dtype=torch.float64)
    return [
        {"critic": subject.name, "part": part, "logit": logit, "slope": slope}
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
