"""The training runs behind the papers' figures, as data: which settings, what is measured, how the figure is made.

A run is named after what distinguishes it, and figures that need the same run share it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from gnfast.analysis import panels
from gnfast.analysis.figures import Rows
from gnfast.analysis.networks import ACTIVATIONS, DEPTHS, layered
from gnfast.analysis.report import Panel

# What `gnfast.analysis.reproduce` can measure of a run; "score" is the Fréchet distance at the end.
MEASURES = ("critic", "sigmas", "lipschitz", "domain", "score")


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        name: unique; its record's file is called after it.
        label: what figures call its critic.
        changes: fields of `gnfast.train.Config` that differ from `BASE`.
        measures: some of `MEASURES`.
        keys: what else its rows in figures say (family, setting, loss, seed, …).
    """

    name: str
    label: str
    changes: dict[str, Any]
    measures: tuple[str, ...]
    keys: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Record:
    """What a run gave: rows per measurement, and the score.

    Attributes:
        rows: name of the table to its rows.
        distance: the Fréchet distance at the end; None if it diverged or was not asked for.
        features: what the distance is measured in.
        diverged: the step after which its losses or its critic were no longer finite, or None.
    """

    rows: dict[str, Rows]
    distance: float | None
    features: str
    diverged: int | None


BASE: dict[str, Any] = {
    "flip": False,
    "model": "small",
    "z_dim": 64,
    "method": "none",
    "loss": "hinge",
    "steps": 400,
    "n_dis": 1,
    "batch_d": 32,
    "batch_g": 32,
    "lr_d": 1e-3,
    "lr_g": 1e-3,
    "betas": (0.5, 0.9),
    "ema_decay": 0.0,
    "n_samples": 2,
    "tensorboard": False,
}
"""What all runs share unless they say otherwise; the scale of a reproduction adds data, resolution and width."""

METHODS: dict[str, dict[str, Any]] = {
    "none": {},
    "clipping": {"weight_clip": 0.01},
    "weight norm": {"weight_norm": True},
    "SN": {"spectral_norm": True},
    "1-GP": {"penalty": "1-gp"},
    "GN": {"method": "gn"},
    "GraN": {"method": "gran", "tau": 1 / 0.83},
    "PGN": {"method": "pgn-table"},
}
SPECTRUM_METHODS = ("clipping", "weight norm", "SN", "GN")

# Qin et al.: RMSProp at 5e-5 for 1e5 steps; a faster rate for so few.
DOMAIN = {"optimizer": "rmsprop", "lr_d": 5e-4, "lr_g": 5e-4, "steps": 250}
LOSSES = ("non-saturating", "least-squares", "wasserstein", "cosine", "exponential")
K_SN = (0.2, 1.0, 5.0, 50.0)
K_GP = (0.2, 1.0, 10.0)
ALPHA_WIDE = (1e-9, 1e-3)
ALPHA_NARROW = (1e2, 1e5)

# Learning rate, β₁, β₂, n_dis (SN-GAN, Table 1; GraN-GAN, Fig. 2).
SNGAN_SETTINGS = {
    "A": (1e-4, 0.5, 0.9, 5),
    "B": (1e-4, 0.5, 0.999, 1),
    "C": (2e-4, 0.5, 0.999, 1),
    "D": (1e-3, 0.5, 0.9, 5),
    "E": (1e-3, 0.5, 0.999, 5),
    "F": (1e-3, 0.9, 0.999, 5),
}
GRAN_SETTINGS = {
    "A": (1e-4, 0.5, 0.9, 5),
    "B": (2e-4, 0.5, 0.999, 1),
    "C": (1e-3, 0.5, 0.999, 5),
    "D": (1e-3, 0.9, 0.999, 5),
    "E": (2e-4, 0.0, 0.9, 5),
}
SEEDS = (0, 1, 2)


def _methods() -> list[Run]:
    return [
        Run(f"method-{_slug(name)}", name, changes, ("critic", "sigmas", "score")) for name, changes in METHODS.items()
    ]


def _depths() -> list[Run]:
    return [
        Run(
            f"depth-{_slug(name)}-{depth}",
            name,
            {
                **METHODS[name],
                "model": layered(depth),
                "init": "kaiming-normal",
                "loss": "wasserstein",
                "steps": 250,
            },
            ("lipschitz",),
            {"depth": depth},
        )
        for name in ("SN", "GN")
        for depth in DEPTHS
    ]


def _domains() -> list[Run]:
    """The sweep over k_SN and over α with every loss, and over k_GP with the non-saturating one."""
    runs = []
    for loss in LOSSES:
        for k in K_SN:
            runs.append(_domain_run("k_SN", k, loss, {"spectral_norm": True, "k_sn": k}))
        for alpha in ALPHA_NARROW:
            runs.append(_domain_run("α at k_SN = 1", alpha, loss, {"spectral_norm": True, "alpha": alpha}))
        for alpha in ALPHA_WIDE:
            changes = {"spectral_norm": True, "k_sn": K_SN[-1], "alpha": alpha}
            runs.append(_domain_run(f"α at k_SN = {K_SN[-1]:g}", alpha, loss, changes))
    return runs + [_domain_run("k_GP", k, LOSSES[0], {"penalty": "1-gp", "k_gp": k}) for k in K_GP]


def _domain_run(family: str, value: float, loss: str, changes: dict[str, Any]) -> Run:
    measures = ("domain", "score") if loss == LOSSES[0] else ("score",)
    keys = {"family": family, "value": value, "loss": loss}
    return Run(f"domain-{_slug(family)}-{value:g}-{loss}", loss, {**DOMAIN, **changes, "loss": loss}, measures, keys)


def _ablations() -> list[Run]:
    critics = {name: ("activation", name, "gn") for name in ACTIVATIONS}
    critics |= {"ζ = 0": ("ζ (ReLU)", "ReLU", "gn0"), "ζ = 1": ("ζ (ReLU)", "ReLU", "gn1")}
    return [
        Run(
            f"ablation-{_slug(setting)}-{seed}",
            "GN",
            {"model": layered(DEPTHS[0], activation), "init": "kaiming-normal", "method": method, "seed": seed}
            | {"steps": 300},
            ("score",),
            {"family": family, "setting": setting, "seed": seed},
        )
        for setting, (family, activation, method) in critics.items()
        for seed in SEEDS
    ]


def _robustness() -> list[Run]:
    families = {
        "SN-GAN's settings, hinge": (SNGAN_SETTINGS, ("none", "1-GP", "SN", "GN"), "hinge"),
        "GraN-GAN's settings, non-saturating": (GRAN_SETTINGS, ("1-GP", "SN", "GraN"), "non-saturating"),
    }
    return [
        Run(
            f"robust-{loss}-{setting}-{_slug(name)}",
            name,
            {
                **METHODS[name],
                "loss": loss,
                "lr_d": rate,
                "lr_g": rate,
                "betas": (beta1, beta2),
                "n_dis": n_dis,
                "steps": 250,
            },
            ("score",),
            {"family": family, "setting": setting, "seed": 0},
        )
        for family, (settings, names, loss) in families.items()
        for setting, (rate, beta1, beta2, n_dis) in settings.items()
        for name in names
    ]


@dataclass(frozen=True)
class FigureSpec:
    """A figure of the papers: the runs that it needs, and how their records become panels."""

    runs: list[Run]
    panels: Callable[[list[tuple[Run, Record]]], list[Panel]]


def _draw_gradients(found: list[tuple[Run, Record]]) -> list[Panel]:
    return [panels.gradient_norms(_table(found, "gradients"))]


def _draw_differences(found: list[tuple[Run, Record]]) -> list[Panel]:
    return [panels.finite_differences(_table(found, "differences"))]


def _draw_depths(found: list[tuple[Run, Record]]) -> list[Panel]:
    return [
        panels.lipschitz_layers(_table(found, "layers")),
        panels.lipschitz_training(_table(found, "model")),
    ]


def _draw_spectra(found: list[tuple[Run, Record]]) -> list[Panel]:
    return [
        panels.spectra(_table(found, "spectra")),
        panels.sigmas(_table(found, "sigmas")),
        panels.operators(_table(found, "operators")),
    ]


def _draw_domains(found: list[tuple[Run, Record]]) -> list[Panel]:
    over_training = [
        {"family": run.keys["family"], "setting": f"{run.keys['value']:g}", **row}
        for run, record in found
        for row in record.rows.get("domain", ())
    ]
    # The runs at α = 1 belong to the sweeps over α as well.
    shared = {K_SN[1]: "α at k_SN = 1", K_SN[-1]: f"α at k_SN = {K_SN[-1]:g}"}
    scores = [_score(run, record, **run.keys) for run, record in found if run.keys["family"] != "k_GP"]
    scores += [
        _score(run, record, **{**run.keys, "family": shared[run.keys["value"]], "value": 1.0})
        for run, record in found
        if run.keys["family"] == "k_SN" and run.keys["value"] in shared
    ]
    scores.sort(key=lambda row: (row["loss"], row["value"]))
    order = ("k_SN", *shared.values())
    scores.sort(key=lambda row: (order.index(row["family"]), LOSSES.index(row["loss"])))
    return [panels.loss_domains(over_training), panels.domain_sweep(scores)]


def _draw_ablations(found: list[tuple[Run, Record]]) -> list[Panel]:
    rows = [_score(run, record, critic=run.label, **run.keys) for run, record in found]
    # ReLU with ζ = |f| stands in both families.
    zeta = [{**row, "family": "ζ (ReLU)", "setting": "ζ = |f|"} for row in rows if row["setting"] == "ReLU"]
    return [panels.ablations(rows + zeta)]


def _draw_robustness(found: list[tuple[Run, Record]]) -> list[Panel]:
    return [panels.robustness([_score(run, record, critic=run.label, **run.keys) for run, record in found])]


def _table(found: list[tuple[Run, Record]], name: str) -> Rows:
    return [row for _, record in found for row in record.rows.get(name, ())]


def _score(run: Run, record: Record, **keys: Any) -> dict[str, Any]:
    return {**keys, "distance": record.distance, "features": record.features, "diverged_at": record.diverged}


def _slug(text: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in text.lower()).strip("-")


FIGURES: dict[str, FigureSpec] = {
    "gradients": FigureSpec(_methods(), _draw_gradients),
    "finite-differences": FigureSpec(_methods(), _draw_differences),
    "lipschitz": FigureSpec(_depths(), _draw_depths),
    "singular-values": FigureSpec([run for run in _methods() if run.label in SPECTRUM_METHODS], _draw_spectra),
    "loss-domains": FigureSpec(_domains(), _draw_domains),
    "ablations": FigureSpec(_ablations(), _draw_ablations),
    "robustness": FigureSpec(_robustness(), _draw_robustness),
}
"""What `gnfast analyze --reproduce` can draw."""
