"""What scores are called, and what they were measured by: of one run, or of several that are compared."""

from collections.abc import Sequence

from gnfast.io.rows import Row
from gnfast.runs.average import unmoved
from gnfast.runs.record import Record, measure_of, score_names

AVERAGE = "EMA: the moving average of the generator's weights, which is what papers measure. raw: the generator itself."
Runs = Sequence[tuple[str, Record]]
# In Inception's features, and in those of another extractor.
MEASURES = {
    "distance": ("FID", "Fréchet distance"),
    "is": ("Inception score", "class score"),
    "kid": ("KID × 1000", "kernel distance × 1000"),
}


def score_title(name: str, rows: Sequence[Row] = ()) -> str:
    """`Fréchet distance (EMA)` for `distance_ema`; `FID (EMA)` where the rows are of Inception's features."""
    return f"{measure_title(name, rows)} ({weights_title(name)})"


def by_measure(rows: Sequence[Row]) -> dict[str, list[str]]:
    """The scores of each measure, the moving average's first."""
    names = sorted(score_names(rows))
    return {measure: [n for n in names if measure_of(n) == measure] for measure in map(measure_of, names)}


def measure_title(name: str, rows: Sequence[Row]) -> str:
    """What it is called, in the features that the rows say: another extractor's distance is not FID."""
    official, other = MEASURES.get(measure_of(name), (measure_of(name),) * 2)
    return official if extractors(rows) == ["inception"] else other


def extractors(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(str(row["extractor"]) for row in rows if "extractor" in row))


def weights_title(name: str) -> str:
    return "EMA" if name.endswith("_ema") else "raw"


def how_measured(row: Row) -> str:
    """How a row's scores were measured."""
    parts = [str(row[name]) for name in ("extractor", "protocol") if row.get(name)]
    if "n_real" in row and "n_fake" in row:
        parts.append(f"{row['n_real']} real, {row['n_fake']} generated")
    return "; ".join(parts)


def scale(runs: Runs) -> tuple[str, bool]:
    """What scores of several runs were measured by, and whether that is the same for all; empty where none has any."""
    scored = {name: [row for row in record.rows if score_names([row])] for name, record in runs}
    found = {name: how_measured(rows[-1]) or "not said" for name, rows in scored.items() if rows}
    if len({*found.values()}) > 1:
        said = "; ".join(f"{name}: {how}" for name, how in found.items())
        return f"Not comparable: they were measured with different extractors or numbers of images. {said}.", False
    how = next(iter(found.values()), "not said")
    return "" if how == "not said" else f"Measured by {how}.", True


def averages(runs: Runs) -> str:
    """Of which runs the moving average is not trained yet, what it is still; empty where there are none."""
    lines: dict[str, list[str]] = {}
    for name, record in runs:
        if line := unmoved(record.settings, record.step):
            lines.setdefault(line, []).append(name)
    said = (f"of {', '.join(names[:5] + ['…'] * (len(names) > 5))}: {line}" for line, names in lines.items())
    return f"{AVERAGE} Here, {'; '.join(said)}." if lines else ""
