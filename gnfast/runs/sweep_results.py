"""What a sweep found, in figures: mean and standard deviation over seeds per combination, as text, Markdown and CSV."""

import csv
import math
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gnfast.io.files import atomic_write, make_folder, write_text
from gnfast.runs.checkpoint import RunError
from gnfast.runs.launch import State, read_record, state_of
from gnfast.runs.record import HIGHER_IS_BETTER, Record, best, last, main_score, measure_of, read_run
from gnfast.runs.run_page import number, steps_per_second
from gnfast.runs.sweep_file import Case, Sweep, shown

# Runs with these states count in means: a run that diverged has scores of the checkpoints before.
ENDED = ("finished", "diverged")


@dataclass(frozen=True)
class Run:
    """A run of the sweep with what its folder holds.

    Attributes:
        case, state: what it is, and how far.
        record: None where there is no run yet.
        best, last: (step, value) of its score; None where there is none.
    """

    case: Case
    state: State
    record: Record | None
    best: tuple[int, float] | None
    last: tuple[int, float] | None


@dataclass(frozen=True)
class Combination:
    """The runs that differ in nothing but their seed.

    Attributes:
        labels: what they have in common, per axis.
        runs: all of them.
        best, last: the scores of those that ended.
    """

    labels: dict[str, Any]
    runs: list[Run]
    best: list[float]
    last: list[float]

    def name(self, without: str = "") -> str:
        """`A, SN, k_sn 0.5`; one axis may be left out."""
        labels = [(axis, label) for axis, label in self.labels.items() if axis != without]
        return ", ".join(v if isinstance(v, str) else f"{axis} {shown(v)}" for axis, v in labels) or "all"

    @property
    def states(self) -> Counter[str]:
        """How many runs are in which state."""
        return Counter(run.state.status for run in self.runs)

    @property
    def count(self) -> str:
        """`3`, or `1 of 3, 1 diverged` where not all have finished."""
        finished, total = self.states["finished"], self.states.total()
        if finished == total:
            return str(finished)
        others = [f"{self.states[s]} {s}" for s in ("diverged", "failed", "stopped", "waiting") if self.states[s]]
        return ", ".join([f"{finished} of {total}", *others])


@dataclass(frozen=True)
class Results:
    """A sweep with its results so far.

    Attributes:
        sweep: the sweep.
        score: the key of metrics.jsonl that the tables show; empty if no run has a score.
        runs: all runs, in the sweep's order.
        combinations: the rows of the table, in the sweep's order.
    """

    sweep: Sweep
    score: str
    runs: list[Run]
    combinations: list[Combination]


def collect(sweep: Sweep) -> Results:
    """Reads the run folders of a sweep."""
    ends = read_record(sweep.out)
    records = [_record(case) for case in sweep.cases]
    score = sweep.score or main_score(row for record in records if record for row in record.rows)
    runs = []
    groups: dict[tuple[str, ...], list[Run]] = {}
    for case, record in zip(sweep.cases, records, strict=True):
        rows = record.rows if record else []
        runs.append(Run(case, state_of(case, ends), record, best(rows, score), last(rows, score)))
        groups.setdefault(tuple(map(str, case.combination)), []).append(runs[-1])
    combinations = []
    for group in groups.values():
        ended = [run for run in group if run.state.status in ENDED]
        bests = [run.best[1] for run in ended if run.best]
        lasts = [run.last[1] for run in ended if run.last]
        combinations.append(Combination(dict(group[0].case.combination), group, bests, lasts))
    return Results(sweep, score, runs, combinations)


def rows(results: Results) -> list[tuple[str, ...]]:
    """The table as text, its head first: axes, runs, best and last score (mean ± standard deviation over seeds)."""
    score = results.score or "score"
    lines = [(*results.combinations[0].labels, "runs", f"best {score}", f"last {score}")]
    for one in results.combinations:
        lines.append((*map(shown, one.labels.values()), one.count, spread(one.best), spread(one.last)))
    return lines


def spread(values: Sequence[float]) -> str:
    """`1.234 ± 0.056` (sample standard deviation, two digits), one value alone without it, `–` for none."""
    if not values:
        return "–"
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    if not deviation:
        return number(values[0])
    digits = max(0, 1 - math.floor(math.log10(deviation)))
    return f"{statistics.mean(values):.{digits}f} ± {deviation:.{digits}f}"


def write_tables(results: Results) -> None:
    """Writes table.csv, runs.csv and table.md into the sweep's folder."""
    out = results.sweep.out
    make_folder(out)
    _write_csv(out / "table.csv", _table_csv(results))
    _write_csv(out / "runs.csv", _runs_csv(results))
    write_text(out / "table.md", _markdown(results))


def winner(results: Results) -> list[int]:
    """The row with the best mean of best scores, where there are several to choose from."""
    means = {i: statistics.mean(one.best) for i, one in enumerate(results.combinations) if one.best}
    choose = max if measure_of(results.score) in HIGHER_IS_BETTER else min
    return [choose(means, key=means.__getitem__)] if len(means) > 1 else []


def _record(case: Case) -> Record | None:
    try:
        return read_run(case.folder)
    except RunError:
        return None


def _table_csv(results: Results) -> Iterator[Sequence[Any]]:
    numbers = ("best_mean", "best_std", "last_mean", "last_std")
    yield [*results.combinations[0].labels, "runs", "finished", "diverged", "score", *numbers]
    for one in results.combinations:
        labels, states = map(shown, one.labels.values()), one.states
        counts = (states.total(), states["finished"], states["diverged"])
        yield [*labels, *counts, results.score, *_moments(one.best), *_moments(one.last)]


def _moments(values: Sequence[float]) -> tuple[float | str, float | str]:
    """Mean and standard deviation, empty where there are too few values."""
    return statistics.mean(values) if values else "", statistics.stdev(values) if len(values) > 1 else ""


def _runs_csv(results: Results) -> Iterator[Sequence[Any]]:
    axes = results.runs[0].case.labels
    yield ["run", *axes, "status", "steps", "score", "best", "best_step", "last", "seconds", "steps_per_second"]
    for run in results.runs:
        labels, record = map(shown, run.case.labels.values()), run.record
        step, top = run.best or ("", "")
        _, end = run.last or ("", "")
        speed = (record.seconds or "", steps_per_second(record) or "") if record else ("", "")
        steps = record.step if record else 0
        yield [run.case.name, *labels, run.state.status, steps, results.score, top, step, end, *speed]


def _write_csv(path: Path, lines: Iterator[Sequence[Any]]) -> None:
    with atomic_write(path) as part, part.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        csv.writer(file).writerows(lines)


def _markdown(results: Results) -> str:
    head, *body = rows(results)
    bold = winner(results)
    lines = [
        [f"**{cell}**" if index in bold and column == len(head) - 2 else cell for column, cell in enumerate(cells)]
        for index, cells in enumerate(body)
    ]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in [head, ["---"] * len(head), *lines])
