"""What must be reached on a GPU, each from rows of the same run."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

Row = dict[str, Any]
Sections = dict[str, dict[str, Any]]
Value = Callable[[Sections], float | None]

# Parts of the names of variants.
CAPTURED, PAPERS, STRONGEST, PLAIN = "gnfast, CUDA graph", "a:", "strongest", "no normalisation, CUDA graph"


@dataclass(frozen=True)
class Bound:
    """A figure that must not exceed a bound, or with `least` must not fall below it."""

    what: str
    bound: float
    expected: tuple[float, float]
    """What was predicted before anything was measured, from and to (docs/gpu.md)."""
    value: Value
    """Takes the sections of results.json; None where nothing of it was measured, NaN where gnfast's own step computed
    something else than it should."""
    least: bool = False

    def holds(self, value: float) -> bool:
        return value >= self.bound if self.least else value <= self.bound


def rows_of(sections: Sections, *names: str) -> list[Row]:
    """The rows of the sections with these names, those that were measured."""
    return [row for name in names for row in sections.get(name, {}).get("rows", ())]


def _figure(section: str, variant: str, sections: Sections, field: str = "ratio", factor: float = 1.0) -> float | None:
    """A figure of a variant's row, times a factor."""
    rows = rows_of(sections, section)
    if wrong(rows):
        return math.nan
    # What was computed wrongly has no time.
    rows = (row for row in rows if row.get("gate") not in (None, "red"))
    found = next((row.get(field) for row in rows if row["variant"].startswith(variant)), None)
    return None if found is None else factor * found


def _minutes(section: str, sections: Sections) -> float | None:
    return _figure(section, CAPTURED, sections, "hours_200k", factor=60)


def wrong(rows: Iterable[Row]) -> bool:
    """Whether gnfast's own step, of which the ratios would be, failed the gate."""
    return any(row.get("gate") == "red" and row["variant"] == row["ours"] for row in rows)


def _strongest(network: str, sections: Sections) -> float | None:
    """The ratio to the best of all baselines that normalise, compiled ones included."""
    rows = rows_of(sections, *(f"{kind}_{network}_bfloat16" for kind in ("critic", "compiled", "searched")))
    if wrong(rows):
        return math.nan
    baselines = [row for row in rows if row.get("step") == "critic step" and is_baseline(row)]
    # Without the compiled ones, the strongest is not among them.
    complete = any(row["variant"].startswith(STRONGEST) for row in baselines)
    return max(row["ratio"] for row in baselines) if complete else None


def is_baseline(row: Row) -> bool:
    """Whether the row is a normalising baseline that computed the same as gnfast."""
    variant = row.get("variant", "")
    return bool(row.get("ratio")) and not variant.startswith(("gnfast", "no normalisation"))


def _failed_tests(sections: Sections) -> float | None:
    return next((float(row.get("failed", 0)) for row in rows_of(sections, "tests") if row.get("tests")), None)


def _spectral(field: str, sections: Sections) -> float | None:
    wanted = {"network": "ladder 64-1024", "dtype": "torch.float32", "layout": "torch.contiguous_format"}
    rows = (row for row in rows_of(sections, "spectral") if wanted.items() <= row.items())
    return next((row["forward and backward"][field] for row in rows), None)


RESNET, CNN = "critic_resnet_bfloat16", "critic_cnn_bfloat16"
RESNET_ITERATION, CNN_ITERATION = "iteration_resnet_bfloat16", "iteration_cnn_bfloat16"
LARGE_OF_FLOOR = partial(_figure, "critic_256", CAPTURED, field="fraction_of_floor")
OF_BANDWIDTH = "fraction_of_bandwidth_floor"

BOUNDS = (
    Bound("ResNet 32 critic step / the papers' code", 0.15, (0.02, 0.12), partial(_figure, RESNET, PAPERS)),
    Bound("CNN 32 critic step / the papers' code", 0.15, (0.04, 0.16), partial(_figure, CNN, PAPERS)),
    Bound("ResNet 32 critic step / the strongest baseline", 0.65, (0.40, 0.65), partial(_strongest, "resnet")),
    Bound("CNN 32 critic step / the strongest baseline", 0.75, (0.60, 0.85), partial(_strongest, "cnn")),
    Bound("ResNet 32 critic step / no normalisation", 1.0, (0.8, 1.15), partial(_figure, RESNET, PLAIN)),
    Bound("CNN 32 critic step / no normalisation", 1.45, (1.1, 1.4), partial(_figure, CNN, PLAIN)),
    Bound("ResNet 256 critic step, fraction of the floor", 0.5, (0.35, 0.6), LARGE_OF_FLOOR, least=True),
    Bound("ResNet 32 iteration / the papers' code", 0.20, (0.06, 0.2), partial(_figure, RESNET_ITERATION, PAPERS)),
    Bound("CNN 32 iteration / the papers' code", 0.20, (0.09, 0.22), partial(_figure, CNN_ITERATION, PAPERS)),
    Bound("minutes for 200k steps of gngan-cifar10-resnet", 45, (25, 40), partial(_minutes, RESNET_ITERATION)),
    Bound("minutes for 200k steps of gngan-cifar10-cnn", 8, (5, 9), partial(_minutes, CNN_ITERATION)),
    Bound("spectral norm / PyTorch's, both captured", 0.10, (0.12, 0.25), partial(_spectral, "ratio_to_pytorch")),
    Bound("spectral norm, fraction of copy bandwidth", 0.6, (0.5, 1.2), partial(_spectral, OF_BANDWIDTH), least=True),
    Bound("GPU tests that failed", 0, (0, 20), _failed_tests),
)
"""In bfloat16; critic steps of 128 images and iterations as CUDA graphs."""
