"""The training runs of the papers' figures, as sweeps, and how each figure comes from its runs.

An experiment has the parts of a sweep file (docs/sweeps.md): base options, cases, a grid. Figures share experiments.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch

from gnfast.analysis import measurements as measured
from gnfast.analysis import subjects
from gnfast.analysis.measurements import Subject
from gnfast.analysis.pooling import pooled
from gnfast.config.presets import PRESETS
from gnfast.runs.rows import Panels, Rows
from gnfast.runs.sweep_results import Run
from gnfast.train.evaluate import load_split
from gnfast.train.probe import Probe
from gnfast.train.state import State

PRESET = "digits"
# Of each kind, that critics are measured at.
IMAGES = 256
BASE: dict[str, Any] = {
    "method": "none",
    "steps": 400,
    "batch_d": 32,
    "batch_g": 32,
    "ema_decay": 0.0,
    "n_fake": 2048,
    "eval_every": 0,
    "sample_every": 0,
    "n_samples": 2,
    "checkpoint_every": 0,
    "tensorboard": False,
}
"""What all runs change of the preset unless they say otherwise; a scale adds the data, sizes and the extractor."""

METHODS: dict[str, dict[str, Any]] = {
    "none": {},
    "clipping": {"weight_clip": 0.01},
    "weight norm": {"weight_norm": "unit"},
    "SN": {"spectral_norm": True},
    "1-GP": {"penalty": "1-gp"},
    "GN": {"method": "gn"},
    "GraN": {"method": "gran", "tau": 1 / 0.83},
    "PGN": {"method": "pgn-table"},
}
SPECTRUM_METHODS = ("clipping", "weight norm", "SN", "GN")
# GN-GAN, Fig. 3. A run for each length, for a run keeps its last checkpoints only.
DEPTHS = (3, 6, 9)
LENGTHS = [25, 100, 250]
ACTIVATIONS = {"ReLU": "relu", "ELU": "elu", "Softplus β=1": "softplus", "Softplus β=20": "softplus-20"}
SEEDS = [0, 1, 2]
ZETA = "ζ (ReLU)"

# Qin et al.: RMSProp at 5e-5 for 1e5 steps; a faster rate for so few.
DOMAIN = {"optimizer": "rmsprop", "lr_d": 5e-4, "lr_g": 5e-4, "steps": 250}
LOSSES = ["non-saturating", "least-squares", "wasserstein", "cosine", "exponential"]
K_SN = [0.2, 1.0, 5.0, 50.0]
ALPHA, ALPHA_WIDE = "α at k_SN = 1", "α at k_SN = 50"
# By family: base options, what varies besides the loss, and the losses.
DOMAINS: dict[str, tuple[dict[str, Any], str, list[float], list[str]]] = {
    "k_SN": ({"spectral_norm": True}, "k_sn", K_SN, LOSSES),
    ALPHA: ({"spectral_norm": True}, "alpha", [1e2, 1e5], LOSSES),
    ALPHA_WIDE: ({"spectral_norm": True, "k_sn": 50.0}, "alpha", [1e-9, 1e-3], LOSSES),
    "k_GP": ({"penalty": "1-gp"}, "k_gp", [0.2, 1.0, 10.0], LOSSES[:1]),
}
# By family: a preset of the paper for each letter, the letters, the methods, the loss.
SETTINGS: dict[str, tuple[str, str, tuple[str, ...], str]] = {
    "SN-GAN's settings, hinge": ("sngan-cifar10-cnn", "ABCDEF", ("none", "1-GP", "SN", "GN"), "hinge"),
    "GraN-GAN's settings, non-saturating": ("grand-cifar10", "ABCDE", ("1-GP", "SN", "GraN"), "non-saturating"),
}


def _methods(names: Iterable[str]) -> list[dict[str, Any]]:
    """The entries of a `[[case]]`."""
    return [{"name": name, **METHODS[name]} for name in names]


def _optimiser(preset: str) -> dict[str, Any]:
    config = PRESETS[preset].config
    return {"lr_d": config.lr_d, "lr_g": config.lr_g, "betas": list(config.betas), "n_dis": config.n_dis}


_LAYERED = {"model": "layered-3", "init": "kaiming-normal"}
EXPERIMENTS: dict[str, dict[str, Any]] = {
    "methods": {"base": {"extractor": "none"}, "case": {"critic": _methods(METHODS)}},
    "depths": {
        "base": {"init": "kaiming-normal", "loss": "wasserstein", "extractor": "none"},
        "case": {
            "critic": _methods(("SN", "GN")),
            "depth": [{"name": str(depth), "model": f"layered-{depth}"} for depth in DEPTHS],
        },
        "grid": {"steps": LENGTHS},
    },
    **{
        family: {"base": DOMAIN | base, "grid": {"loss": losses, name: values}}
        for family, (base, name, values, losses) in DOMAINS.items()
    },
    "activation": {
        "base": _LAYERED | {"method": "gn", "steps": 300},
        "case": {"setting": [{"name": name, "activation": activation} for name, activation in ACTIVATIONS.items()]},
        "grid": {"seed": SEEDS},
    },
    ZETA: {
        "base": _LAYERED | {"steps": 300},
        "case": {"setting": [{"name": "ζ = 0", "method": "gn0"}, {"name": "ζ = 1", "method": "gn1"}]},
        "grid": {"seed": SEEDS},
    },
    **{
        family: {
            "base": {"loss": loss, "steps": 250},
            "case": {
                "setting": [{"name": letter, **_optimiser(f"{preset}-{letter.lower()}")} for letter in letters],
                "critic": _methods(names),
            },
        }
        for family, (preset, letters, names, loss) in SETTINGS.items()
    },
}


@dataclass(frozen=True)
class Trained:
    """A run with its figures.

    Attributes:
        run: as the sweep has it; it has a record.
        device: where to measure.
    """

    run: Run
    device: torch.device

    @property
    def labels(self) -> dict[str, Any]:
        """What it is among the others: its `experiment`, and often its `critic`."""
        return self.run.case.labels

    @property
    def steps(self) -> int:
        """The generator updates that it has done."""
        return self.run.record.step

    @property
    def finished(self) -> bool:
        """Whether it trained to its end; otherwise it diverged."""
        return self.run.state.status == "finished"

    @cached_property
    def subject(self) -> Subject:
        """Its critic at the end."""
        found = subjects.of_run(self.run.case.folder, count=IMAGES, device=self.device)
        return dataclasses.replace(found, name=self.labels["critic"])

    def untrained(self) -> Subject:
        """Its critic at the start."""
        return subjects.untrained(self.labels["critic"], self.run.record.config, count=IMAGES, device=self.device)

    def history(self) -> Rows:
        """The rows of metrics.jsonl, and before them what the probe measures at the start."""
        config = self.run.record.config
        state = State(config, load_split(config, config.split, progress=False), self.device)
        return [{"step": 0, **Probe(config).measure(state)}, *self.run.record.rows]

    def score(self, **keys: Any) -> dict[str, Any]:
        """A row for the figures of scores: the distance at the end, None if it diverged, and what it is measured in."""
        end = self.run.last if self.finished else None
        features = next((row["extractor"] for row in self.run.record.rows if "extractor" in row), "")
        lost = None if self.finished else self.steps
        return {**keys, "distance": end and end[1], "features": features, "diverged_at": lost}


def _gradient_norms(found: Sequence[Trained]) -> Panels:
    return pooled({"gradient-norms": measured.gradient_norm_rows(subject)} for subject in _critics(found))


def _finite_differences(found: Sequence[Trained]) -> Panels:
    return pooled({"finite-differences": measured.finite_difference_rows(subject)} for subject in _critics(found))


def _depths(found: Sequence[Trained]) -> Panels:
    layers, models = [], []
    for run in found:
        found_at = {0: run.untrained()} if run.labels["steps"] == LENGTHS[0] else {}
        found_at |= {run.steps: run.subject} if run.finished else {}
        for step, subject in found_at.items():
            keys = {"step": step, "depth": int(run.labels["depth"])}
            layers += measured.layer_lipschitz_rows(dataclasses.replace(subject, jacobians=8), **keys)
            models += measured.model_lipschitz_rows(subject, **keys)
    return {"lipschitz-layers": layers, "lipschitz-training": models}


def _spectra(found: Sequence[Trained]) -> Panels:
    found = [run for run in found if run.labels["critic"] in SPECTRUM_METHODS]
    sigmas = [row for run in found for row in measured.sigma_rows(run.history(), run.labels["critic"])]
    panels = pooled(map(measured.spectrum_panels, _critics(found)))
    return {"spectra": panels["spectra"], "sigmas": sigmas, "operators": panels["operators"]}


def _domains(found: Sequence[Trained]) -> Panels:
    over_training, scores = [], []
    # The runs at α = 1 belong to the sweeps over α as well.
    shared = {1.0: ALPHA, 50.0: ALPHA_WIDE}
    for run in found:
        family, loss = run.labels["experiment"], run.labels["loss"]
        value = run.labels[DOMAINS[family][1]]
        if loss == LOSSES[0]:
            over_training += measured.domain_rows(run.history(), "critic_real", family, f"{value:g}")
        if family != "k_GP":
            scores.append(run.score(family=family, value=value, loss=loss))
        if family == "k_SN" and value in shared:
            scores.append(run.score(family=shared[value], value=1.0, loss=loss))
    order = list(DOMAINS)
    scores.sort(key=lambda row: (order.index(row["family"]), LOSSES.index(row["loss"]), row["value"]))
    return {"loss-domains": over_training, "domain-sweep": scores}


def _ablations(found: Sequence[Trained]) -> Panels:
    rows = [
        run.score(critic="GN", family=run.labels["experiment"], setting=run.labels["setting"], seed=run.labels["seed"])
        for run in found
    ]
    # ReLU with ζ = |f| stands in both families.
    shared = [{**row, "family": ZETA, "setting": "ζ = |f|"} for row in rows if row["setting"] == "ReLU"]
    return {"ablations": rows + shared}


def _robustness(found: Sequence[Trained]) -> Panels:
    rows = [
        run.score(family=run.labels["experiment"], critic=run.labels["critic"], setting=run.labels["setting"], seed=0)
        for run in found
    ]
    return {"robustness": rows}


def _critics(found: Sequence[Trained]) -> Iterator[Subject]:
    return (run.subject for run in found if run.finished)


class PaperFigure(NamedTuple):
    """A figure of the papers: the experiments that it needs, and its panels from their runs."""

    experiments: tuple[str, ...]
    panels: Callable[[Sequence[Trained]], Panels]


FIGURES: dict[str, PaperFigure] = {
    "gradients": PaperFigure(("methods",), _gradient_norms),
    "finite-differences": PaperFigure(("methods",), _finite_differences),
    "lipschitz": PaperFigure(("depths",), _depths),
    "singular-values": PaperFigure(("methods",), _spectra),
    "loss-domains": PaperFigure(tuple(DOMAINS), _domains),
    "ablations": PaperFigure(("activation", ZETA), _ablations),
    "robustness": PaperFigure(tuple(SETTINGS), _robustness),
}
"""What `gnfast analyze --reproduce` can draw."""
