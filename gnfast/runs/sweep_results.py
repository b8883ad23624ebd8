"""What a sweep found, in figures: mean and standard deviation over seeds per combination, as text, Markdown and CSV."""

import csv
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gnfast.io.files import atomic_write, make_folder, write_text
from gnfast.runs.checkpoint import RunError
from gnfast.runs.launch import State, read_record, state_of
from gnfast.runs.record import HIGHER_IS_BETTER, Record, best, last, main_score, measure_of, read_run
from gnfast.runs.run_page import number, steps_per_second
from gnfast.runs.sweep_file import Case, Sweep

# Runs with these states count in means: a run that diverged has scores of the checkpoints before.
ENDED = ("finished", "diverged")


@dataclass(frozen=True)
class Run:
    """A run of the sweep with what its folder holds; `record` is None where there is no run yet."""

    case: Case
    state: State
    record: Record | None

    def best(self, score: str) -> tuple[int, float] | None:
        return best(self.record.rows, score) if self.record else None

    def last(self, score: str) -> tuple[int, float] | None:
        return last(self.record.rows, score) if self.record else None


@dataclass(frozen=True)
class Combination:
    """The runs that differ in nothing but their seed.

    Attributes:
        labels: what they have in common, per axis.
        runs: all of them.
        best: the best score of each run that ended.
        last: the last score of each run that ended.
    """

    labels: dict[str, Any]
    runs: list[Run]
    best: list[float]
    last: list[float]

    @property
    def name(self) -> str:
        """`A, SN, k_sn 0.5`."""
        return ", ".join(v if isinstance(v, str) else f"{axis} {shown(v)}" for axis, v in self.labels.items()) or "all"

    @property
    def count(self) -> str:
        """`3`, or `1 of 3, 1 diverged` where not all have finished."""
        states = [run.state.status for run in self.runs]
        finished = states.count("finished")
        if finished == len(states):
            return str(finished)
        others = [f"{states.count(s)} {s}" for s in ("diverged", "failed", "stopped", "waiting") if s in states]
        return ", ".join([f"{finished} of {len(states)}", *others])


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
    record = read_record(sweep.out)
    runs = [Run(case, state_of(case, record), _record(case)) for case in sweep.cases]
    score = sweep.score or main_score(row for run in runs if run.record for row in run.record.rows)
    combinations = []
    groups: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        groups.setdefault(tuple(map(str, run.case.combination)), []).append(run)
    for group in groups.values():
        ended = [run for run in group if run.state.status in ENDED]
        bests, lasts = ([p[1] for run in ended if (p := getattr(run, which)(score))] for which in ("best", "last"))
        combinations.append(Combination(dict(group[0].case.combination), group, bests, lasts))
    return Results(sweep, score, runs, combinations)


def rows(results: Results) -> list[tuple[str, ...]]:
    """The table as text, its head first: axes, runs, best and last score (mean ± standard deviation over seeds)."""
    axes = list(results.combinations[0].labels)
    score = results.score or "score"
    body = [
        (*(shown(one.labels[axis]) for axis in axes), one.count, spread(one.best), spread(one.last))
        for one in results.combinations
    ]
    return [(*axes, "runs", f"best {score}", f"last {score}"), *body]


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


def shown(value: Any) -> str:
    """A label as text."""
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _record(case: Case) -> Record | None:
    try:
        return read_run(case.folder)
    except RunError:
        return None


def _table_csv(results: Results) -> Iterator[Sequence[Any]]:
    axes = list(results.combinations[0].labels)
    numbers = [f"{which}_{what}" for which in ("best", "last") for what in ("mean", "std")]
    yield [*axes, "runs", "finished", "diverged", "score", *numbers]
    for one in results.combinations:
        states = [run.state.status for run in one.runs]
        figures = [
            figure
            for values in (one.best, one.last)
            for figure in (
                statistics.mean(values) if values else "",
                statistics.stdev(values) if len(values) > 1 else "",
            )
        ]
        counts = [len(states), states.count("finished"), states.count("diverged")]
        yield [*(shown(one.labels[axis]) for axis in axes), *counts, results.score, *figures]


def _runs_csv(results: Results) -> Iterator[Sequence[Any]]:
    axes = list(results.runs[0].case.labels)
    yield ["run", *axes, "status", "steps", "score", "best", "best_step", "last", "seconds", "steps_per_second"]
    for run in results.runs:
        top, end = run.best(results.score), run.last(results.score)
        record = run.record
        yield [
            run.case.name,
            *(shown(run.case.labels[axis]) for axis in axes),
            run.state.status,
            record.step if record else 0,
            results.score,
            *((top[1], top[0]) if top else ("", "")),
            end[1] if end else "",
            (record and record.seconds) or "",
            (record and steps_per_second(record)) or "",
        ]


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
