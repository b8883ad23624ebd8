"""What `gnfast eval` has measured of a run, beside what the run measured while it trained: RUN/evaluations.jsonl."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gnfast.io.files import open_append
from gnfast.io.rows import Row, read_rows
from gnfast.runs.page import Html, table

FILE = "evaluations.jsonl"
_WEIGHTS = {"ema": "EMA", "raw": "raw"}
_SHOWN = ("run", "step", "weights", "scores", "against")


def add(folder: Path, result: Mapping[str, Any]) -> None:
    """Keeps a result, with a whole "step" and "scores" as text, in a run's folder.

    Raises:
        InputError, OSError: it cannot be written there.
    """
    with open_append(folder / FILE) as file:
        file.write(json.dumps(result, ensure_ascii=False) + "\n")


def read(folder: Path, **known: str) -> list[Row]:
    """The results that are kept in a run's folder, oldest first, each with the entries that are `known`."""
    return [row | known for row in read_rows(folder / FILE)]


def as_table(rows: Sequence[Row]) -> Html | None:
    """Results for a page, each once, with the name of its "run" where rows have it; None where there is none."""
    head = [name for name in _SHOWN if name != "run" or any(name in row for row in rows)]
    shown = [row | {"step": f"{row['step']:,}", "weights": _WEIGHTS.get(str(row.get("weights")), "–")} for row in rows]
    cells = dict.fromkeys(tuple(str(row.get(name) or "–") for name in head) for row in shown)
    return table(head, cells) if rows else None
