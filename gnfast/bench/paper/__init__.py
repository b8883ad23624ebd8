"""Papers' trainings against each other, with gnfast and as the papers' code runs them: `gnfast bench paper`.

`speed.py` times whole iterations, `learning.py` trains both for a time, `results.py` keeps what was found, `pages.py`
shows it. What is measured has its own file each; this one says in which order.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gnfast.bench.environment import environment
from gnfast.bench.paper import learning, pages, speed
from gnfast.bench.paper.prepare import Training, prepared
from gnfast.bench.paper.results import Results
from gnfast.config.presets import PRESETS
from gnfast.errors import unknown
from gnfast.reproduce.scale import Scale
from gnfast.runs import lock

SHORT = {
    "cifar10": ("gngan-cifar10-cnn", "gngan-cifar10-resnet"),
    "stl10": ("gngan-stl10-cnn", "gngan-stl10-resnet"),
    "celebahq": ("gngan-celebahq-128", "gngan-celebahq-256"),
}
"""Short names, and the presets that they stand for."""

LEARNS_AT_LEAST = 0.5
"""Of a preset's time, whatever measuring speed takes."""


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        presets: names of presets.
        scale: how large, on which images, with which further settings.
        minutes: of each preset.
        device: where.
        out: the folder of the results and of the runs.
    """

    presets: tuple[str, ...]
    scale: Scale
    minutes: float
    device: torch.device
    out: Path

    def settings(self) -> dict[str, Any]:
        """What a command that continues must have in common with the first."""
        here = environment(self.device)
        return {
            "scale": self.scale.factor,
            "data": [self.scale.stand_in] if self.scale.stand_in else dict(self.scale.data),
            "set": {name: list(v) if isinstance(v, tuple) else v for name, v in self.scale.options.items()},
            "minutes": self.minutes,
            **{name: here[name] for name in ("device", "threads", "torch", "gnfast")},
        }


def presets_of(names: Sequence[str]) -> tuple[str, ...]:
    """The presets that names and short names stand for, each once.

    Raises:
        ValueError: a name that neither is; the message has those that are.
    """
    found: dict[str, None] = {}
    for name in names:
        if name not in SHORT and name not in PRESETS:
            raise ValueError(f"--presets: {unknown('preset', name, [*SHORT, *PRESETS])}")
        found |= dict.fromkeys(SHORT.get(name, (name,)))
    if not found:
        raise ValueError(f"--presets: got none, wanted some of {', '.join([*SHORT, *PRESETS])}")
    return tuple(found)


def bench_paper(plan: Plan, *, progress: bool = True, echo: Callable[[str], None] = print) -> int:
    """Measures what has not been measured yet, and writes results.json, table.md and learning.png into `plan.out`.

    Args:
        plan: what to measure.
        progress: show bars on stderr.
        echo: called with each line for the user.

    Returns:
        The exit status: 0, 1 where gnfast's results differ from double backward's or a run failed, or 128 + the signal
        that stopped it.

    Raises:
        ValueError: there are images for none of the presets.
        RunError: the folder has results of other settings, or another process is at work in it.
    """
    with lock.sole_user(plan.out, "gnfast bench paper, process"):
        results = Results.opened(plan.out, plan.settings(), environment(plan.device))
        trainings, lost = prepared(plan.presets, plan.scale, plan.out, plan.device, progress, echo)
        results.content["left_out"] = lost
        for training in trainings:
            status = _measured(training, results, plan, progress, echo)
            pages.write(results)
            if status >= 128:
                return status
    return results.status([training.preset for training in trainings])


def _measured(training: Training, results: Results, plan: Plan, progress: bool, echo: Callable[[str], None]) -> int:
    """Speed and learning of one preset, as far as they are not known; 128 + a signal that stopped it, or 0."""
    name, started = training.preset, time.monotonic()
    if not results.has_speed(name):
        echo(f"{name}: speed of whole iterations")
        rows, notes = [], []
        for row in speed.measured(training, plan.device, 60 * plan.minutes):
            echo(pages.speed_line(row))
            (notes if "note" in row else rows).append(row)
        left = max(60 * plan.minutes - (time.monotonic() - started), LEARNS_AT_LEAST * 60 * plan.minutes)
        results.add_speed(name, speed.levelled(rows, training), notes, left)
    else:
        echo(f"{name}: its speed is known")
    if training.config.extractor == "none" or results.has_learned(name):
        return 0
    signal = learning.trained(training, results, plan.device, progress, echo)
    runs = learning.found(training)
    # What failed may have lacked memory or room, and is tried again by a repeated command.
    failed = any(run["status"] == "failed" for run in runs.values())
    results.add_learning(name, runs, ended=not signal and not failed)
    return 128 + signal if signal else 0
