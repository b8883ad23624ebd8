"""A sweep's results as files: tables, a figure and a page."""

import csv
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from gnfast.io.files import atomic_write, write_text
from gnfast.io.numbers import number
from gnfast.runs.curves import Series, line_chart
from gnfast.runs.drawing import drawing, svg
from gnfast.runs.page import Html, element, embedded, section, table, write_page
from gnfast.runs.published import own_images
from gnfast.runs.record import measure_of, points
from gnfast.runs.run_page import duration, steps_per_second, write_report
from gnfast.runs.score_figure import score_figure
from gnfast.runs.scored import scale
from gnfast.runs.sweep_file import shown
from gnfast.runs.sweep_results import Results, Run, is_alike, notes, rows, title, winner

# Combinations that curves are drawn of.
CURVES = 10


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
    drawn = _figure(results, out / "figure.svg") if is_alike(results) else None
    if not drawn:
        # One of before would not be of these scores.
        (out / "figure.svg").unlink(missing_ok=True)
    head, *body = rows(results)
    heading = f"Sweep {out.name}"
    return write_page(
        out / "report.html",
        heading,
        element("h1", heading),
        element("p", f"{len(results.runs)} runs of {len(results.combinations)} combinations", class_="soft"),
        *([element("p", f"recipe: {recipe}", class_="soft")] if (recipe := _recipe(results)) else ()),
        section(
            "Scores",
            *(element("p", line) for line in notes(results)),
            table(head, body, winner(results)),
        ),
        section("Curves", element("div", drawn, _curves(results), class_="grid wide") if drawn else ""),
        section("Runs", _run_table(results)),
    )


def _recipe(results: Results) -> str:
    """The preset, and the images where those are not its own; empty where the runs differ in them."""
    records = [run.record for run in results.runs if run.record]
    found = {(record.preset, own_images(record.preset, record.settings.get("data"))) for record in records}
    return " on ".join(filter(None, found.pop())) if len(found) == 1 else ""


def _table_csv(results: Results) -> Iterator[Sequence[Any]]:
    numbers = ("best_mean", "best_std", "last_mean", "last_std")
    others = [f"{other}_at_best_{moment}" for other in results.others for moment in ("mean", "std")]
    yield [*results.combinations[0].labels, "runs", "finished", "diverged", "score", *numbers, *others, "measured"]
    for one in results.combinations:
        labels, states = map(shown, one.labels.values()), one.states
        counts = (states.total(), states["finished"], states["diverged"])
        moments = [moment for values in (one.best, one.last, *one.beside.values()) for moment in _moments(values)]
        measured, _ = scale([(run.case.name, run.record) for run in one.runs if run.record])
        yield [*labels, *counts, results.score, *moments, measured]


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
    bold, place = winner(results), len(results.combinations[0].labels) + 1
    lines = [
        [f"**{cell}**" if index in bold and column == place else cell for column, cell in enumerate(cells)]
        for index, cells in enumerate(body)
    ]
    lines = ["| " + " | ".join(cells) + " |\n" for cells in [head, ["---"] * len(head), *lines]]
    return "".join([*lines, *(f"\n{note}\n" for note in notes(results))])


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
