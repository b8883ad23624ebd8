"""Several runs side by side on one page."""

import os
from collections.abc import Sequence
from pathlib import Path

from gnfast.config.config import option
from gnfast.io.numbers import number
from gnfast.io.rows import plain
from gnfast.runs import evaluations
from gnfast.runs.average import unmoved
from gnfast.runs.curves import Series, line_chart
from gnfast.runs.page import Html, element, picture, section, table, write_page
from gnfast.runs.record import WEIGHTS, beside, best, last, measure_of, points, read_run
from gnfast.runs.run_page import LOSSES, PICTURES, PLACES, duration, footer, steps_per_second
from gnfast.runs.scored import Runs, averages, by_measure, scale, score_title, weights_title


def write_comparison(run_dirs: Sequence[Path], out: Path | None = None) -> Path:
    """Writes a page that lays runs side by side: scores, curves, settings that differ, last samples.

    It goes to `out`, or to comparison.html in the folder that holds all of them.

    Raises:
        RunError: one of them is not a run folder.
    """
    shared = Path(os.path.commonpath([folder.resolve().parent for folder in run_dirs]))
    runs = [(folder.resolve().relative_to(shared).as_posix(), read_run(folder)) for folder in run_dirs]
    evaluated = [row for name, record in runs for row in evaluations.read(record.folder, run=name)]
    measures = by_measure([row for _, record in runs for row in record.rows])
    scores = [of_measure[0] for of_measure in measures.values()]
    (measured, is_alike), average = scale(runs), averages(runs)
    curves = _overlaid(runs, scores if is_alike else ())
    return write_page(
        out or shared / "comparison.html",
        f"{len(runs)} runs",
        element("h1", f"{len(runs)} runs"),
        element("p", f"in {shared}", class_="soft"),
        section("Scores", _score_table(runs, scores), *(element("p", line) for line in (measured, average) if line)),
        section("Scores by gnfast eval", evaluations.as_table(evaluated)),
        section("Curves over generator updates", element("div", *curves, class_="grid wide")),
        section("Settings that differ", _differing(runs)),
        section("Last samples", _last_samples(runs)),
        footer(),
    )


def _score_table(runs: Runs, scores: Sequence[str]) -> Html:
    """Of each score the best and the last, and beside the best of the first one the others at the same step."""
    found = [beside(record.rows, scores[0]) if scores else {} for _, record in runs]
    others = list(dict.fromkeys(other for one in found for other in one))
    rows = [row for _, record in runs for row in record.rows]
    titles = [f"{what} {score_title(score, rows)}" for score in scores for what in ("best", "last")]
    titles[1:1] = [f"{score_title(other, rows)} there" for other in others]
    head = ["run", "status", *titles, "time", "steps/s"]
    rows = []
    for (name, record), there in zip(runs, found, strict=True):
        cells = [cell for s in scores for cell in (_at(best(record.rows, s)), _at(last(record.rows, s)))]
        cells[1:1] = [number(there.get(other)) for other in others]
        rows.append([name, record.status, *cells, duration(record.seconds), number(steps_per_second(record))])
    return table(head, rows)


def _at(point: tuple[int, float] | None) -> str:
    return "–" if point is None else f"{number(point[1])} (step {point[0]:,})"


def _overlaid(runs: Runs, scores: Sequence[str]) -> list[Html]:
    def chart(title: str, key: str, log: bool = False) -> Html:
        return line_chart(title, [Series(name, points(record.rows, key)) for name, record in runs], log=log)

    rows = [row for _, record in runs for row in record.rows]
    charts = [chart(score_title(name, rows), name, measure_of(name) == "distance") for name in scores]
    return [*charts, *(chart(f"Loss: {label}", name) for name, label in LOSSES.items())]


def _differing(runs: Runs) -> Html:
    everything = [{"preset": record.preset, **record.settings} for _, record in runs]
    options = dict.fromkeys(name for settings in everything for name in settings if name not in PLACES)
    rows = [
        [name if name == "preset" else option(name), *(plain(settings.get(name, "–")) for settings in everything)]
        for name in options
        if any(settings.get(name) != everything[0].get(name) for settings in everything)
    ]
    return table(["option", *(name for name, _ in runs)], rows) if rows else element("p", "none", class_="soft")


def _last_samples(runs: Runs) -> Html | None:
    budget = PICTURES // len(runs)
    figures = []
    for name, record in runs:
        # The average of a short run would show its first weights.
        kinds = WEIGHTS[::-1] if unmoved(record.settings, record.step) else WEIGHTS
        kind = next((kind for kind in kinds if record.pictures(kind)), kinds[0])
        for step, path in record.pictures(kind)[-1:]:
            image = picture(path, budget, f"samples of {name}")
            if image:
                what = f"step {step:,}, {weights_title(f'_{kind}')}"
                caption = element("figcaption", element("b", name), element("span", what))
                figures.append(element("figure", caption, image))
    return element("div", *figures, class_="grid wide") if figures else None
