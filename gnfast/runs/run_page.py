"""A run as one page to read and to pass on."""

import shlex
import statistics
from pathlib import Path

import numpy as np

import gnfast
from gnfast.config.config import AUTO, as_json, option
from gnfast.config.presets import PRESETS
from gnfast.io.numbers import number
from gnfast.io.rows import Row, plain
from gnfast.runs import evaluations
from gnfast.runs.average import copied, unmoved
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
    points,
    read_run,
)
from gnfast.runs.scored import AVERAGE, by_measure, extractors, how_measured, measure_title, weights_title

# Steps that the samples are shown of, and what their pictures may weigh together, in bytes before base64.
SHOTS = 12
PICTURES = 5_000_000
LOG_LINES = 25
# These say where a run was made or kept: they differ between runs as a matter of course.
PLACES = {"run_dir", "device", "threads", "data_root"}
LOSSES = {"loss_real": "critic, real", "loss_fake": "critic, generated", "loss_generator": "generator"}


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
        footer(),
    )


def duration(seconds: float | None) -> str:
    """`3 h 05 min`, `12 min 30 s`, `4.2 s`, and `–` for none."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min {rest:02} s"


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
    for measure, names in by_measure(record.rows).items():
        bests = {name: found for name in names if (found := best(record.rows, name))}
        if bests:
            choose = max if measure in HIGHER_IS_BETTER else min
            name, (step, value) = choose(bests.items(), key=lambda found: found[1][1])
            lasts = ", ".join(f"{weights_title(name)} {number(last(record.rows, name)[1])}" for name in bests)
            others = beside(record.rows, name).items()
            there = [f"{measure_title(other, record.rows)} {number(v)}" for other, v in others]
            by = [f"by {', '.join(known)}"] if (known := extractors(record.rows)) else []
            # `--best` goes by the moving average's distance.
            kept = bests.get("distance_ema", ()) if measure == "distance" and name != "distance_ema" else ()
            taken = [f"--best takes EMA, step {kept[0]:,}"] if kept else []
            note = "; ".join([f"{weights_title(name)}, step {step:,}", *there, *taken, f"last: {lasts}", *by])
            cards.append(card(f"Best {measure_title(name, record.rows)}", number(value), note))
    if not (cards or evaluated):
        said = "nothing was measured while it trained; gnfast eval measures, and adds its scores to this page"
        cards.append(card("Scores", "none", said))
    cards.append(card("Steps", f"{record.step:,}", f"of {record.steps:,}" if record.steps else ""))
    cards.append(card("Training time", duration(record.seconds), f"sessions: {len(record.sessions)}"))
    cards.append(card("Speed", number(steps_per_second(record)), "steps per second (median)"))
    words = AVERAGE
    if line := unmoved(record.settings, record.step):
        words += f" Here, {line}: gnfast eval and gnfast sample take the generator itself by --raw."
    elif line := copied(record.settings, record.step):
        words += f" Here, {line}."
    return section("Key figures", element("div", *cards, class_="grid"), element("p", words, class_="soft"))


def _curves(record: Record) -> Html | None:
    rows = record.rows
    charts = []
    for measure, names in by_measure(rows).items():
        scored = [row for row in rows if any(name in row for name in names)]
        series = [Series(weights_title(name), points(rows, name)) for name in names]
        better = "higher" if measure in HIGHER_IS_BETTER else "lower"
        note = "; ".join(filter(None, (f"{better} is better", how_measured(scored[-1]))))
        charts.append(line_chart(measure_title(names[0], rows), series, log=measure == "distance", note=note))
    charts.append(line_chart("Losses", [Series(label, points(rows, name)) for name, label in LOSSES.items()]))
    critic, generator = (points(rows, name) for name in ("lr_d", "lr_g"))
    # Of two curves in the same place one would be hidden.
    one, two = Series("critic", critic), Series("generator", generator)
    charts.append(line_chart("Learning rate", [Series("both", critic)] if critic == generator else [one, two]))
    charts.append(line_chart("Steps per second", [Series("speed", points(record.speed, "steps_per_second"))]))
    return element("div", *charts, class_="grid wide") if any(charts) else None


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
    words = [word for entry in record.sessions for word in _command(entry)]
    is_given = any(word.partition("=")[0] == "--extractor" for word in words)
    # In place of the preset's `auto`, which is no choice yet.
    is_chosen = usual.get("extractor") == AUTO and own.get("extractor") in ("none", "classifier", "inception")
    chosen = {"extractor"} if is_chosen and not is_given else set()
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
    rows = [[*(entry.get(name, "") for name in names), shlex.join(_command(entry))] for entry in record.sessions]
    return table(head, rows) if rows else None


def _command(session: Row) -> list[str]:
    words = session.get("command")
    return [*map(str, words)] if isinstance(words, list) else []


def footer() -> Html:
    """What made the page."""
    return element("p", f"gnfast {gnfast.__version__}", class_="soft")
