"""How a call of `train` ended, and what can be had of the run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from gnfast.io.rows import Row, read_rows
from gnfast.train.export import Weights, snapshot
from gnfast.train.logs import METRICS


@dataclass(frozen=True)
class Outcome:
    """How a call of `train` ended.

    Attributes:
        run_dir: the run folder.
        step: generator updates done, over all sessions.
        trained: generator updates done by this call.
        finished: whether all of them are done.
        signal: the signal that stopped it (1, 2 or 15), or 0.
        picture: the last sample grid, if there is one: the moving average's, once that has left its first weights.
        distances: the rows of metrics.jsonl with Fréchet distances, oldest first.
    """

    run_dir: Path
    step: int
    trained: int
    finished: bool
    signal: int
    picture: Path | None
    distances: list[dict[str, Any]]

    @property
    def metrics(self) -> Row:
        """What metrics.jsonl has last under each name: losses, scores, probes, and the `step` of its last row."""
        return {name: value for row in read_rows(self.run_dir / METRICS) for name, value in row.items()}

    def generator(self, *, weights: Weights = "ema", best: bool = False) -> nn.Module:
        """A generator of this run, on the CPU: its moving average ("ema") or itself ("raw").

        Args:
            weights: which of the two.
            best: of the best checkpoint by Fréchet distance, not of the newest.

        Returns:
            A module from (B, z_dim) latents, and (B,) labels if it is conditional, to (B, channels, resolution,
            resolution) in [-1, 1], as from `load_generator`.

        Raises:
            RunError: the run has no such checkpoint.
        """
        return snapshot(self.run_dir, weights, best).build()
