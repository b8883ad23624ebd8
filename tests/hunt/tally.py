"""What a hunter has tried, and what came of it."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

FAILED = "FAILED"


@dataclass
class Tally:
    """Counts by outcome; failures are printed as they come, each with the line that repeats it.

    Args:
        hunter: its name on the command line.
        until: when it ends, on the clock of `time.monotonic`.
        most: after how many trials it ends at the latest.
    """

    hunter: str
    until: float
    most: float = float("inf")
    counts: Counter[str] = field(default_factory=Counter)
    extra: Counter[str] = field(default_factory=Counter)
    """What else was counted, no trials."""

    def goes_on(self) -> bool:
        return time.monotonic() < self.until and self.tried < self.most

    @property
    def tried(self) -> int:
        return self.counts.total()

    def add(self, outcome: str) -> None:
        self.counts[outcome] += 1

    def fail(self, arguments: str, reason: str) -> None:
        self.counts[FAILED] += 1
        print(f"FAILED: {reason}\n    python -m tests.hunt {self.hunter} {arguments}", flush=True)

    def __str__(self) -> str:
        parts = [f"{count:,} {what}" for what, count in self.extra.items() if count]
        parts += [f"{count:,} {outcome}" for outcome, count in sorted(self.counts.items()) if outcome != FAILED]
        return f"{self.hunter}: {self.tried:,} tried: " + ", ".join([*parts, f"{self.counts[FAILED]} {FAILED}"])


@dataclass
class Hunter:
    """Something that looks for failures.

    Args:
        hunt: (tally, first seed, options of the command line) fills the tally while it goes on.
        repeat: (seed, options) tries one again, tells of it, and says whether it failed.
    """

    hunt: Callable[..., None]
    repeat: Callable[..., bool]
