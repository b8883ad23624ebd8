"""What a run leaves in its folder, as it goes: results.json, failures.txt and log.txt."""

import contextlib
import itertools
import json
import os
from pathlib import Path
from typing import Any

Row = dict[str, Any]

RESULTS, FAILURES, LOG, TABLE = "results.json", "failures.txt", "log.txt", "table.txt"
FILES = (RESULTS, FAILURES, LOG, TABLE, "metrics.jsonl", "curves.png", "samples.png", "profile.html", "sm_*.json")
"""All that a run leaves, as patterns."""


class Record:
    """The results so far. Every change is on disk before the next one: a kill leaves the old file or the new one.

    results.json begins with `head`. What an earlier run has left in the folder moves to a folder in it.
    """

    def __init__(self, folder: Path, **head: Any) -> None:
        self.folder = folder
        self.data: dict[str, Any] = {**head, "stages": {}, "sections": {}}
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / RESULTS).exists():
            _set_aside(folder)
        for name in (FAILURES, LOG):
            (folder / name).write_text("")
        self._write()

    def update(self, part: str, values: dict[str, Any]) -> None:
        """Sets values of "stages", or of another part beside the sections."""
        self.data.setdefault(part, {}).update(values)
        self._write()

    def section(self, name: str, **values: Any) -> None:
        """Sets values of a section, which has no rows yet if it is new."""
        self.data["sections"].setdefault(name, {"rows": []}).update(values)
        self._write()

    def row(self, section: str, row: Row) -> None:
        """Adds a row to a section."""
        self.data["sections"][section]["rows"].append(row)
        self._write()

    def fail(self, section: str, reason: str, details: str = "") -> None:
        """Notes in one line why a section ended early, and puts all that is known into failures.txt."""
        self.section(section, error=reason)
        self.lose(section, f"FAILED, {reason}", details)

    def lose(self, section: str, reason: str, details: str) -> None:
        """Notes a failure of a part of a section, which goes on."""
        self.say(f"{section}: {reason}")
        with open(self.folder / FAILURES, "a", encoding="utf-8", errors="replace") as file:
            file.write(f"== {section}: {reason}\n{details.rstrip()}\n\n")

    def say(self, line: str) -> None:
        """A line for whoever watches, and for log.txt."""
        # Whoever watches may have gone; the files go on.
        with contextlib.suppress(OSError):
            print(line, flush=True)
        with open(self.folder / LOG, "a", encoding="utf-8", errors="replace") as file:
            file.write(f"{line}\n")

    @property
    def failed(self) -> bool:
        """Whether a section ended early, or none was begun."""
        sections = self.data["sections"].values()
        return not sections or any("error" in section for section in sections)

    def _write(self) -> None:
        # Not by gnfast.io: this process outlives a gnfast, or a PyTorch, that does not load.
        temporary = self.folder / f"{RESULTS}.tmp"
        temporary.write_text(json.dumps(self.data, indent=1) + "\n")
        os.replace(temporary, self.folder / RESULTS)


def _set_aside(folder: Path) -> None:
    earlier = next(path for n in itertools.count(1) if not (path := folder / f"earlier-{n}").exists())
    earlier.mkdir()
    for pattern in FILES:
        for path in folder.glob(pattern):
            path.rename(earlier / path.name)
