"""Rows of a comparison as text."""

from collections.abc import Iterable, Iterator

from gnfast.bench.comparison import Row

_UNSTEADY = 1.2
"""gnfast's slowest median of a case over its fastest, from which the machine is said to have been busy."""
WIDE = {"quartiles": 15, "error": 11}
"""Columns with cells wider than their heading, and than 9 characters."""

QUICK = """\
--quick: three rounds of tiny batches, to see that all works. No ratios, which would say nothing; times to one digit.
agrees: whether results are those of double backward in float64, as far as the precision allows; `error` is the
distance, values and worst weight gradient. GFLOP: convolutions and matrix products. launches: operations that write a
tensor. peak MB: what a step adds."""

LEGEND = """\
gnfast / this: gnfast's median over this row's, in rounds in which both took turns; below 1 gnfast is faster. It is only
formed where both computed the same (the gate): `error` is the distance from double backward in float64, values and
worst weight gradient.
of floor: the time that gnfast's arithmetic and bytes would take at this machine's best measured rates, over the median;
a yardstick, not a limit: what stays in caches does not go through memory, and a busy machine's rates are measured low.
GFLOP: convolutions and matrix products. launches: operations that write a tensor. peak MB: what a step adds.
On a busy machine medians of different rows do not divide to the ratio: believe the ratio. Errors are those of the
precision: compare them with row a's.
host, device (on a GPU): until the step's call returns, and the device's own time, with all launches in its queue."""


_FIGURES = (
    *("median_ms", "q25_ms", "q75_ms", "host_ms", "device_ms", "back_to_back_ms", "ours_median_ms", "ratio"),
    *("steps_per_s", "hours_200k", "floor_ms", "fraction_of_floor", "least_flops", "least_bytes"),
)


def quick(row: Row) -> Row:
    """The row with its time to one digit, `about_ms`, instead of all that could be quoted; a note as it is."""
    kept = {name: value for name, value in row.items() if name not in _FIGURES}
    return kept | {"about_ms": float(f"{row['median_ms']:.0e}")} if "note" not in row else row


def lines(rows: Iterable[Row], names: Iterable[str]) -> Iterator[str]:
    """One case as a table, a line as soon as its row is there; names are those of the variants that there may be.

    Columns are left out that the rows have nothing for: the floor where it is not known, ratios where no row is
    gnfast's, and all but agreement and counts of rows that are `quick`.
    """
    width, first, ours = max(map(len, names), default=0), None, []
    for row in rows:
        if "note" in row:
            yield f"note: {row['note']}"
            continue
        if first is None:
            first = row
            images = "×".join(map(str, row["shape"]))
            yield f"{row['network']}, {row['step']}: batch {row['batch']} of {images}, {row['precision']}"
            yield _line("", {heading: heading for heading in _cells(row)}, width)
        yield _line(row["variant"], _cells(row), width)
        if "steps_per_s" in row:
            yield f"{'':{width}}  {row['steps_per_s']:.3g} steps/s, 200,000 in {row['hours_200k']:.3g} h"
        ours += [row["ours_median_ms"]] if row.get("ours_median_ms") else []
    if first is not None and "floor_ms" in first:
        least = f"{first['least_flops'] / 1e9:,.2f} GFLOP, {first['least_bytes'] / 1e6:,.1f} MB"
        yield f"{'':{width}}  floor {first['floor_ms']:.3g} ms: {least}"
    if ours and max(ours) > _UNSTEADY * min(ours):
        span = f"between {min(ours):.4g} and {max(ours):.4g} ms from row to row"
        yield f"busy machine: gnfast's median was {span}; ratios are each of their own rounds"


def _line(name: str, cells: dict[str, str], width: int) -> str:
    padded = (cell.rjust(WIDE.get(heading, max(9, len(heading)))) for heading, cell in cells.items())
    return "  ".join([name.ljust(width), *padded]).rstrip()


def _cells(row: Row) -> dict[str, str]:
    """By heading."""

    def shown(form: str, *names: str, factor: float = 1.0) -> str:
        values = [row.get(name) for name in names]
        return "·" if None in values else form.format(*(factor * value for value in values))

    if "median_ms" in row:
        cells = {"median": shown("{:.4g} ms", "median_ms"), "quartiles": shown("{:.4g}–{:.4g}", "q25_ms", "q75_ms")}
    else:
        cells = {"time": shown("~{:g} ms", "about_ms")}
    if "ratio" in row and row["ours"] is not None:
        cells["gnfast / this"] = "gate red" if row["gate"] == "red" else shown("{:.3f}", "ratio")
    else:
        cells["agrees"] = {"green": "yes", "red": "gate red"}.get(row["gate"], "·")
    if "floor_ms" in row:
        cells["of floor"] = shown("{:.0%}", "fraction_of_floor")
    cells |= {
        "GFLOP": shown("{:,.2f}", "flops", factor=1e-9),
        "launches": shown("{:.0f}", "launches"),
        "peak MB": shown("{:,.1f}", "peak_bytes", factor=1e-6),
        "error": shown("{:.0e} {:.0e}", "error_values", "error_gradients"),
    }
    return cells | {name: shown("{:.4g} ms", f"{name}_ms") for name in ("host", "device") if "host_ms" in row}
