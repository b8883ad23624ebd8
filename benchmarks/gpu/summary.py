"""The end of a run as a table that one can act on: rows against their best baseline, bounds, and what failed."""

import math
from collections import defaultdict
from typing import Any

from benchmarks.gpu.bounds import BOUNDS, CAPTURED, Row, is_baseline
from benchmarks.gpu.record import FAILURES


def summary(results: dict[str, Any]) -> tuple[list[str], int]:
    """Lines about what is in results.json, the most important last, and how many bounds were missed.

    The bounds are a GPU's: a dry run is not judged by them.
    """
    sections = results["sections"]
    is_dry = results.get("dry_run", False)
    bounds, missed = _bounds(sections, not is_dry)
    failures = [f"FAILED {name}: {s['error']} ({FAILURES})" for name, s in sections.items() if "error" in s]
    lost = [f"{name}: {row['note']} ({FAILURES})" for name, s in sections.items() for row in s["rows"] if _lost(row)]
    left_out = [f"left out: {name}, {s['left_out']}" for name, s in sections.items() if "left_out" in s]
    stages = ", ".join(f"{name} {stage['seconds']:.0f} s" for name, stage in results["stages"].items())
    device = next((row.get("device") for row in sections.get("environment", {}).get("rows", ())), "no device known")
    lines = [*_rows(sections), "", *bounds, *_shortened(left_out, 6), *_shortened(failures, 10), *_shortened(lost, 6)]
    counts = f"{'dry run' if is_dry else f'{missed} bounds missed'}, {len(failures)} sections failed"
    counts += f", {len(left_out)} sections and {len(lost)} variants left out"
    return [*lines, f"{device}: {stages or 'nothing ran'}; {counts}"], missed


def _lost(row: Row) -> bool:
    """Whether the row says that a variant could not be measured."""
    return "variant" in row and "left out" in row.get("note", "")


def _rows(sections: dict[str, Any]) -> list[str]:
    """One line per step and precision: gnfast's median, the best baseline's, and their ratio."""
    grouped: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
    for section in sections.values():
        for row in section["rows"]:
            if "variant" in row and "median_ms" in row:
                grouped[row["network"], row["step"], row["asked"]].append(row)
    table = [("", "ours", "best baseline", "", "ratio", "gate")]
    for (network, step, precision), rows in grouped.items():
        # The captured one, unless no section could capture it.
        own = sorted(
            (row for row in rows if row["variant"] == row.get("ours")), key=lambda row: row["ours"] != CAPTURED
        )
        cells = ["-"] * 5
        if own:
            ours = own[0]
            cells[0] = f"{ours['median_ms']:.3f} ms{'' if ours['ours'] == CAPTURED else ', not captured'}"
            cells[4] = ours["gate"]
            baselines = [row for row in rows if is_baseline(row) and row["ours"] == ours["variant"]]
            if best := max(baselines, key=lambda row: row["ratio"], default=None):
                searched = ", searched" if best.get("search") else ""
                cells[1:4] = f"{best['variant']}{searched}", f"{best['median_ms']:.3f} ms", f"{best['ratio']:.3f}"
        table.append((f"{network}, {step}, {precision}", *cells))
    return _aligned(table)


def _bounds(sections: dict[str, Any], are_meant: bool) -> tuple[list[str], int]:
    table, missed = [("", "measured", "expected", "bound", "")], 0
    for bound in BOUNDS:
        value = bound.value(sections)
        wrong = value is not None and math.isnan(value)
        verdict = "ok" if value is not None and bound.holds(value) else "MISSED"
        verdict = "not measured" if value is None else verdict if are_meant else "not judged"
        missed += verdict == "MISSED"
        verdict += ": its result is wrong (gate red)" if wrong else ""
        sign = "≥" if bound.least else "≤"
        measured = "-" if value is None or wrong else f"{value:.3f}"
        expected = "{:g} to {:g}".format(*bound.expected)
        table.append((bound.what, measured, expected, f"{sign} {bound.bound:g}", verdict))
    return _aligned(table), missed


def _aligned(table: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]


def _shortened(lines: list[str], most: int) -> list[str]:
    rest = len(lines) - most
    return lines if rest <= 0 else [*lines[:most], f"and {rest} more, in results.json"]
