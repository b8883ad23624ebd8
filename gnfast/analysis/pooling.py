"""Runs under one name as one: their images in the same box, means of their singular values and constants.

Rows are pooled where all their other columns are equal.
"""

from collections.abc import Callable, Iterable
from statistics import mean
from typing import Any

import torch

from gnfast.measure import quantiles
from gnfast.measure.gradient_norms import QUANTILES
from gnfast.runs.rows import Panels, Rows, values


def pooled(found: Iterable[Panels]) -> Panels:
    """One table for each figure, from those of several critics."""
    panels: Panels = {}
    for one in found:
        for name, rows in one.items():
            panels.setdefault(name, []).extend(rows)
    return {name: POOLINGS[name](rows) if name in POOLINGS else rows for name, rows in panels.items()}


def boxes(rows: Rows) -> Rows:
    """Least value, quartiles and largest value of all `values` (N,), and their `count`; zeros where there are none."""
    found = []
    for key, part in _groups(rows, "values"):
        together = torch.cat(values(part, "values"))
        numbers = quantiles(together) if len(together) else dict.fromkeys(QUANTILES, 0.0)
        found.append({**key, "count": len(together), **numbers})
    return found


def _means(*names: str) -> Callable[[Rows], Rows]:
    """Means of some columns; None where no run has a value."""

    def pool(rows: Rows) -> Rows:
        found = []
        for key, part in _groups(rows, *names):
            known = {name: [value for value in values(part, name) if value is not None] for name in names}
            found.append({**key, **{name: mean(numbers) if numbers else None for name, numbers in known.items()}})
        return found

    return pool


def _hulls(rows: Rows) -> Rows:
    """Of intervals the one that holds them all."""
    ends = {"omega_min": min, "omega_max": max, "slope_min": min, "slope_max": max}
    return [
        {**key, **{name: end(values(part, name)) for name, end in ends.items()}} for key, part in _groups(rows, *ends)
    ]


def _groups(rows: Rows, *pooled: str) -> Iterable[tuple[dict[str, Any], Rows]]:
    """The rows that are equal in all other columns, with these."""
    groups: dict[tuple[Any, ...], Rows] = {}
    for row in rows:
        groups.setdefault(tuple(value for name, value in row.items() if name not in pooled), []).append(row)
    for part in groups.values():
        yield {name: value for name, value in part[0].items() if name not in pooled}, part


POOLINGS: dict[str, Callable[[Rows], Rows]] = {
    "gradient-norms": boxes,
    "finite-differences": boxes,
    "lipschitz-layers": _means("constant"),
    "lipschitz-training": _means("constant"),
    "spectra": _means("raw", "normalized"),
    "operators": _means("matrix", "circular", "operator"),
    "sigmas": _means("raw", "applied"),
    # The slope is a function of the logit.
    "loss-slopes": lambda rows: sorted(rows, key=lambda row: row["logit"]),
    "loss-domains": _hulls,
}
"""Figure to how its table's rows are pooled; tables of others stay as they are."""
