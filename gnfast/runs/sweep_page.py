"""The page of a sweep: its table, a figure of the best scores, the curves, and a way to the pages of its runs."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from gnfast.io.files import atomic_write, make_folder, write_text
from gnfast.runs.curves import Series, line_chart
from gnfast.runs.drawing import canvas, colour, drawing, legend_outside, log_scale, log_values, svg
from gnfast.runs.page import Html, element, embedded, page, section, table
from gnfast.runs.record import measure_of, points
from gnfast.runs.run_page import duration, number, write_report
from gnfast.runs.sweep_results import Combination, Results, Run, rows, winner

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
    """Lines over the axis of numbers if there is one of three values or more, otherwise bars; None without scores."""
    shown = [one for one in results.combinations if one.best]
    if not shown:
        return None
    with drawing():
        figure, (axes,) = canvas(1, 1, 3.6, width=7)
        axis = _numeric_axis(shown)
        _draw_lines(axes, shown, axis) if axis else _draw_bars(axes, shown)
        axes.set_ylabel(f"best {results.score}")
        log_values(axes, _means(shown)[0], 20)
        if len(axes.get_legend_handles_labels()[1]) > 1:
            legend_outside(figure, axes, "upper left", columns=4)
        image = svg(figure)
    with atomic_write(path) as part:
        part.write_bytes(image)
    caption = element("figcaption", element("b", "Best scores"))
    return element("figure", caption, embedded(image, "image/svg+xml", "best scores", class_="plot"))


def _numeric_axis(shown: Sequence[Combination]) -> str | None:
    for axis in shown[0].labels:
        values = {one.labels[axis] for one in shown if not isinstance(one.labels[axis], list)}
        if len(values) >= 3 and all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
            return axis
    return None


def _draw_lines(axes: Any, shown: Sequence[Combination], axis: str) -> None:
    curves: dict[str, list[Combination]] = {}
    for one in shown:
        curves.setdefault(_without(one, axis), []).append(one)
    for index, (label, found) in enumerate(curves.items()):
        found = sorted(found, key=lambda one: one.labels[axis])
        xs, (means, errors) = [one.labels[axis] for one in found], _means(found)
        axes.errorbar(xs, means, errors, color=colour(index), marker="o", markersize=4, capsize=3, label=label)
    xs = [one.labels[axis] for one in shown]
    if min(xs) > 0 and max(xs) >= 10 * min(xs):
        log_scale(axes.xaxis)
    axes.set_xlabel(axis)


def _draw_bars(axes: Any, shown: Sequence[Combination]) -> None:
    """Bars side by side for the labels of the first axis, at one place for each combination of the others."""
    labels = list(shown[0].labels)
    # One axis has a place for each label, and runs that differ in their seed alone have one for all.
    hue = labels[0] if len(labels) > 1 else ""
    places = {place: x for x, place in enumerate(dict.fromkeys(_without(one, hue) for one in shown))}
    hues = list(dict.fromkeys(str(one.labels.get(hue)) for one in shown))
    for index, label in enumerate(hues):
        found = [one for one in shown if str(one.labels.get(hue)) == label]
        offset = (index - (len(hues) - 1) / 2) * 0.8 / len(hues)
        xs, (means, errors) = [places[_without(one, hue)] + offset for one in found], _means(found)
        axes.bar(xs, means, 0.75 / len(hues), yerr=errors, color=colour(index), capsize=3, label=label)
    axes.set_xticks(range(len(places)), places)
    if sum(map(len, places)) > 70:
        axes.tick_params("x", rotation=45)


def _without(one: Combination, axis: str) -> str:
    """The name of a combination but for one axis."""
    return Combination({name: label for name, label in one.labels.items() if name != axis}, [], [], []).name


def _means(found: Sequence[Combination]) -> tuple[list[float], list[float]]:
    """Means and standard deviations of the best scores, 0 where there is one value."""
    return (
        [statistics.mean(one.best) for one in found],
        [statistics.stdev(one.best) if len(one.best) > 1 else 0.0 for one in found],
    )


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
