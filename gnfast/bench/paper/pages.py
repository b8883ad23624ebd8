"""Results as a table and a picture: OUT/table.md and OUT/learning.png."""

from collections.abc import Iterable, Sequence
from typing import Any

from gnfast.bench.comparison import Row
from gnfast.bench.paper import speed
from gnfast.bench.paper.learning import compared
from gnfast.bench.paper.prepare import GNFAST, PAPERS, left_out
from gnfast.bench.paper.results import Results
from gnfast.io.files import atomic_write, write_text
from gnfast.io.numbers import number
from gnfast.runs import drawing
from gnfast.runs.run_page import duration

TABLE, PICTURE = "table.md", "learning.png"
SPEED_HEAD = ("preset", "way", "steps/s", "images/s", "memory", "gnfast / this", "agrees")
LEARNING_HEAD = (
    *("preset", "way", "updates", "training time", "distance at the start", "at the end", "smallest"),
    *("time to the papers' way's last distance", "gnfast / papers"),
)
LEGEND = """\
Ways: gnfast as `gnfast train` runs it; the papers' way, double backward in the papers' layout and precision, without
CUDA graph; the strongest baseline, the fastest of double backward in channels_last and the preset's precision (b), with
repaired weight gradients (c), and that as a CUDA graph (e). Whole iterations, by the program that trains, in turns on
the same images. images/s: real images that the critic is trained on. gnfast / this: gnfast's time over this row's, in
the rounds in which both took turns; only where the losses agreed with those of double backward in float32 ("agrees").
On a CPU, steps/s and images/s are brought to the same load by what gnfast took in the same rounds.
memory: on a GPU the most that the way holds, on a CPU what a step adds to networks and images.
"""
LEARNING_LEGEND = """\
Both with the same seed and settings. Training time has everything but evaluations. The time to a distance is when the
curve, straight between evaluations, has come down to it for good; the last column is gnfast's time over the other's.
"""


def write(results: Results) -> str:
    """Writes both files, and returns the table."""
    text = "\n".join(filter(None, [_title(results), _speed(results), _learning(results), _notes(results)]))
    write_text(results.folder / TABLE, text)
    _picture(results)
    return text


def speed_line(row: Row) -> str:
    """One row or note while it is measured: times of the same rounds, which a busy machine lengthens alike."""
    if "note" in row:
        return f"  note: {row['note']}"
    ratio = "·" if row["ratio"] is None else f"{row['ratio']:.3f}"
    beside = f", gnfast in turns with it {number(row['ours_median_ms'])} ms" if row["ours_median_ms"] else ""
    return f"  {row['variant']}: {number(row['median_ms'])} ms{beside}, gnfast / this {ratio}, gate {row['gate']}"


def _title(results: Results) -> str:
    made, asked = results.content["environment"], results.content["settings"]
    further = [f"scale {asked['scale']:g}"] if asked["scale"] != 1 else ["full size"]
    further += [f"{name} {value}" for name, value in asked["set"].items()]
    further += [f"data {', '.join(asked['data'])}"] if isinstance(asked["data"], list) else []
    where = f"{made['device']}, {made['threads']} CPU threads" if made.get("cuda") is None else made["device"]
    versions = f"PyTorch {made['torch']}, gnfast {made['gnfast']}"
    return f"{where}, {versions}; {', '.join(further)}; {asked['minutes']:g} minutes per preset.\n"


def _speed(results: Results) -> str:
    body = []
    for preset in results.presets:
        rows = results.rows(preset)
        best = speed.strongest(rows)
        ways = [
            (GNFAST, speed.of_way(rows, GNFAST)),
            (PAPERS, speed.of_way(rows, PAPERS)),
            (f"strongest: {best['variant'][0]}" if best else "strongest", best),
        ]
        body += [[preset, way, *_speed_cells(row)] for way, row in ways]
    return f"{_table(SPEED_HEAD, body)}\n{LEGEND}" if body else ""


def _speed_cells(row: Row | None) -> list[str]:
    if row is None:
        return ["–"] * 5
    held = row.get("memory_bytes")
    memory = "–" if held is None else f"{held / 1e9:.1f} GB" if held >= 1e10 else f"{held / 1e6:,.0f} MB"
    agrees = {"green": "yes", "red": "no"}.get(row["gate"], "not checked")
    return [number(row["steps_per_s"]), number(row["images_per_s"]), memory, _ratio(row["ratio"]), agrees]


def _ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _learning(results: Results) -> str:
    body, names = [], {}
    for preset in results.presets:
        runs = results.runs(preset)
        found = compared(runs) if runs else {}
        for way, run in runs.items():
            mine = found.get("gnfast_seconds" if way == GNFAST else "papers_seconds")
            ratio = _ratio(found.get("ratio")) if way == GNFAST else ""
            body.append([preset, way, *_learning_cells(run), duration(mine), ratio])
            if "extractor" in run:
                names[preset] = f"{_distance(run)}, {run['n_fake']:,} generated and {run['n_real']:,} real images"
    if not body:
        return ""
    measured = "".join(f"Distance of {preset}: {what}.\n" for preset, what in names.items())
    return f"{_table(LEARNING_HEAD, body)}\n{LEARNING_LEGEND}{measured}"


def _learning_cells(run: dict[str, Any]) -> list[str]:
    values = [value for _, _, value in run["curve"]]
    shown = [number(value) for value in (values[0], values[-1], min(values))] if values else ["–"] * 3
    return [f"{run.get('steps', 0):,}", duration(run.get("seconds")), *shown]


def _distance(run: dict[str, Any]) -> str:
    """What the distance of a run is called."""
    name = run["extractor"]
    return "FID" if name == "inception" else f"Fréchet distance in features of {name}"


def _notes(results: Results) -> str:
    lines = [f"{row['preset']}: {row['note']}" for row in results.content["notes"]]
    for preset in results.presets:
        runs = results.runs(preset).items()
        lines += [f"{preset}, {way}: {run['status']}, {run['message']}" for way, run in runs if run["message"]]
    lines += [f"not measured: {line}" for line in left_out(results.content["left_out"])]
    return "".join(f"- {line}\n" for line in lines)


def _table(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """Markdown whose columns are aligned, so that it can be read as it is."""
    cells = [head, *body]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in cells]
    lines.insert(1, ["-" * width for width in widths])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _picture(results: Results) -> None:
    """A panel for each preset that has learned something."""
    all_runs = {preset: results.runs(preset) for preset in results.presets}
    drawn = {preset: runs for preset, runs in all_runs.items() if any(run["curve"] for run in runs.values())}
    if not drawn:
        return
    columns = min(2, len(drawn))
    with drawing.drawing(), atomic_write(results.folder / PICTURE) as part:
        rows = -(-len(drawn) // columns)
        figure, grid = drawing.canvas(rows, columns, 0.7 + 2.8 * rows)
        for axes in grid[len(drawn) :]:
            axes.remove()
        for axes, (preset, runs) in zip(grid, drawn.items(), strict=False):
            _panel(axes, preset, runs)
        figure.suptitle("Distance to the real images over training time: lower is better", fontsize=10)
        drawing.legend_outside(figure, grid[: len(drawn)])
        part.write_bytes(drawing.png(figure))


def _panel(axes: Any, preset: str, runs: dict[str, dict[str, Any]]) -> None:
    latest = max(point[0] for run in runs.values() for point in run["curve"])
    unit, seconds = ("minutes", 60) if latest >= 120 else ("seconds", 1)
    for index, (way, run) in enumerate(runs.items()):
        times, values = [at / seconds for at, _, _ in run["curve"]], [value for _, _, value in run["curve"]]
        style = {"color": drawing.colour(index), "marker": drawing.marker(index), "markersize": 3.5}
        axes.plot(times, values, label=way, **style)
    drawing.log_values(axes, [value for run in runs.values() for _, _, value in run["curve"]])
    ratio = compared(runs).get("ratio")
    axes.set_title(preset + (f"\nthe papers' last distance in {ratio:.2f} of the time" if ratio else ""))
    axes.set_xlabel(f"training time, {unit}")
    label = next((_distance(run) for run in runs.values() if "extractor" in run), "distance")
    axes.set_ylabel(label.replace(" in ", "\nin "))
