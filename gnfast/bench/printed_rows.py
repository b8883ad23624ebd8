"""Rows of a comparison as text."""

from collections.abc import Iterable, Iterator

from gnfast.bench.comparison import Row

COLUMNS = {
    "median": 9,
    "quartiles": 15,
    "gnfast / this": 13,
    "of floor": 8,
    "GFLOP": 9,
    "launches": 8,
    "peak MB": 9,
    "error": 11,
    "host": 9,
    "device": 9,
}
"""Headings and widths; the last two on a GPU only."""

LEGEND = """\
gnfast / this: gnfast's median over this row's, in rounds in which both took turns; below 1 gnfast is faster. It is only
formed where both computed the same (the gate): `error` is the distance from double backward in float64, values and
worst weight gradient.
of floor: the least time that gnfast's arithmetic and bytes take at this machine's measured rates, over the median.
GFLOP: convolutions and matrix products. launches: operations that write a tensor. peak MB: what a step adds.
host, device (on a GPU): until the step's call returns, and the device's own time, with all launches in its queue."""


def lines(rows: Iterable[Row], names: Iterable[str]) -> Iterator[str]:
    """One case as a table, a line as soon as its row is there.

    Args:
        rows: of one case, notes among them.
        names: of the variants that there may be.
    """
    width, first = max(map(len, names), default=0), None
    for row in rows:
        if "note" in row:
            yield f"note: {row['note']}"
            continue
        if first is None:
            first = row
            images = "×".join(map(str, row["shape"]))
            yield f"{row['network']}, {row['step']}: batch {row['batch']} of {images}, {row['precision']}"
            yield _line("", tuple(COLUMNS)[: len(_cells(row))], width)
        yield _line(row["variant"], _cells(row), width)
        if "steps_per_s" in row:
            yield f"{'':{width}}  {row['steps_per_s']:.3g} steps/s, 200,000 in {row['hours_200k']:.3g} h"
    if first is not None:
        yield f"{'':{width}}  floor {first['floor_ms']:.3g} ms: {_floor(first)}"


def _line(name: str, cells: tuple[str, ...], width: int) -> str:
    padded = map(str.rjust, cells, COLUMNS.values())
    return "  ".join([name.ljust(width), *padded]).rstrip()


def _cells(row: Row) -> tuple[str, ...]:
    ratio = {"red": "gate red"}.get(row["gate"], "·") if row["ratio"] is None else f"{row['ratio']:.3f}"
    errors = row.get("error_values"), row.get("error_gradients")
    cells = (
        _ms(row["median_ms"]),
        f"{row['q25_ms']:.4g}–{row['q75_ms']:.4g}",
        ratio,
        f"{row['fraction_of_floor']:.0%}",
        f"{row['flops'] / 1e9:,.2f}" if row.get("flops") is not None else "·",
        f"{row['launches']}" if "launches" in row else "·",
        f"{row['peak_bytes'] / 1e6:,.1f}" if "peak_bytes" in row else "·",
        "·" if errors[0] is None else " ".join(f"{error:.0e}" for error in errors),
    )
    return (*cells, _ms(row["host_ms"]), _ms(row["device_ms"])) if "host_ms" in row else cells


def _ms(time: float | None) -> str:
    return "·" if time is None else f"{time:.4g} ms"


def _floor(row: Row) -> str:
    return f"{row['least_flops'] / 1e9:,.2f} GFLOP, {row['least_bytes'] / 1e6:,.1f} MB"
