"""Rows of JSON lines, as a run writes them while it goes: each with a whole `step`, and a damaged line is left out."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gnfast.errors import InputError
from gnfast.io.files import open_regular

Row = dict[str, Any]

MOST_STEPS = 10**15
# More bytes than any run writes in a row.
_ROW_BYTES = 1 << 20


def read_rows(path: Path) -> list[Row]:
    """The rows in a file of JSON lines, with their whole `step`; damaged lines, as a kill leaves them, are left out."""
    return [plain_entries(row) for line in read_lines(path) if (row := parsed(line)) is not None]


def read_lines(path: Path) -> Iterator[bytes]:
    """The lines of a file with their ends, over-long ones in parts; none if it is missing or not a regular file."""
    try:
        with open_regular(path) as file:
            while line := file.readline(_ROW_BYTES):
                yield line
    except (OSError, InputError):
        return


def parsed(line: bytes) -> Row | None:
    """The row in a line; None if it is damaged."""
    if not line.startswith(b"{"):
        return None
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or type(row.get("step")) is not int or not 0 <= row["step"] < MOST_STEPS:
        return None
    return row


def plain_entries(found: Row) -> Row:
    """The entries whose values are numbers, words, or lists of them: a folder may be anyone's."""
    return {name: value for name, value in found.items() if _is_plain(value) or _is_plain_list(value)}


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, str | bool | float) or (type(value) is int and abs(value) < 10**20)


def _is_plain_list(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= 1000 and all(map(_is_plain, value))


def plain(value: object) -> str:
    """A value as text for people: without brackets, and the empty word in quotes."""
    if isinstance(value, dict):
        return ", ".join(f"{key}: {plain(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return " ".join(map(plain, value))
    return '""' if value == "" else str(value)
