"""A table or figure as one page: measured beside published, what was not run and why, and the pictures."""

import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from gnfast.config.papers import KINDS, PAPERS, SCORES, Item
from gnfast.reproduce.scale import Scale
from gnfast.reproduce.scores import Measured, as_number
from gnfast.runs.curves import Series, line_chart
from gnfast.runs.drawing import drawing, svg
from gnfast.runs.page import Html, element, embedded, picture, section, table, write_page
from gnfast.runs.record import main_score, measure_of, points
from gnfast.runs.run_page import PICTURES, duration, number, score_title, steps_per_second
from gnfast.runs.score_figure import score_figure
from gnfast.runs.sweep_results import Run

# Curves and pictures of more cells than this are too many to look at.
MOST_DRAWN = 24


def write_item(path: Path, item: Item, cells: Sequence[Measured], scale: Scale, pictures: Sequence[Path]) -> Path:
    """Writes the page of an item.

    Args:
        path: of the HTML file.
        item: the table or figure.
        cells: its cells with what was measured.
        scale: how large the runs were.
        pictures: PNG files of analyses and drawings.
    """
    title = f"{item.paper}, {item.item}"
    runs = list({run.case.name: run for one in cells for run in one.runs}.values())
    return write_page(
        path,
        title,
        element("h1", f"{title}: {item.title}"),
        element("p", PAPERS[item.paper], class_="soft"),
        element("p", element("b", f"{item.state}. "), item.note),
        element("p", _circumstances(item, scale, runs), class_="soft"),
        section("Measured beside published", _scores(item, cells)),
        section("Figures", _figure(item, cells), *(_embedded(one) for one in pictures)),
        section("Samples", _samples(cells) if item.kind in ("samples", "table") else None),
        section("Not run", _left_out(cells)),
        section("Runs", _runs(runs, path.parent)),
    )


def _circumstances(item: Item, scale: Scale, runs: Sequence[Run]) -> str:
    """How the numbers came about, in a sentence."""
    parts = [KINDS[item.kind]]
    parts.append("at full size" if scale.is_full else f"at reduced size ({scale.name}): compare rows, not numbers")
    rows = [row for run in runs if run.record for row in run.record.rows if "extractor" in row]
    measured = dict.fromkeys(f"{row['n_real']} real, {row['n_fake']} generated, {row['extractor']}" for row in rows)
    if measured:
        parts.append("scored on " + "; ".join(measured))
        parts.append("scores at the best Fréchet distance" if item.at_best else "scores at the end of training")
    return ". ".join(part[0].upper() + part[1:] for part in parts) + "."


def _scores(item: Item, cells: Sequence[Measured]) -> Html | None:
    scores = item.scores or tuple(dict.fromkeys(name for one in cells for name in one.values))
    if not scores:
        return None
    head = ["row", "column", "runs"]
    for score in scores:
        head += [f"{SCORES[score].title}: measured", "published", "difference"]
    rows = []
    for one in cells:
        line = [one.cell.row, one.cell.column, str(len(one.runs)) if one.runs else "–"]
        for score in scores:
            line += [one.shown(score), as_number(one.cell.printed.get(score)), one.difference(score)]
        rows.append(line)
    return table(head, rows)


def _figure(item: Item, cells: Sequence[Measured]) -> Html | None:
    """Bars or curves of the main score, as the item's kind says."""
    drawn = [one for one in cells if any(run.record for run in one.runs)]
    if item.kind == "curves":
        return _curves(drawn)
    scores = [
        {"axis": "", "place": one.cell.column or "all", "hue": one.cell.row, "score": value}
        for one in drawn
        for value in one.values.get(next(iter(one.values), ""), [])
        if not isinstance(value, tuple)
    ]
    if not scores or len({row["hue"] for row in scores}) * len({row["place"] for row in scores}) < 2:
        return None
    name = SCORES[next(iter(drawn[0].values))].title
    with drawing():
        image = svg(score_figure(scores, "axis", "place", "hue", "score", name))
    return element("figure", element("figcaption", element("b", name)), embedded(image, "image/svg+xml", name))


def _curves(cells: Sequence[Measured]) -> Html | None:
    """Every score and the losses over training, one curve per cell, of its first run."""
    records = [(_name(one), one.runs[0].record) for one in cells[:MOST_DRAWN] if one.runs[0].record]
    first = main_score(row for _, record in records for row in record.rows)
    keys = dict.fromkeys([*filter(None, [first, "is_ema"]), "loss_critic_validation", "loss_real", "loss_fake"])
    charts = []
    for key in keys:
        series = [Series(name, points(record.rows, key)) for name, record in records]
        title = key if key.startswith("loss") else score_title(key)
        charts.append(line_chart(title, series, log=measure_of(key) == "distance"))
    return element("div", *charts, class_="grid wide") if any(charts) else None


def _samples(cells: Sequence[Measured]) -> Html | None:
    shown = [one for one in cells if one.runs and one.runs[0].record][:MOST_DRAWN]
    figures = []
    for one in shown:
        record = one.runs[0].record
        for step, path in (record.pictures("ema") or record.pictures("raw"))[-1:]:
            image = picture(path, PICTURES // len(shown), f"samples of {_name(one)}")
            caption = element("figcaption", element("b", _name(one)), element("span", f"step {step:,}"))
            figures += [element("figure", caption, image)] if image else []
    return element("div", *figures, class_="grid wide") if figures else None


def _embedded(path: Path) -> Html:
    return element("figure", embedded(path.read_bytes(), "image/png", path.stem, class_="plot"))


def _left_out(cells: Sequence[Measured]) -> Html | None:
    reasons: dict[str, list[str]] = {}
    for one in cells:
        if one.left_out:
            reasons.setdefault(one.left_out, []).append(_name(one))
    return table(["why", "cells"], [(why, "; ".join(names)) for why, names in reasons.items()]) if reasons else None


def _runs(runs: Sequence[Run], page_folder: Path) -> Html | None:
    lines = []
    for run in runs:
        record, link = run.record, run.case.name
        if record:
            link = element("a", link, href=quote(os.path.relpath(run.case.folder / "report.html", page_folder)))
        speed = number(steps_per_second(record)) if record else "–"
        seconds = duration(record.seconds) if record else "–"
        lines.append([link, run.state.status, f"{record.step:,}" if record else "–", seconds, speed, run.state.message])
    return table(["run", "status", "steps", "time", "steps/s", "message"], lines) if lines else None


def _name(one: Measured) -> str:
    return ", ".join(filter(None, [one.cell.row, one.cell.column]))
