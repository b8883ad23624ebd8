"""What a section is, and what it is told."""

import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.gpu.alone import alone

if TYPE_CHECKING:
    from gnfast.bench.ceilings import Ceilings

Row = dict[str, Any]
ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Context:
    """What every section is told."""

    device: str
    quick: bool
    """Tiny sizes, as in a dry run."""
    out: Path
    limit_s: float = 0.0
    """Of the section."""
    seconds: float = 0.0
    """How long `training` trains."""
    wait: Callable[[], None] = lambda: None
    """Blocks until no other process measures; for sections that prepare beside others."""
    rates: dict[str, dict[str, float]] = field(default_factory=dict)
    """By precision, what was measured so far of the device: the fields of its `Ceilings`."""

    def budget(self, seconds: float) -> float:
        """The seconds in which to repeat what is timed; a dry run does not."""
        return 0.0 if self.quick else seconds

    def alone(self) -> AbstractContextManager[None]:
        """Keeps the kernels that torch.compile tries in other processes off the device."""
        return alone(self.out)

    def ceilings(self, precision: str) -> "Ceilings | None":
        """The device's ceilings in a precision, measured now if no section has; None where that fails."""
        import torch

        from gnfast.bench import ceilings
        from gnfast.bench.mode import tuned

        if precision not in self.rates:
            try:
                with self.alone():
                    found = ceilings.measure(torch.device(self.device), tuned(precision), self.quick)
            except Exception as error:
                # Without them rows lack their floor, and nothing else.
                print(f"ceilings in {precision}: {type(error).__name__}: {error}", flush=True)
                return None
            self.rates[precision] = asdict(found)
        return ceilings.Ceilings(**self.rates[precision])

    def fraction_of_bandwidth(self, num_bytes: float, microseconds: float) -> float | None:
        """The time to copy so many bytes over the time given; None without ceilings."""
        found = self.ceilings("float32")
        # Three digits, however small: of tiny sizes on a busy machine three places would be 0.
        return found and float(f"{num_bytes / found.bytes_per_s * 1e6 / microseconds:.3g}")


@dataclass(frozen=True)
class Section:
    """A part of the run that can fail by itself."""

    function: str
    """What measures, as "module:name": (context, **options) ↦ an iterator over rows. Only the process that runs it
    imports the module, so that one that cannot be imported costs its own sections alone."""
    limit_s: float
    """Seconds that it may take on a GPU, waiting for its turn not counted."""
    options: Mapping[str, Any] = field(default_factory=dict)

    def rows(self, context: Context) -> Iterator[Row]:
        module, _, name = self.function.partition(":")
        return getattr(importlib.import_module(module), name)(context, **self.options)

    def limit(self, quick: bool) -> float:
        """The seconds that it may take, in a dry run on whatever cores there are too."""
        return self.limit_s * (10 if quick else 1)
