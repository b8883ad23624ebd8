"""What a hunter has tried, and what came of it."""

import time
from collections import Counter, defaultdict
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
    counts: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    """Of each group of trials, by outcome."""
    extra: Counter[str] = field(default_factory=Counter)
    """What else was counted, no trials."""
    told: float = field(default_factory=time.monotonic)
    """When it last said how far it is."""

    def goes_on(self) -> bool:
        return time.monotonic() < self.until and self.tried < self.most

    @property
    def tried(self) -> int:
        return sum(counts.total() for counts in self.counts.values())

    @property
    def failed(self) -> int:
        return sum(counts[FAILED] for counts in self.counts.values())

    def add(self, outcome: str, group: str = "") -> None:
        self.counts[group][outcome] += 1
        if time.monotonic() - self.told > 60:
            print(f"{self.hunter}: {self.tried:,} tried, {self.failed} failed so far", flush=True)
            self.told = time.monotonic()

    def fail(self, arguments: str, reason: str, group: str = "") -> None:
        self.add(FAILED, group)
        print(f"FAILED: {reason}\n    python -m tests.hunt {self.hunter} {arguments}", flush=True)

    def __str__(self) -> str:
        """A line for each group: how many were tried, and what came of them."""
        lines = []
        for group, counts in sorted(self.counts.items()):
            parts = [f"{counts.total():,} tried", *(f"{n:,} {what}" for what, n in self.extra.items() if n)]
            parts += [f"{n:,} {outcome}" for outcome, n in sorted(counts.items()) if outcome != FAILED]
            lines.append(f"{self.hunter} {group}".strip() + ": " + ", ".join([*parts, f"{counts[FAILED]} {FAILED}"]))
        return "\n".join(lines) or f"{self.hunter}: nothing tried, as the time was up before its turn"


@dataclass
class Hunter:
    """Something that looks for failures.

    Args:
        hunt: (tally, first seed, options of the command line) fills the tally while it goes on.
        repeat: (seed, options) tries one again, tells of it, and says whether it failed.
    """

    hunt: Callable[..., None]
    repeat: Callable[..., bool]
