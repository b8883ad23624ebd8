"""What the runs of a cell scored, beside what the paper prints."""

import contextlib
import itertools
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gnfast.config.papers import SCORES, Cell, Item
from gnfast.io.numbers import fixed
from gnfast.io.rows import Row
from gnfast.reproduce.runs import Wanted
from gnfast.reproduce.scale import Scale
from gnfast.runs.checkpoint import RunError, last_step
from gnfast.runs.record import best, finite, points, read_json
from gnfast.runs.sweep_results import ENDED, Run, spread


@dataclass(frozen=True)
class Measured:
    """A cell with its runs' scores.

    Attributes:
        cell: of the item.
        runs: those that it is measured by.
        left_out: why there are none, or why they have no scores.
        values: score -> one value per run that has it, or (low, high) of an interval.
    """

    cell: Cell
    runs: tuple[Run, ...]
    left_out: str
    values: dict[str, list[float | tuple[float, float]]]

    def shown(self, score: str) -> str:
        """`7.42 ± 0.08` over the runs; `–` without any."""
        values = self.values.get(score, [])
        if values and isinstance(values[0], tuple):
            low, high = (statistics.mean(ends) for ends in zip(*values, strict=True))
            return f"[{fixed(low, 3)}, {fixed(high, 3)}]"
        return spread(values)

    def difference(self, score: str) -> str:
        """Measured minus printed, in units of the score; empty without either."""
        printed, values = self.cell.printed.get(score), self.values.get(score)
        if not printed or printed.mean is None or not values:
            return ""
        return f"{statistics.mean(values) - printed.mean:+.4g}"


def measured(item: Item, found: Sequence[Wanted], runs: dict[str, Run]) -> list[Measured]:
    """The cells of an item with what their runs scored.

    Scores are those of the moving average: at the best Fréchet distance of each run where the paper does so, otherwise
    at its end.
    """
    return [_measured(item, one, [runs[case.name] for case in one.cases]) for one in found]


def _measured(item: Item, one: Wanted, runs: list[Run]) -> Measured:
    values: dict[str, list] = {}
    for run in runs:
        if run.record is None or run.state.status not in ENDED:
            continue
        row = _row(run.record.rows, item.at_best)
        for name in column_scores(item, one.cell.column):
            value = _value(name, row, run, item.at_best)
            if value is not None:
                values.setdefault(name, []).append(value)
    failed = [run for run in runs if run.state.status not in ENDED]
    why = f"{failed[0].state.status}: {failed[0].state.message}".rstrip(": ") if failed else one.left_out
    return Measured(one.cell, tuple(runs), why, values)


def column_scores(item: Item, column: str) -> Sequence[str]:
    """What is measured in a column: what the paper prints there; where it prints nothing, all that the item shows."""
    printed = [score for score in item.scores if any(score in c.printed for c in item.cells if c.column == column)]
    return printed or item.scores or ("fid",)


def _row(rows: Sequence[Row], at_best: bool) -> Row:
    """Everything that was measured at the step that counts: later rows of the same step add to earlier ones."""
    scored = points(rows, "distance_ema")
    place = best(rows, "distance_ema") if at_best else (scored[-1] if scored else None)
    probed = [row for row in rows if "omega_min" in row]
    found = dict(probed[-1]) if probed else {}
    for row in rows:
        if place and row["step"] == place[0]:
            found |= row
    return found


def _value(name: str, row: Row, run: Run, at_best: bool) -> float | tuple[float, float] | None:
    """A score, where it was measured and is finite."""
    score = SCORES[name]
    found = {score.result: row.get(score.key)} | (_further(run, name, at_best) if score.words else {})
    values = tuple(row.get(key) for key in score.interval) if score.interval else (found[score.result],)
    if not all(map(finite, values)):
        return None
    return values if score.interval else values[0]


def _further(run: Run, name: str, at_best: bool) -> Row:
    """What `gnfast eval` found at the checkpoint that counts; empty where it was another, or the file is damaged."""
    top = best(run.record.rows, "distance_ema") if at_best else None
    step = top[0] if top else last_step(run.case.folder / "checkpoints")
    with contextlib.suppress(FileNotFoundError, RunError):
        found = read_json(extra_file(run.case.folder, name))
        if isinstance(found, dict) and found.get("step") == step and SCORES[name].result in found:
            return found
    return {}


def extra_file(folder: Path, score: str) -> Path:
    """Where the result of `gnfast eval` for a score that training does not measure is kept."""
    return folder / f"{score}.json"


def measure_further(
    item: Item, found: Sequence[Wanted], runs: dict[str, Run], scale: Scale, echo: Callable[[str], None]
) -> None:
    """Measures by `gnfast eval` what the item prints and training does not measure: other real images, MS-SSIM.

    At reduced size, and on images that stand in for others, these would say nothing new.
    """
    if scale.factor != 1 or scale.stand_in:
        return
    asked = [(case.name, name) for one in found for case in one.cases for name in column_scores(item, one.cell.column)]
    for run, name in ((runs[case], name) for case, name in dict.fromkeys(asked) if SCORES[name].words):
        if run.record is None or run.state.status not in ENDED or _further(run, name, item.at_best):
            continue
        out = extra_file(run.case.folder, name)
        options = [*(["--best"] if item.at_best else []), *SCORES[name].words, "--out", str(out)]
        command = [sys.executable, "-m", "gnfast", "eval", str(run.case.folder), *options]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
            echo(f"{run.case.name}: no {SCORES[name].title} ({reason})")


def ordered_pairs(cells: Sequence[Measured], score: str) -> list[tuple[bool, bool]]:
    """For each pair of cells that are measured and published, and differ in both: whether the order is the same, and
    whether every seed has the two in the order of their means; of one seed that says nothing."""
    known = [
        (values if len(values) == len(one.runs) > 1 else [statistics.mean(values)], printed.mean)
        for one in cells
        if (printed := one.cell.printed.get(score)) and printed.mean is not None and (values := one.values.get(score))
    ]
    pairs = []
    for (a, printed_a), (b, printed_b) in itertools.combinations(known, 2):
        gap = statistics.mean(a) - statistics.mean(b)
        if gap and printed_a != printed_b:
            certain = len(a) == len(b) > 1 and all((x - y) * gap > 0 for x, y in zip(a, b, strict=True))
            pairs.append((gap * (printed_a - printed_b) > 0, certain))
    return pairs


def as_json(cells: Sequence[Measured], item: Item) -> str:
    """The page's numbers for programs."""
    rows = [
        {
            "row": one.cell.row,
            "column": one.cell.column,
            "published": {score: number.text for score, number in one.cell.printed.items()},
            "measured": one.values,
            "runs": [run.case.name for run in one.runs],
            "left_out": one.left_out,
        }
        for one in cells
    ]
    return json.dumps({"item": item.name, "cells": rows}, indent=2, ensure_ascii=False) + "\n"
