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
_SHOWN = ("step", "weights", "scores", "against")


def run_of(path: Path) -> Path | None:
    """The run folder that `path` is, or one of whose checkpoints it is; None where it belongs to no run."""
    folder = path.parent.parent if path.parent.name == "checkpoints" else path
    return folder if (folder / "config.json").exists() else None


def add(folder: Path, result: Mapping[str, Any]) -> None:
    """Keeps a result, with a whole "step" and "scores" as text, in a run's folder.

    Raises:
        InputError, OSError: it cannot be written there.
    """
    with open_append(folder / FILE) as file:
        file.write(json.dumps(result, ensure_ascii=False) + "\n")


def read(folder: Path) -> list[Row]:
    """The results that are kept in a run's folder, oldest first."""
    return read_rows(folder / FILE)


def as_table(rows: Sequence[Row]) -> Html:
    """Results for a run's page, each once."""
    shown = [row | {"step": f"{row['step']:,}", "weights": _WEIGHTS.get(str(row.get("weights")), "–")} for row in rows]
    return table(_SHOWN, dict.fromkeys(tuple(str(row.get(name) or "–") for name in _SHOWN) for row in shown))
