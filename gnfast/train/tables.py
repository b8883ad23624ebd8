"""What a sweep found: mean and standard deviation over seeds per combination, as a table, a figure and a page."""

import csv
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from gnfast.train.charts import Series, line_chart
from gnfast.train.checkpoint import RunError
from gnfast.train.launch import State, read_record, state_of
from gnfast.train.logs import write_text
from gnfast.train.page import Html, element, embedded, page, table
from gnfast.train.record import HIGHER_IS_BETTER, Record, best, last, main_score, measure_of, points, read_run
from gnfast.train.report import duration, number, steps_per_second, write_report
from gnfast.train.sweep import Case, Sweep

# Runs with these states count in means: a run that diverged has scores of the checkpoints before.
ENDED = ("finished", "diverged")
CURVES = 10


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
        return ", ".join(v if isinstance(v, str) else f"{axis} {_shown(v)}" for axis, v in self.labels.items()) or "all"

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
    for key in dict.fromkeys(tuple(map(str, run.case.combination)) for run in runs):
        group = [run for run in runs if tuple(map(str, run.case.combination)) == key]
        ended = [run for run in group if run.state.status in ENDED]
        bests, lasts = ([p[1] for run in ended if (p := getattr(run, which)(score))] for which in ("best", "last"))
        combinations.append(Combination(dict(group[0].case.combination), group, bests, lasts))
    return Results(sweep, score, runs, combinations)


def rows(results: Results) -> list[tuple[str, ...]]:
    """The table as text, its head first: axes, runs, best and last score (mean ± standard deviation over seeds)."""
    axes = list(results.combinations[0].labels)
    score = results.score or "score"
    body = [
        (*(_shown(one.labels[axis]) for axis in axes), one.count, spread(one.best), spread(one.last))
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


def write_tables(results: Results) -> Path:
    """Writes table.csv, runs.csv, table.md, figure.svg and report.html into the sweep's folder, and missing reports.

    Returns:
        The page, which links to the runs' own.
    """
    out = results.sweep.out
    out.mkdir(parents=True, exist_ok=True)
    _write_csv(out / "table.csv", _table_csv(results))
    _write_csv(out / "runs.csv", _runs_csv(results))
    write_text(out / "table.md", _markdown(results))
    drawn = _figure(results, out / "figure.svg")
    for run in results.runs:
        _refresh_report(run)
    head, *body = rows(results)
    title = f"Sweep {out.name}"
    text = page(
        title,
        element("h1", title),
        element("p", f"{len(results.runs)} runs of {len(results.combinations)} combinations", class_="soft"),
        element("h2", "Scores"),
        element("p", "mean ± standard deviation over the seeds, of runs that ended", class_="soft"),
        table(head, body, _winner(results)),
        *(
            [element("h2", "Curves"), element("div", _embedded(drawn), _curves(results), class_="grid wide")]
            if drawn
            else ()
        ),
        element("h2", "Runs"),
        _run_table(results),
    )
    write_text(out / "report.html", text)
    return out / "report.html"


def _record(case: Case) -> Record | None:
    try:
        return read_run(case.folder)
    except RunError:
        return None


def _refresh_report(run: Run) -> None:
    """A run's own page, where it is missing or older than its figures."""
    report, rows_file = run.case.folder / "report.html", run.case.folder / "metrics.jsonl"
    if run.record is None:
        return
    if not report.exists() or (rows_file.exists() and rows_file.stat().st_mtime > report.stat().st_mtime):
        write_report(run.case.folder)


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
        yield [*(_shown(one.labels[axis]) for axis in axes), *counts, results.score, *figures]


def _runs_csv(results: Results) -> Iterator[Sequence[Any]]:
    axes = list(results.runs[0].case.labels)
    yield ["run", *axes, "status", "steps", "score", "best", "best_step", "last", "seconds", "steps_per_second"]
    for run in results.runs:
        top, end = run.best(results.score), run.last(results.score)
        record = run.record
        yield [
            run.case.name,
            *(_shown(run.case.labels[axis]) for axis in axes),
            run.state.status,
            record.step if record else 0,
            results.score,
            *((top[1], top[0]) if top else ("", "")),
            end[1] if end else "",
            (record and record.seconds) or "",
            (record and steps_per_second(record)) or "",
        ]


def _write_csv(path: Path, lines: Iterator[Sequence[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(lines)


def _markdown(results: Results) -> str:
    head, *body = rows(results)
    bold = _winner(results)
    lines = [
        [f"**{cell}**" if index in bold and column == len(head) - 2 else cell for column, cell in enumerate(cells)]
        for index, cells in enumerate(body)
    ]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in [head, ["---"] * len(head), *lines])


def _winner(results: Results) -> list[int]:
    """The row with the best mean of best scores, where there are several to choose from."""
    means = {i: statistics.mean(one.best) for i, one in enumerate(results.combinations) if one.best}
    choose = max if measure_of(results.score) in HIGHER_IS_BETTER else min
    return [choose(means, key=means.__getitem__)] if len(means) > 1 else []


def _figure(results: Results, path: Path) -> Path | None:
    """Lines over the axis of numbers if there is one of three values or more, otherwise bars; None without scores."""
    shown = [one for one in results.combinations if one.best]
    if not shown:
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    axis = _numeric_axis(shown)
    _draw_lines(axes, shown, axis) if axis else _draw_bars(axes, shown)
    axes.set_ylabel(f"best {results.score}")
    means = [statistics.mean(one.best) for one in shown]
    if min(means) > 0 and max(means) > 20 * min(means):
        axes.set_yscale("log")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})
    return path


def _numeric_axis(shown: Sequence[Combination]) -> str | None:
    for axis in shown[0].labels:
        values = {one.labels[axis] for one in shown if not isinstance(one.labels[axis], list)}
        if len(values) >= 3 and all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
            return axis
    return None


def _draw_lines(axes: Any, shown: Sequence[Combination], axis: str) -> None:
    curves: dict[str, list[Combination]] = {}
    for one in shown:
        rest = Combination({a: v for a, v in one.labels.items() if a != axis}, [], [], []).name
        curves.setdefault(rest, []).append(one)
    for label, found in curves.items():
        found = sorted(found, key=lambda one: one.labels[axis])
        xs, (means, errors) = [one.labels[axis] for one in found], _bars_of(found)
        axes.errorbar(xs, means, errors, marker="o", markersize=4, capsize=3, label=label)
    xs = [one.labels[axis] for one in shown]
    if min(xs) > 0 and max(xs) >= 10 * min(xs):
        axes.set_xscale("log")
    axes.set_xlabel(axis)
    if len(curves) > 1:
        axes.legend(frameon=False)


def _draw_bars(axes: Any, shown: Sequence[Combination]) -> None:
    means, errors = _bars_of(shown)
    axes.bar(range(len(shown)), means, yerr=errors, capsize=3, color="#6aa0d0")
    axes.set_xticks(range(len(shown)), [one.name for one in shown])
    if max(len(one.name) for one in shown) * len(shown) > 70:
        axes.tick_params("x", rotation=45)


def _bars_of(found: Sequence[Combination]) -> tuple[list[float], list[float]]:
    """Means and standard deviations, 0 where there is one value."""
    return (
        [statistics.mean(one.best) for one in found],
        [statistics.stdev(one.best) if len(one.best) > 1 else 0.0 for one in found],
    )


def _embedded(path: Path) -> Html:
    image = embedded(path.read_bytes(), "image/svg+xml", "best scores", class_="plot")
    return element("figure", element("figcaption", element("b", "Best scores")), image)


def _curves(results: Results) -> Html:
    """The score over training, one curve per combination: means over the runs that have it at a step."""
    series = []
    for one in results.combinations[:CURVES]:
        at: dict[int, list[float]] = {}
        for run in one.runs:
            for step, value in points(run.record.rows, results.score) if run.record else ():
                at.setdefault(step, []).append(value)
        series.append(Series(one.name, [(step, statistics.mean(values)) for step, values in sorted(at.items())]))
    left = len(results.combinations) - CURVES
    note = f"the first {CURVES} combinations" if left > 0 else ""
    return line_chart(
        f"{results.score}, mean over seeds", series, log=measure_of(results.score) == "distance", note=note
    )


def _run_table(results: Results) -> Html:
    head = ["run", "status", f"best {results.score}", "at step", f"last {results.score}", "time", "message"]
    lines = []
    for run in results.runs:
        link = element("a", run.case.name, href=f"{quote(run.case.name)}/report.html") if run.record else run.case.name
        top, end = run.best(results.score), run.last(results.score)
        lines.append(
            [
                link,
                run.record.status if run.record and run.state.status in ("finished", "stopped") else run.state.status,
                number(top and top[1]),
                f"{top[0]:,}" if top else "–",
                number(end and end[1]),
                duration(run.record.seconds if run.record else None),
                run.state.message,
            ]
        )
    return table(head, lines)


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
