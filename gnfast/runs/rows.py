"""Tidy tables: a list of rows with the same keys, as CSV files hold them and figures read them."""

from collections.abc import Iterator
from typing import Any

Rows = list[dict[str, Any]]
Panels = dict[str, Rows]
"""Tables by the names of the figures that are drawn from them."""


def parts(rows: Rows, name: str) -> Iterator[tuple[int, Any, Rows]]:
    """For each value that a column has: its number, the value, and the rows that have it."""
    for index, value in enumerate(distinct(rows, name)):
        yield index, value, where(rows, **{name: value})


def where(rows: Rows, **wanted: Any) -> Rows:
    """The rows with these values."""
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def distinct(rows: Rows, name: str) -> list[Any]:
    """The values that a column has, each once, in their order."""
    return list(dict.fromkeys(values(rows, name)))


def values(rows: Rows, *names: str) -> list[Any]:
    """The values of one column, or of several together."""
    return [row[name] for row in rows for name in names]
