"""What `gnfast bench paper` has found so far: OUT/results.json, from which a repeated command goes on."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gnfast.bench.comparison import Row
from gnfast.bench.paper import speed
from gnfast.bench.paper.prepare import GNFAST
from gnfast.io.files import write_text
from gnfast.runs.checkpoint import RunError
from gnfast.runs.record import read_json

NAME = "results.json"
_KEYS = {"settings": dict, "environment": dict, "rows": list, "notes": list, "learning": dict, "left_out": dict}
# What the pages read of each entry.
_ENTRIES = {
    "rows": {"preset", "variant", "gate", "ratio", "steps_per_s", "images_per_s"},
    "notes": {"preset", "note"},
    "learning": {"seconds", "ended", "runs"},
}


@dataclass
class Results:
    """The file's content: `settings`, `environment`, `rows` of speed, `notes` on what could not be measured, `learning`
    (of each preset the seconds and the runs), and `left_out`, presets without images."""

    folder: Path
    content: dict[str, Any]

    @classmethod
    def opened(cls, folder: Path, settings: dict[str, Any], environment: dict[str, Any]) -> "Results":
        """What is in a folder, or nothing yet.

        Raises:
            RunError: it was measured with other settings, or the file is not such a one.
        """
        path = folder / NAME
        try:
            content = read_json(path)
        except FileNotFoundError:
            empty = {name: kind() for name, kind in _KEYS.items()}
            return cls(folder, empty | {"settings": settings, "environment": environment})
        if not _is_one(content):
            raise RunError(f"{path} is not one of gnfast bench paper; choose another --out")
        before = content["settings"]
        changed = [
            f"{name}: there {before.get(name)!r}, now {value!r}"
            for name, value in settings.items()
            if before.get(name) != value
        ]
        if changed:
            raise RunError(f"{folder} has results of other settings; choose another --out ({'; '.join(changed)})")
        return cls(folder, content)

    def add_speed(self, preset: str, rows: list[Row], notes: list[Row], seconds: float) -> None:
        """Keeps the rows of a preset, and how many seconds are left for it to learn."""
        self.content["rows"] += rows
        self.content["notes"] += notes
        self.content["learning"][preset] = {"seconds": round(seconds, 1), "ended": False, "runs": {}}
        self.save()

    def add_learning(self, preset: str, runs: dict[str, Any], ended: bool) -> None:
        """Keeps what `learning.found` says of a preset's runs; `ended` where they have had their time."""
        self.content["learning"][preset] |= {"runs": runs, "ended": ended}
        self.save()

    def save(self) -> None:
        write_text(self.folder / NAME, json.dumps(self.content, indent=1) + "\n")

    @property
    def presets(self) -> list[str]:
        """Those whose speed is known, in the order in which they were measured."""
        return list(self.content["learning"])

    def has_speed(self, preset: str) -> bool:
        return preset in self.content["learning"]

    def has_learned(self, preset: str) -> bool:
        return self.content["learning"].get(preset, {}).get("ended", False)

    def rows(self, preset: str) -> list[Row]:
        """The rows of speed of a preset."""
        return [row for row in self.content["rows"] if row["preset"] == preset]

    def runs(self, preset: str) -> dict[str, Any]:
        """Its runs, as `learning.found` has them; empty if it has none."""
        return self.content["learning"][preset]["runs"]

    def seconds_to_learn(self, preset: str) -> float:
        return self.content["learning"][preset]["seconds"]

    def steps_per_s(self, preset: str, way: str) -> float | None:
        """The speed of a way that trains; None if it was left out."""
        row = speed.of_way(self.rows(preset), way)
        return row and row["steps_per_s"]

    def status(self, presets: list[str]) -> int:
        """1 where gnfast's results differ from double backward's, there are none, or a run failed; otherwise 0."""
        ours = [speed.of_way(self.rows(preset), GNFAST) for preset in presets]
        failed = any(run["status"] in ("failed", "diverged") for name in presets for run in self.runs(name).values())
        return int(failed or any(row is None or row["gate"] == "red" for row in ours))


def _is_one(content: Any) -> bool:
    """Whether a file holds results, as far as its kinds and names of entries say."""
    if not isinstance(content, dict) or {name: type(content.get(name)) for name in _KEYS} != _KEYS:
        return False
    entries = [(content[name], wanted) for name, wanted in _ENTRIES.items()]
    each = [(e, wanted) for held, wanted in entries for e in (held.values() if isinstance(held, dict) else held)]
    return all(isinstance(entry, dict) and wanted <= entry.keys() for entry, wanted in each)
