"""A run of an experiment that has ended, and what can be measured of it."""

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from gnfast.analysis import subjects
from gnfast.analysis.measurements import Subject
from gnfast.runs.rows import Rows
from gnfast.runs.sweep_results import Run
from gnfast.train.evaluate import load_split
from gnfast.train.probe import Probe
from gnfast.train.state import State

IMAGES = 256


@dataclass(frozen=True)
class Trained:
    """A run with its figures.

    Attributes:
        run: as the sweep has it; it has a record.
        device: where to measure.
    """

    run: Run
    device: torch.device

    @property
    def labels(self) -> dict[str, Any]:
        """What it is among the others: its `experiment`, and often its `critic`."""
        return self.run.case.labels

    @property
    def steps(self) -> int:
        """The generator updates that it has done."""
        return self.run.record.step

    @property
    def finished(self) -> bool:
        """Whether it trained to its end; otherwise it diverged."""
        return self.run.state.status == "finished"

    @cached_property
    def subject(self) -> Subject:
        """Its critic at the end."""
        found = subjects.of_run(self.run.case.folder, count=IMAGES, device=self.device)
        return dataclasses.replace(found, name=self.labels["critic"])

    def untrained(self) -> Subject:
        """Its critic at the start."""
        return subjects.untrained(self.labels["critic"], self.run.record.config, count=IMAGES, device=self.device)

    def history(self) -> Rows:
        """The rows of metrics.jsonl, and before them what the probe measures at the start."""
        config = self.run.record.config
        state = State(config, load_split(config, config.split, progress=False), self.device)
        return [{"step": 0, **Probe(config).measure(state)}, *self.run.record.rows]

    def score(self, **keys: Any) -> dict[str, Any]:
        """A row for the figures of scores: the distance at the end, None if it diverged, and what it is measured in."""
        end = self.run.last if self.finished else None
        features = next((row["extractor"] for row in self.run.record.rows if "extractor" in row), "")
        lost = None if self.finished else self.steps
        return {**keys, "distance": end and end[1], "features": features, "diverged_at": lost}
