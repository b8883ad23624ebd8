"""What changed between two results of `make gpu` or `must_reach.py`:

    python -m gnfast.bench.compare OLD.json NEW.json [--least 0.05]

Rows are the same where all that names them is (network, step, variant, precision, shape …). Figures that moved by more
than `--least`, and gates, errors and rows that came or went, are listed, the largest change first.
"""

import argparse
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Row = dict[str, Any]
Key = tuple[tuple[str, str], ...]

# Parts of the names of figures that are compared; quartiles, counts of rounds and the like are not.
FIGURES = ("median", "ratio", "fraction", "/s", "per_s", "hours", "over", "launches", "peak", "value")
# What a comparison found, which may differ between runs without the row being another.
FOUND = ("gate", "note", "not_counted", "ours", "error", "why", "choices", "failures", "left_out")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="gnfast.bench.compare", description=__doc__.splitlines()[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--least", type=float, default=0.05, help="relative change that is told (default: 0.05)")
    options = parser.parse_args(arguments)
    if not options.least >= 0:
        parser.error(f"--least: got {options.least}, wanted a number from 0 on")
    try:
        old, new = (_read(path) for path in (options.old, options.new))
    except (OSError, ValueError) as error:
        parser.error(str(error))
    print("\n".join(differences(old, new, options.least)))
    return 0


def differences(old: dict[str, Any], new: dict[str, Any], least: float = 0.05) -> list[str]:
    """Lines that say what moved by more than the factor 1 + `least`, between the contents of two result files."""
    before, after = dict(_rows(old)), dict(_rows(new))
    moved: list[tuple[float, str]] = []
    told: list[str] = []
    for key in before.keys() & after.keys():
        a, b = dict(_figures(before[key])), dict(_figures(after[key]))
        for name in a.keys() & b.keys():
            if a[name] == b[name]:
                continue
            change = b[name] / a[name] if a[name] > 0 and b[name] > 0 else math.inf
            size = abs(math.log(change))
            if size > math.log1p(least):
                moved.append((size, f"×{change:.3f}  {a[name]:.5g} → {b[name]:.5g}  {name}  {_named(key)}"))
        gates = before[key].get("gate"), after[key].get("gate")
        if gates[0] != gates[1]:
            told.append(f"gate {gates[0]} → {gates[1]}  {_named(key)}")
    for sections, other, word in ((old, new, "no longer fails"), (new, old, "fails now")):
        for name, section in sections.get("sections", {}).items():
            if "error" in section and "error" not in other.get("sections", {}).get(name, {}):
                told.append(f"{word}: {name}, {section['error']}")
    told += [f"gone: {_named(key)}" for key in sorted(before.keys() - after.keys())]
    told += [f"new: {_named(key)}" for key in sorted(after.keys() - before.keys())]
    same = f"{len(before.keys() & after.keys())} rows in both, {len(moved)} figures moved by more than {least:.0%}"
    return [*(line for _, line in sorted(moved, reverse=True)), *told, same]


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    if not isinstance(content, dict) or not ("sections" in content or "rows" in content):
        raise ValueError(f"{path}: neither sections nor rows in it, so it is not a result of a benchmark")
    return content


def _rows(content: dict[str, Any]) -> Iterator[tuple[Key, Row]]:
    """Each row and what names it; of rows with the same name the last."""
    groups = {name: section["rows"] for name, section in content.get("sections", {}).items()}
    groups |= {"": content["rows"]} if "rows" in content else {}
    for section, rows in groups.items():
        for row in rows:
            names = {name: value for name, value in row.items() if _names_it(name, value)}
            yield tuple((name, str(value)) for name, value in {"section": section, **names}.items()), row


def _names_it(name: str, value: Any) -> bool:
    if name in FOUND or any(part in name for part in FIGURES):
        return False
    return isinstance(value, str | bool | list) or name in ("batch", "stride", "inputs", "side")


def _figures(row: Row, prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in row.items():
        full = f"{prefix}{name}"
        if isinstance(value, dict):
            yield from _figures(value, f"{full}.")
        elif isinstance(value, int | float) and not isinstance(value, bool) and any(part in full for part in FIGURES):
            yield full, float(value)


def _named(key: Key) -> str:
    return ", ".join(value for _, value in key if value)


if __name__ == "__main__":
    sys.exit(main())
