"""What must be reached on a GPU, each from rows of the same run."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]
Sections = dict[str, dict[str, Any]]

# Parts of the names of variants.
CAPTURED, PAPERS, STRONGEST, PLAIN = "gnfast, CUDA graph", "a:", "strongest", "no normalisation, CUDA graph"


@dataclass(frozen=True)
class Bound:
    """A figure that must not exceed a bound, or with `least` must not fall below it.

    Attributes:
        what: in words.
        value: takes the sections of results.json; None where nothing of it was measured, NaN where gnfast's own step
            computed something else than it should.
        bound: the limit.
        expected: what was predicted before anything was measured, from and to (docs/gpu.md).
        least: whether the bound is a lower one.
    """

    what: str
    value: Callable[[Sections], float | None]
    bound: float
    expected: tuple[float, float]
    least: bool = False

    def holds(self, value: float) -> bool:
        """Whether the value is on the right side."""
        return value >= self.bound if self.least else value <= self.bound


def rows_of(sections: Sections, *names: str) -> list[Row]:
    """The rows of the sections with these names, those that were measured."""
    return [row for name in names for row in sections.get(name, {}).get("rows", ())]


def _field(name: str, variant: str, field: str) -> Callable[[Sections], float | None]:
    def value(sections: Sections) -> float | None:
        rows = rows_of(sections, name)
        if wrong(rows):
            return math.nan
        # What was computed wrongly has no time.
        rows = (row for row in rows if row.get("gate") not in (None, "red"))
        return next((row.get(field) for row in rows if row["variant"].startswith(variant)), None)

    return value


def wrong(rows: Iterable[Row]) -> bool:
    """Whether gnfast's own step, of which the ratios would be, failed the gate."""
    return any(row.get("gate") == "red" and row["variant"] == row["ours"] for row in rows)


def _strongest(network: str) -> Callable[[Sections], float | None]:
    """The ratio to the best of all baselines that normalise, compiled ones included."""

    def worst(sections: Sections) -> float | None:
        rows = rows_of(sections, *(f"{kind}_{network}_bfloat16" for kind in ("critic", "compiled", "searched")))
        if wrong(rows):
            return math.nan
        rows = [row for row in rows if row.get("step") == "critic step" and is_baseline(row)]
        # Without the compiled ones, the strongest is not among them.
        if not any(row["variant"].startswith(STRONGEST) for row in rows):
            return None
        return max((row["ratio"] for row in rows), default=None)

    return worst


def is_baseline(row: Row) -> bool:
    """Whether the row is a normalising baseline that computed the same as gnfast."""
    variant = row.get("variant", "")
    return bool(row.get("ratio")) and not variant.startswith(("gnfast", "no normalisation"))


def _minutes(name: str) -> Callable[[Sections], float | None]:
    def value(sections: Sections) -> float | None:
        hours = _field(name, CAPTURED, "hours_200k")(sections)
        return None if hours is None else 60 * hours

    return value


def _failed_tests(sections: Sections) -> float | None:
    return next((float(row.get("failed", 0)) for row in rows_of(sections, "tests")), None)


def _spectral(field: str) -> Callable[[Sections], float | None]:
    def value(sections: Sections) -> float | None:
        wanted = {"network": "ladder 64-1024", "dtype": "torch.float32", "layout": "torch.contiguous_format"}
        rows = (row for row in rows_of(sections, "spectral") if wanted.items() <= row.items())
        return next((row["forward and backward"][field] for row in rows), None)

    return value


BOUNDS = (
    Bound(
        "ResNet 32 critic step / the papers' code",
        _field("critic_resnet_bfloat16", PAPERS, "ratio"),
        0.15,
        (0.02, 0.12),
    ),
    Bound("CNN 32 critic step / the papers' code", _field("critic_cnn_bfloat16", PAPERS, "ratio"), 0.15, (0.04, 0.16)),
    Bound("ResNet 32 critic step / the strongest baseline", _strongest("resnet"), 0.65, (0.40, 0.65)),
    Bound("CNN 32 critic step / the strongest baseline", _strongest("cnn"), 0.75, (0.60, 0.85)),
    Bound(
        "ResNet 32 critic step / no normalisation", _field("critic_resnet_bfloat16", PLAIN, "ratio"), 1.0, (0.8, 1.15)
    ),
    Bound("CNN 32 critic step / no normalisation", _field("critic_cnn_bfloat16", PLAIN, "ratio"), 1.45, (1.1, 1.4)),
    Bound(
        "ResNet 256 critic step, fraction of the floor",
        _field("critic_256", CAPTURED, "fraction_of_floor"),
        0.5,
        (0.35, 0.6),
        least=True,
    ),
    Bound(
        "ResNet 32 iteration / the papers' code",
        _field("iteration_resnet_bfloat16", PAPERS, "ratio"),
        0.20,
        (0.06, 0.2),
    ),
    Bound("CNN 32 iteration / the papers' code", _field("iteration_cnn_bfloat16", PAPERS, "ratio"), 0.20, (0.09, 0.22)),
    Bound("minutes for 200k steps of gngan-cifar10-resnet", _minutes("iteration_resnet_bfloat16"), 45, (25, 40)),
    Bound("minutes for 200k steps of gngan-cifar10-cnn", _minutes("iteration_cnn_bfloat16"), 8, (5, 9)),
    Bound("spectral norm / PyTorch's, both captured", _spectral("ratio_to_pytorch"), 0.10, (0.12, 0.25)),
    Bound(
        "spectral norm, fraction of copy bandwidth",
        _spectral("fraction_of_bandwidth_floor"),
        0.6,
        (0.5, 1.2),
        least=True,
    ),
    Bound("GPU tests that failed", _failed_tests, 0, (0, 20)),
)
"""In bfloat16; critic steps of 128 images and iterations as CUDA graphs."""
