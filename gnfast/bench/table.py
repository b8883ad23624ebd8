"""Rows of `gnfast.bench.run` as text."""

from gnfast.bench.cases import OURS
from gnfast.bench.run import Row

HEADER = ("", "median", "quartiles", "gnfast / this", "of floor", "GFLOP", "launches", "peak MB", "error")

LEGEND = """\
gnfast / this: gnfast's median over this row's; below 1 gnfast is faster. It is only formed where both rows computed the
same (the gate): `error` is the distance from double backward in float64, values and worst weight gradient.
of floor: the least time that gnfast's arithmetic and bytes take at this machine's measured rates, over the median.
GFLOP: convolutions and matrix products. launches: operations that write a tensor. peak MB: what a step adds."""


def render(rows: list[Row], notes: list[str]) -> str:
    """One case as a table, with its notes below.

    Args:
        rows: of one case; may be empty.
        notes: lines.
    """
    lines = []
    if rows:
        first = next((row for row in rows if row["variant"] == OURS), rows[0])
        images = "×".join(map(str, first["shape"]))
        lines.append(f"{first['network']}, {first['step']}: batch {first['batch']} of {images}, {first['precision']}")
        cells = [HEADER, *map(_cells, rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines += ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in cells]
        lines.append(f"{'':{widths[0]}}  floor {first['floor_ms']:.3g} ms: {_floor(first)}")
    return "\n".join([*lines, *(f"note: {note}" for note in notes)])


def _cells(row: Row) -> tuple[str, ...]:
    ratio = {"red": "gate red"}.get(row["gate"], "·") if row["ratio"] is None else f"{row['ratio']:.3f}"
    errors = row.get("error_values"), row.get("error_gradients")
    return (
        row["variant"],
        f"{row['median_ms']:.4g} ms",
        f"{row['q25_ms']:.4g}–{row['q75_ms']:.4g}",
        ratio,
        f"{row['fraction_of_floor']:.0%}",
        f"{row['flops'] / 1e9:,.2f}" if row.get("flops") is not None else "·",
        f"{row['launches']}" if "launches" in row else "·",
        f"{row['peak_bytes'] / 1e6:,.1f}" if "peak_bytes" in row else "·",
        "·" if errors[0] is None else " ".join(f"{error:.0e}" for error in errors),
    )


def _floor(row: Row) -> str:
    return f"{row['least_flops'] / 1e9:,.2f} GFLOP, {row['least_bytes'] / 1e6:,.1f} MB"
