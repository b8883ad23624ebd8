"""A table or figure as one page: measured above published, what was not run and why, and the pictures."""

import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from gnfast.config.papers import KINDS, PAPERS, SCORES, STATES, Item
from gnfast.io.numbers import number
from gnfast.reproduce.scale import Scale
from gnfast.reproduce.scores import Measured, ordered_pairs
from gnfast.runs.curves import Series, line_chart
from gnfast.runs.drawing import drawing, svg
from gnfast.runs.page import Html, element, embedded, picture, section, table, write_page
from gnfast.runs.record import main_score, measure_of, points
from gnfast.runs.run_page import PICTURES, duration, steps_per_second
from gnfast.runs.score_figure import score_figure
from gnfast.runs.scored import score_title
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
        element("p", element("b", f"{item.state}: "), (item.note or STATES[item.state]).replace("`", "")),
        element("p", _circumstances(item, scale, runs), class_="soft"),
        section("Figures", *(_embedded(one) for one in pictures)),
        section("Measured above published", _scores(item, cells, scale), _agreement(item, cells)),
        section("The same as figures" if item.kind in ("table", "bars") else "Curves", figure(item, cells)),
        section("Samples", _samples(cells) if item.kind in ("samples", "table") else None),
        section("Not run", _left_out(cells)),
        section("Runs", _runs(runs, path.parent)),
    )


def _circumstances(item: Item, scale: Scale, runs: Sequence[Run]) -> str:
    """How the numbers came about, in a sentence."""
    parts = [KINDS[item.kind]]
    if not runs:
        return f"{parts[0].capitalize()}."
    parts.append("at full size" if scale.is_full else f"at reduced size ({scale.name}): compare rows, not numbers")
    scored_with = {"extractor", "n_real", "n_fake"}
    rows = [row for run in runs if run.record for row in run.record.rows if scored_with <= row.keys()]
    measured = dict.fromkeys(f"{row['n_real']} real, {row['n_fake']} generated, {row['extractor']}" for row in rows)
    if measured:
        parts.append("scored on " + "; ".join(measured))
        if any(row["extractor"] != "inception" for row in rows):
            parts.append("FID, IS and KID are those of that classifier's features, not of Inception's")
        parts.append("scores at the best Fréchet distance" if item.at_best else "scores at the end of training")
    return ". ".join(part[0].upper() + part[1:] for part in parts) + "."


def _scores(item: Item, cells: Sequence[Measured], scale: Scale) -> Html | None:
    """The table as the paper has it, each cell with what was measured above what is published."""
    scores = _score_names(item, cells)
    rows, columns_ = (list(dict.fromkeys(getattr(one.cell, axis) for one in cells)) for axis in ("row", "column"))
    at = {(one.cell.row, one.cell.column): one for one in cells}
    places = [(column, score) for column in columns_ for score in scores if _has(cells, column, score)]
    if not places:
        return None
    head = ["", *(" ".join(filter(None, [column, SCORES[score].title])) for column, score in places)]
    body = [[row, *(_cell(at.get((row, column)), score, scale) for column, score in places)] for row in rows]
    return table(head, body)


def _cell(one: Measured | None, score: str, scale: Scale) -> Html:
    """What was measured, and below it what is published, with the difference where both are at full size."""
    if one is None:
        return Html("")
    printed = one.cell.printed.get(score)
    parts = [f"published {printed.text}"] if printed else []
    parts += [f"({one.difference(score)})"] if scale.is_full and one.difference(score) else []
    below = [element("br"), element("small", " ".join(parts), class_="soft")] if parts else []
    return Html("".join([element("span", one.shown(score)), *below]))


def _agreement(item: Item, cells: Sequence[Measured]) -> Html | None:
    """How many pairs come out in the published order, which reduced runs can say too: of rows in each column, or of
    columns in each row where these are an option's values (rows may then be of several data sets)."""
    along = "row" if all(isinstance(_number(one.cell.column), float) for one in cells) else "column"
    lines = []
    for place, score in dict.fromkeys((getattr(one.cell, along), score) for one in cells for score in item.scores):
        pairs = ordered_pairs([one for one in cells if getattr(one.cell, along) == place], score)
        if pairs:
            certain = [ordered for ordered, always in pairs if always]
            counts = [f"{sum(found)} of {len(found)}" for found in ([ordered for ordered, _ in pairs], certain)]
            lines.append([" ".join(filter(None, [place, SCORES[score].title])), *counts])
    head = [along, "pairs in the published order", "of those that no seed has the other way round"]
    return table(head, lines) if lines else None


def _score_names(item: Item, cells: Sequence[Measured]) -> list[str]:
    """Those of the item; of one without any, what the runs have, which says how far they are."""
    return list(item.scores) or [name for name in ("fid",) if any(name in one.values for one in cells)]


def _has(cells: Sequence[Measured], column: str, score: str) -> bool:
    own = [one for one in cells if one.cell.column == column]
    return any(score in one.values or score in one.cell.printed for one in own)


def figure(item: Item, cells: Sequence[Measured]) -> Html | None:
    """Curves over training, or each score as bars, or as lines over columns that are numbers; of analyses with scores
    their curves."""
    drawn = [one for one in cells if any(run.record for run in one.runs)]
    if item.kind == "curves" or (item.kind == "analysis" and item.scores):
        return _curves(drawn)
    if item.kind not in ("table", "bars"):
        return None
    figures = [_drawn(drawn, score) for score in _score_names(item, cells)]
    return element("div", *filter(None, figures), class_="grid wide") if any(figures) else None


def _drawn(cells: Sequence[Measured], score: str) -> Html | None:
    scores = [
        {"axis": "", "place": _number(one.cell.column), "hue": one.cell.row, "score": value}
        for one in cells
        for value in one.values.get(score, [])
        if not isinstance(value, tuple)
    ]
    if len({(row["hue"], row["place"]) for row in scores}) < 2:
        return None
    name = SCORES[score].title
    with drawing():
        image = svg(score_figure(scores, "axis", "place", "hue", "score", name))
    shown = embedded(image, "image/svg+xml", name, class_="plot")
    return element("figure", element("figcaption", element("b", name)), shown, class_="across")


def _number(column: str) -> float | str:
    """A column of a varied option is a place on an axis."""
    try:
        return float(column)
    except ValueError:
        return column


def _curves(cells: Sequence[Measured]) -> Html | None:
    """Every score and the losses over training, one curve per cell, of its first run."""
    records = [(_name(one), one.runs[0].record) for one in cells[:MOST_DRAWN] if one.runs[0].record]
    rows = [row for _, record in records for row in record.rows]
    first = main_score(rows)
    keys = dict.fromkeys([*filter(None, [first, "is_ema"]), "loss_critic_training", "loss_critic_validation"])
    charts = []
    for key in keys:
        series = [Series(name, points(record.rows, key)) for name, record in records]
        title = key if key.startswith("loss") else score_title(key, rows)
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
