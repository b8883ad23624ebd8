"""A run as one page to read and to pass on, and several runs side by side on another."""

import os
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import gnfast
from gnfast.config.config import AUTO, as_json, option
from gnfast.config.presets import PRESETS
from gnfast.io.numbers import number
from gnfast.io.rows import Row, plain
from gnfast.runs import evaluations
from gnfast.runs.average import unmoved
from gnfast.runs.curves import Series, line_chart
from gnfast.runs.page import Html, card, element, picture, section, table, write_page
from gnfast.runs.published import own_images, published
from gnfast.runs.record import (
    HIGHER_IS_BETTER,
    WEIGHTS,
    Record,
    beside,
    best,
    last,
    measure_of,
    points,
    read_run,
    score_names,
)

# Steps that the samples are shown of, and what their pictures may weigh together, in bytes before base64.
SHOTS = 12
PICTURES = 5_000_000
LOG_LINES = 25
# These say where a run was made or kept: they differ between runs as a matter of course.
PLACES = {"run_dir", "device", "threads", "data_root"}
LOSSES = {"loss_real": "critic, real", "loss_fake": "critic, generated", "loss_generator": "generator"}
AVERAGE = "EMA: the moving average of the generator's weights, which is what papers measure. raw: the generator itself."
Runs = Sequence[tuple[str, Record]]
# In Inception's features, and in those of another extractor.
MEASURES = {
    "distance": ("FID", "Fréchet distance"),
    "is": ("Inception score", "class score"),
    "kid": ("KID × 1000", "kernel distance × 1000"),
}


def write_report(run_dir: Path, out: Path | None = None) -> Path:
    """Writes a run's page, to `out` or RUN/report.html: status, scores, curves, samples, settings, sessions, log.

    Whatever is missing in the run folder is left out. The page refers to nothing outside itself.

    Raises:
        RunError: no run folder.
    """
    record, evaluated = read_run(run_dir), evaluations.read(run_dir)
    title = own_images(record.preset, record.settings.get("data")) or record.preset or run_dir.name
    return write_page(
        out or run_dir / "report.html",
        f"{title}: {record.status}",
        _heading(record, title),
        _figures(record, bool(evaluated)),
        section("Scores by gnfast eval", evaluations.as_table(evaluated)),
        section("Curves over generator updates", _curves(record)),
        section("Samples", _samples(record)),
        section("Settings", _settings(record)),
        section("Sessions", _sessions(record)),
        section("Log", element("pre", "\n".join(record.log[-LOG_LINES:])) if record.log else None),
        _footer(),
    )


def write_comparison(run_dirs: Sequence[Path], out: Path | None = None) -> Path:
    """Writes a page that lays runs side by side: scores, curves, settings that differ, last samples.

    It goes to `out`, or to comparison.html in the folder that holds all of them.

    Raises:
        RunError: one of them is not a run folder.
    """
    shared = Path(os.path.commonpath([folder.resolve().parent for folder in run_dirs]))
    runs = [(folder.resolve().relative_to(shared).as_posix(), read_run(folder)) for folder in run_dirs]
    evaluated = [row for name, record in runs for row in evaluations.read(record.folder, run=name)]
    measures = _by_measure([row for _, record in runs for row in record.rows])
    scores = [of_measure[0] for of_measure in measures.values()]
    return write_page(
        out or shared / "comparison.html",
        f"{len(runs)} runs",
        element("h1", f"{len(runs)} runs"),
        element("p", f"in {shared}", class_="soft"),
        section("Scores", _score_table(runs, scores), _apart(runs)),
        section("Scores by gnfast eval", evaluations.as_table(evaluated)),
        section("Curves over generator updates", element("div", *_overlaid(runs, scores), class_="grid wide")),
        section("Settings that differ", _differing(runs)),
        section("Last samples", _last_samples(runs)),
        _footer(),
    )


def duration(seconds: float | None) -> str:
    """`3 h 05 min`, `12 min 30 s`, `4.2 s`, and `–` for none."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min {rest:02} s"


def score_title(name: str, rows: Sequence[Row] = ()) -> str:
    """`Fréchet distance (EMA)` for `distance_ema`; `FID (EMA)` where the rows are of Inception's features."""
    return f"{_measure(name, rows)} ({_weights(name)})"


def steps_per_second(record: Record) -> float | None:
    """The median of speed.jsonl; None where it is missing."""
    speeds = [rate for _, rate in points(record.speed, "steps_per_second")]
    return statistics.median_high(speeds) if speeds else None


def _heading(record: Record, title: str) -> Html:
    known = PRESETS.get(record.preset)
    reported = published(record.preset, record.settings)
    get = record.settings.get
    about = known.summary if known else ""
    if known and title != record.preset:
        # The user's images, which the preset says nothing of.
        about = f"recipe: {record.preset} ({about})"
    what = [get("model"), f"{get('resolution')}×{get('resolution')}", f"{get('method')}, {get('loss')} loss"]
    return element(
        "header",
        element("h1", title),
        *([element("p", about)] if about else ()),
        element("p", " · ".join(map(str, [f"data: {get('data')}", *what])), class_="soft"),
        *([element("p", f"published: {reported}", class_="soft")] if reported else ()),
        element("p", f"{record.folder}", class_="soft"),
        element("span", record.status, class_="status" + (" finished" if record.status.startswith("finished") else "")),
    )


def _figures(record: Record, evaluated: bool) -> Html:
    cards = []
    for measure, names in _by_measure(record.rows).items():
        bests = {name: found for name in names if (found := best(record.rows, name))}
        if bests:
            choose = max if measure in HIGHER_IS_BETTER else min
            name, (step, value) = choose(bests.items(), key=lambda found: found[1][1])
            lasts = ", ".join(f"{_weights(name)} {number(last(record.rows, name)[1])}" for name in bests)
            there = [f"{_measure(other, record.rows)} {number(v)}" for other, v in beside(record.rows, name).items()]
            by = [f"by {', '.join(known)}"] if (known := _extractors(record.rows)) else []
            note = "; ".join([f"{_weights(name)}, step {step:,}", *there, f"last: {lasts}", *by])
            cards.append(card(f"Best {_measure(name, record.rows)}", number(value), note))
    if not (cards or evaluated):
        said = "nothing was measured while it trained; gnfast eval measures, and adds its scores to this page"
        cards.append(card("Scores", "none", said))
    cards.append(card("Steps", f"{record.step:,}", f"of {record.steps:,}" if record.steps else ""))
    cards.append(card("Training time", duration(record.seconds), f"sessions: {len(record.sessions)}"))
    cards.append(card("Speed", number(steps_per_second(record)), "steps per second (median)"))
    words = AVERAGE
    if line := unmoved(record.settings, record.step):
        words += f" Here, {line}: gnfast eval and gnfast sample take the generator itself by --raw."
    return section("Key figures", element("div", *cards, class_="grid"), element("p", words, class_="soft"))


def _curves(record: Record) -> Html | None:
    rows = record.rows
    charts = []
    for measure, names in _by_measure(rows).items():
        scored = [row for row in rows if any(name in row for name in names)]
        series = [Series(_weights(name), points(rows, name)) for name in names]
        better = "higher" if measure in HIGHER_IS_BETTER else "lower"
        note = "; ".join(filter(None, (f"{better} is better", _how(scored[-1]))))
        charts.append(line_chart(_measure(names[0], rows), series, log=measure == "distance", note=note))
    charts.append(line_chart("Losses", [Series(label, points(rows, name)) for name, label in LOSSES.items()]))
    critic, generator = (points(rows, name) for name in ("lr_d", "lr_g"))
    # Of two curves in the same place one would be hidden.
    one, two = Series("critic", critic), Series("generator", generator)
    charts.append(line_chart("Learning rate", [Series("both", critic)] if critic == generator else [one, two]))
    charts.append(line_chart("Steps per second", [Series("speed", points(record.speed, "steps_per_second"))]))
    return element("div", *charts, class_="grid wide") if any(charts) else None


def _by_measure(rows: Sequence[Row]) -> dict[str, list[str]]:
    """The scores of each measure, the moving average's first."""
    names = sorted(score_names(rows))
    return {measure: [n for n in names if measure_of(n) == measure] for measure in map(measure_of, names)}


def _measure(name: str, rows: Sequence[Row]) -> str:
    """What it is called, in the features that the rows say: another extractor's distance is not FID."""
    official, other = MEASURES.get(measure_of(name), (measure_of(name),) * 2)
    return official if _extractors(rows) == ["inception"] else other


def _extractors(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(str(row["extractor"]) for row in rows if "extractor" in row))


def _weights(name: str) -> str:
    return "EMA" if name.endswith("_ema") else "raw"


def _how(row: Row) -> str:
    """How a row's scores were measured."""
    parts = [str(row[name]) for name in ("extractor", "protocol") if row.get(name)]
    if "n_real" in row and "n_fake" in row:
        parts.append(f"{row['n_real']} real, {row['n_fake']} generated")
    return "; ".join(parts)


def _samples(record: Record) -> Html | None:
    by_weights = {weights: dict(record.pictures(weights)) for weights in WEIGHTS}
    steps = sorted({step for found in by_weights.values() for step in found})
    # Evenly over the run, the first and the last among them.
    steps = [steps[round(place)] for place in np.linspace(0, len(steps) - 1, min(SHOTS, len(steps)))]
    budget = PICTURES // (max(1, len(steps)) * len(WEIGHTS))
    figures = []
    for step in steps:
        shots = [
            element("div", element("small", title, class_="soft"), image)
            for weights, title in (("ema", "EMA"), ("raw", "raw"))
            if step in by_weights[weights]
            and (image := picture(by_weights[weights][step], budget, f"{title} samples at step {step}"))
        ]
        if shots:
            caption = element("figcaption", element("b", f"step {step:,}"))
            figures.append(element("figure", caption, element("div", *shots, class_="shots")))
    return element("div", *figures, class_="steps") if figures else None


def _settings(record: Record) -> Html:
    known = PRESETS.get(record.preset)
    usual = as_json(known.config) if known else {}
    own = record.settings
    # In place of the preset's `auto`, which is no choice yet.
    is_chosen = usual.get("extractor") == AUTO and own.get("extractor") in ("none", "classifier", "inception")
    chosen = {"extractor"} if is_chosen else set()
    changed = [name for name in own if name in usual and name not in PLACES | chosen and own[name] != usual[name]]
    parts = []
    if changed:
        rows = [(option(name), plain(own[name]), plain(usual[name])) for name in changed]
        parts.append(table(("differs from the preset", "this run", "preset"), rows, range(len(rows))))
    rows = []
    for name, value in own.items():
        source = known.source_of(name) if known and name not in PLACES else ""
        source = "this run" if name in changed else "chosen at its start, or given" if name in chosen else source
        rows.append((option(name), plain(value), source))
    marked = [index for index, name in enumerate(own) if name in changed]
    everything = table(("option", "value", "source"), rows, marked)
    parts.append(element("details", element("summary", f"all {len(rows)} settings"), everything))
    return element("div", *parts)


def _sessions(record: Record) -> Html | None:
    names = ["started", "continued_after_step", "device", "device_name", "precision"]
    names += ["gnfast", "torch", "python", "threads"]
    head = [*(name.replace("_", " ") for name in names), "command"]
    rows = [[*(entry.get(name, "") for name in names), plain(entry.get("command", []))] for entry in record.sessions]
    return table(head, rows) if rows else None


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


def _apart(runs: Runs) -> Html | None:
    """What runs were measured with, where that is not the same: then their scores are not those of one scale."""
    scored = {name: [row for row in record.rows if score_names([row])] for name, record in runs}
    found = {name: _how(rows[-1]) for name, rows in scored.items() if rows}
    if len({*found.values()}) < 2:
        return None
    said = "; ".join(f"{name}: {how}" for name, how in found.items())
    return element("p", f"Not comparable: they were measured with different extractors or numbers of images. {said}.")


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
                what = f"step {step:,}, {_weights(f'_{kind}')}"
                caption = element("figcaption", element("b", name), element("span", what))
                figures.append(element("figure", caption, image))
    return element("div", *figures, class_="grid wide") if figures else None


def _footer() -> Html:
    return element("p", f"gnfast {gnfast.__version__}", class_="soft")
