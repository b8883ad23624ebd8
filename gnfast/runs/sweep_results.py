"""What a sweep found: mean and standard deviation over seeds per combination, as tables, a figure and a page."""

import csv
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from gnfast.io.files import atomic_write, write_text
from gnfast.io.numbers import number, with_spread
from gnfast.runs.checkpoint import RunError
from gnfast.runs.curves import Series, line_chart
from gnfast.runs.drawing import drawing, svg
from gnfast.runs.launch import State, read_record, state_of
from gnfast.runs.page import Html, element, embedded, section, table, write_page
from gnfast.runs.published import own_images
from gnfast.runs.record import (
    HIGHER_IS_BETTER,
    Record,
    beside,
    best,
    last,
    main_score,
    measure_of,
    points,
    read_run,
    score_names,
)
from gnfast.runs.run_page import duration, score_title, steps_per_second, write_report
from gnfast.runs.score_figure import score_figure
from gnfast.runs.sweep_file import Case, Sweep, shown

# Runs with these states count in means: a run that diverged has scores of the checkpoints before.
ENDED = ("finished", "diverged")
# Combinations that curves are drawn of.
CURVES = 10


@dataclass(frozen=True)
class Run:
    """A run of the sweep with what its folder holds.

    Attributes:
        case, state: what it is, and how far.
        record: None where there is no run yet.
        best, last: (step, value) of its score; None where there is none.
        beside: the other scores at the step of the best.
    """

    case: Case
    state: State
    record: Record | None
    best: tuple[int, float] | None
    last: tuple[int, float] | None
    beside: dict[str, float]


@dataclass(frozen=True)
class Combination:
    """The runs that differ in nothing but their seed.

    Attributes:
        labels: what they have in common, per axis.
        runs: all of them.
        best, last: the scores of those that ended.
        beside: their other scores at the steps of the best.
    """

    labels: dict[str, Any]
    runs: list[Run]
    best: list[float]
    last: list[float]
    beside: dict[str, list[float]]

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
        others: the scores that they show at the step of its best value.
        runs: all runs, in the sweep's order.
        combinations: the rows of the table, in the sweep's order.
    """

    sweep: Sweep
    score: str
    others: list[str]
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
        found = (best(rows, score), last(rows, score), beside(rows, score))
        runs.append(Run(case, state_of(case, ends), record, *found))
        groups.setdefault(tuple(map(str, case.combination)), []).append(runs[-1])
    others = list(dict.fromkeys(other for run in runs for other in run.beside))
    combinations = []
    for group in groups.values():
        ended = [run for run in group if run.state.status in ENDED]
        bests = [run.best[1] for run in ended if run.best]
        lasts = [run.last[1] for run in ended if run.last]
        besides = {other: [run.beside[other] for run in ended if other in run.beside] for other in others}
        combinations.append(Combination(dict(group[0].case.combination), group, bests, lasts, besides))
    return Results(sweep, score, others, runs, combinations)


def rows(results: Results) -> list[tuple[str, ...]]:
    """The table as text, its head first: axes, runs, best and last score (mean ± standard deviation over seeds).

    Beside the best score it has the others at the same step.
    """
    score = results.score or "score"
    others = [f"{other} there" for other in results.others]
    lines = [(*results.combinations[0].labels, "runs", f"best {score}", *others, f"last {score}")]
    for one in results.combinations:
        scores = map(spread, (one.best, *one.beside.values(), one.last))
        lines.append((*map(shown, one.labels.values()), one.count, *scores))
    return lines


def unscored(results: Results) -> str:
    """One line on why no run has a score; empty where one has, or none has ended."""
    ended = [run for run in results.runs if run.state.status in ENDED and run.record]
    if not ended or any(run.best for run in results.runs):
        return ""
    if all(run.record.settings.get("extractor") == "none" for run in ended):
        return (
            "no run is scored: their extractor is none, given or chosen (no labels, no weights or steps < eval_every); "
            'set one in the sweep file, extractor = "pixels-8x8" for one that needs neither'
        )
    return f"no run is scored: none has {results.score or 'a score'} in its metrics.jsonl"


def spread(values: Sequence[float]) -> str:
    """`1.234 ± 0.056` (sample standard deviation, two digits), one value alone without it, `–` for none."""
    if not values:
        return "–"
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return with_spread(statistics.mean(values), deviation) if deviation else number(values[0])


def write_results(results: Results) -> Path:
    """Writes table.csv, runs.csv, table.md, figure.svg and report.html into the sweep's folder.

    The runs' own pages are drawn where they are missing or older than their figures.

    Returns:
        The page, which links to the runs' own.
    """
    out = results.sweep.out
    _write_csv(out / "table.csv", _table_csv(results))
    _write_csv(out / "runs.csv", _runs_csv(results))
    write_text(out / "table.md", _markdown(results))
    for run in results.runs:
        _refresh_report(run)
    drawn = _figure(results, out / "figure.svg")
    head, *body = rows(results)
    titles = {name: title(results, name) for name in (results.score, *results.others)}
    head = [" ".join(titles.get(word, word) for word in cell.split(" ")) for cell in head]
    heading = f"Sweep {out.name}"
    return write_page(
        out / "report.html",
        heading,
        element("h1", heading),
        element("p", f"{len(results.runs)} runs of {len(results.combinations)} combinations", class_="soft"),
        *([element("p", f"recipe: {recipe}", class_="soft")] if (recipe := _recipe(results)) else ()),
        section(
            "Scores",
            element("p", "mean ± standard deviation over the seeds, of runs that ended", class_="soft"),
            *([element("p", why)] if (why := unscored(results)) else ()),
            table(head, body, _winner(results)),
        ),
        section("Curves", element("div", drawn, _curves(results), class_="grid wide") if drawn else ""),
        section("Runs", _run_table(results)),
    )


def title(results: Results, name: str) -> str:
    """`Fréchet distance (EMA)` of `distance_ema`, as the runs' own pages call it; of what is no score, its key."""
    rows = [row for run in results.runs if run.record for row in run.record.rows]
    return score_title(name, rows) if name in score_names(rows) else name


def _recipe(results: Results) -> str:
    """The preset, and the images where those are not its own; empty where the runs differ in them."""
    records = [run.record for run in results.runs if run.record]
    found = {(record.preset, own_images(record.preset, record.settings.get("data"))) for record in records}
    return " on ".join(filter(None, found.pop())) if len(found) == 1 else ""


def _winner(results: Results) -> list[int]:
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
    others = [f"{other}_at_best_{moment}" for other in results.others for moment in ("mean", "std")]
    yield [*results.combinations[0].labels, "runs", "finished", "diverged", "score", *numbers, *others]
    for one in results.combinations:
        labels, states = map(shown, one.labels.values()), one.states
        counts = (states.total(), states["finished"], states["diverged"])
        moments = [moment for values in (one.best, one.last, *one.beside.values()) for moment in _moments(values)]
        yield [*labels, *counts, results.score, *moments]


def _moments(values: Sequence[float]) -> tuple[float | str, float | str]:
    """Mean and standard deviation, empty where there are too few values."""
    return statistics.mean(values) if values else "", statistics.stdev(values) if len(values) > 1 else ""


def _runs_csv(results: Results) -> Iterator[Sequence[Any]]:
    axes = results.runs[0].case.labels
    others = [f"{other}_at_best" for other in results.others]
    scores = ["score", "best", "best_step", *others, "last"]
    yield ["run", *axes, "status", "steps", *scores, "seconds", "steps_per_second"]
    for run in results.runs:
        labels, record = map(shown, run.case.labels.values()), run.record
        step, top = run.best or ("", "")
        _, end = run.last or ("", "")
        speed = (record.seconds or "", steps_per_second(record) or "") if record else ("", "")
        steps = record.step if record else 0
        others = [run.beside.get(other, "") for other in results.others]
        yield [run.case.name, *labels, run.state.status, steps, results.score, top, step, *others, end, *speed]


def _write_csv(path: Path, lines: Iterator[Sequence[Any]]) -> None:
    with atomic_write(path) as part, part.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        csv.writer(file).writerows(lines)


def _markdown(results: Results) -> str:
    head, *body = rows(results)
    bold, place = _winner(results), len(results.combinations[0].labels) + 1
    lines = [
        [f"**{cell}**" if index in bold and column == place else cell for column, cell in enumerate(cells)]
        for index, cells in enumerate(body)
    ]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in [head, ["---"] * len(head), *lines])


def _refresh_report(run: Run) -> None:
    report, rows_file = run.case.folder / "report.html", run.case.folder / "metrics.jsonl"
    if run.record is None:
        return
    if not report.exists() or (rows_file.exists() and rows_file.stat().st_mtime > report.stat().st_mtime):
        write_report(run.case.folder)


def _figure(results: Results, path: Path) -> Html | None:
    """Over the axis of numbers if there is one of three values or more, otherwise bars; None without scores."""
    scored = [one for one in results.combinations if one.best]
    if not scored:
        return None
    labels = list(scored[0].labels)
    axis = next((axis for axis in labels if _is_numeric([one.labels[axis] for one in scored])), "")
    # Bars stand side by side for the labels of the first axis, at one place for each combination of the others.
    hue = labels[0] if len(labels) > 1 else ""
    scores = []
    for one in scored:
        place = one.labels[axis] if axis else one.name(without=hue)
        name = one.name(without=axis) if axis else str(one.labels.get(hue, ""))
        scores += [{"axis": axis, "place": place, "hue": name, "score": score} for score in one.best]
    with drawing():
        image = svg(score_figure(scores, "axis", "place", "hue", "score", f"best {title(results, results.score)}"))
    with atomic_write(path) as part:
        part.write_bytes(image)
    caption = element("figcaption", element("b", "Best scores"))
    return element("figure", caption, embedded(image, "image/svg+xml", "best scores", class_="plot"), class_="across")


def _is_numeric(values: Sequence[Any]) -> bool:
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    return len(numbers) == len(values) and len(set(numbers)) >= 3


def _curves(results: Results) -> Html:
    """The score over training, one curve per combination: means over the runs that have it at a step."""
    series = []
    for one in results.combinations[:CURVES]:
        at: dict[int, list[float]] = {}
        for run in one.runs:
            for step, value in points(run.record.rows, results.score) if run.record else ():
                at.setdefault(step, []).append(value)
        series.append(Series(one.name(), [(step, statistics.mean(values)) for step, values in sorted(at.items())]))
    left = len(results.combinations) - CURVES
    note = f"the first {CURVES} combinations" if left > 0 else ""
    is_distance = measure_of(results.score) == "distance"
    return line_chart(f"{title(results, results.score)}, mean over seeds", series, log=is_distance, note=note)


def _run_table(results: Results) -> Html:
    others, score = [f"{title(results, other)} there" for other in results.others], title(results, results.score)
    head = ["run", "status", f"best {score}", "at step", *others, f"last {score}", "time", "message"]
    lines = []
    for run in results.runs:
        name, status, seconds = run.case.name, run.state.status, None
        if run.record:
            name, seconds = element("a", name, href=f"{quote(name)}/report.html"), run.record.seconds
            status = run.record.status if status in ("finished", "stopped") else status
        step, top = run.best or (None, None)
        _, end = run.last or (None, None)
        others = [number(run.beside.get(other)) for other in results.others]
        scores = [number(top), "–" if step is None else f"{step:,}", *others, number(end)]
        lines.append([name, status, *scores, duration(seconds), run.state.message])
    return table(head, lines)
