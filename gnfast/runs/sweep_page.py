"""The page of a sweep: its table, a figure of the best scores, the curves, and a way to the pages of its runs."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from gnfast.io.files import atomic_write, make_folder, write_text
from gnfast.runs.curves import Series, line_chart
from gnfast.runs.drawing import drawing, svg
from gnfast.runs.page import Html, element, embedded, page, section, table
from gnfast.runs.record import measure_of, points
from gnfast.runs.run_page import duration, number, write_report
from gnfast.runs.score_figure import score_figure
from gnfast.runs.sweep_results import Results, Run, rows, winner

CURVES = 10


def write_overview(results: Results) -> Path:
    """Writes figure.svg and report.html into the sweep's folder, and the runs' own pages where they are missing or old.

    Returns:
        The page, which links to the runs' own.
    """
    out = results.sweep.out
    make_folder(out)
    for run in results.runs:
        _refresh_report(run)
    drawn = _figure(results, out / "figure.svg")
    head, *body = rows(results)
    title = f"Sweep {out.name}"
    text = page(
        title,
        element("h1", title),
        element("p", f"{len(results.runs)} runs of {len(results.combinations)} combinations", class_="soft"),
        section(
            "Scores",
            element("p", "mean ± standard deviation over the seeds, of runs that ended", class_="soft"),
            table(head, body, winner(results)),
        ),
        section("Curves", element("div", drawn, _curves(results), class_="grid wide") if drawn else ""),
        section("Runs", _run_table(results)),
    )
    write_text(out / "report.html", text)
    return out / "report.html"


def _refresh_report(run: Run) -> None:
    """A run's own page, where it is missing or older than its figures."""
    report, rows_file = run.case.folder / "report.html", run.case.folder / "metrics.jsonl"
    if run.record is None:
        return
    if not report.exists() or (rows_file.exists() and rows_file.stat().st_mtime > report.stat().st_mtime):
        write_report(run.case.folder)


def _figure(results: Results, path: Path) -> Html | None:
    """Over the axis of numbers if there is one of three values or more, otherwise bars; None without scores."""
    shown = [one for one in results.combinations if one.best]
    if not shown:
        return None
    labels = list(shown[0].labels)
    axis = next((axis for axis in labels if _is_numeric([one.labels[axis] for one in shown])), "")
    # Bars stand side by side for the labels of the first axis, at one place for each combination of the others.
    hue = labels[0] if len(labels) > 1 else ""
    table = []
    for one in shown:
        place = one.labels[axis] if axis else one.name(without=hue)
        name = one.name(without=axis) if axis else str(one.labels.get(hue, ""))
        table += [{"axis": axis, "place": place, "hue": name, "score": score} for score in one.best]
    with drawing():
        image = svg(score_figure(table, "axis", "place", "hue", "score", f"best {results.score}"))
    with atomic_write(path) as part:
        part.write_bytes(image)
    caption = element("figcaption", element("b", "Best scores"))
    return element("figure", caption, embedded(image, "image/svg+xml", "best scores", class_="plot"))


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
    return line_chart(
        f"{results.score}, mean over seeds", series, log=measure_of(results.score) == "distance", note=note
    )


def _run_table(results: Results) -> Html:
    head = ["run", "status", f"best {results.score}", "at step", f"last {results.score}", "time", "message"]
    lines = []
    for run in results.runs:
        link = element("a", run.case.name, href=f"{quote(run.case.name)}/report.html") if run.record else run.case.name
        top, end = run.best, run.last
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
