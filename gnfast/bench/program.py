"""What the training program costs the host besides its steps: measured on a CPU, with steps that do nothing."""

import contextlib
import dataclasses
import io
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from unittest import mock

from gnfast.bench.count import work
from gnfast.config.config import Config
from gnfast.config.presets import PRESETS
from gnfast.train import loop
from gnfast.train.session import Session
from gnfast.train.side_work import HANDED_OVER, SideWork
from gnfast.train.state import State

# Networks as narrow as this: copies on a device take the host as long as those of any width.
WIDTH = 1 / 32
# A step that a device takes 1.5 ms for, as is expected of the CNN's iteration.
STEP_SECONDS = 1.5e-3
NEVER = {"log_every": 100_000, "probe_every": 0, "sample_every": 0, "eval_every": 0, "checkpoint_every": 0}


class Host(NamedTuple):
    """Of a run on the training thread.

    Attributes:
        iteration: µs of the thread's time per iteration.
        side_work: seconds per 1,000 steps until work besides the steps had been handed over.
        launches: what an iteration asks of the device outside its graph.
    """

    iteration: float
    side_work: float
    launches: int


@contextlib.contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Runs on a CPU are arranged as on a GPU: steps for a graph that draw what they take, a thread for the rest."""
    with (
        mock.patch.object(State, "_can_be_captured", lambda state: state.config.cuda_graph),
        mock.patch.object(State, "_draws_itself", return_value=True),
        mock.patch.object(loop, "goes_on_beside", return_value=True),
    ):
        yield


def host_of(preset: str, steps: int = 2000) -> Host:
    """Measures runs of a preset's networks, at its own intervals of rows, pictures, probes and checkpoints."""
    own = {"data": "digits", "steps": steps, "width": WIDTH, "device": "cpu", "extractor": "none", "eval_split": ""}
    config = dataclasses.replace(PRESETS[preset].config, **own)
    _, iteration, launches = _run(preset, dataclasses.replace(config, **NEVER), 0)
    side, *_ = _run(preset, config, STEP_SECONDS)
    return Host(iteration * 1e6, side.spent.entries[HANDED_OVER].here / steps * 1000, launches)


def share_outside_updates(preset: str, config: Config) -> float:
    """Of a run on a CPU, from its first update to its last: the time that is not spent in updates, over all of it."""
    spent: list[float] = []
    of_updates: list[float] = []
    whole, update = Session._train, State.update

    def timed(of: Callable[..., None], seconds: list[float]) -> Callable[..., None]:
        def run(*given: Any) -> None:
            began = time.perf_counter()
            of(*given)
            seconds.append(time.perf_counter() - began)

        return run

    with (
        TemporaryDirectory() as folder,
        mock.patch.object(Session, "_train", timed(whole, spent)),
        mock.patch.object(State, "update", timed(update, of_updates)),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        loop.train(preset, dataclasses.replace(config, run_dir=str(Path(folder, "run"))), echo=lambda _: None)
    return 1 - sum(of_updates) / sum(spent)


def _run(preset: str, config: Config, seconds: float) -> tuple[SideWork, float, int]:
    """What did the work beside the steps; the training thread's seconds per iteration; launches outside its graph."""
    found: list[tuple[SideWork, float, int]] = []

    def train(session: Session, received: list) -> None:
        state = session.state
        # A real one; from then on the graph does nothing, while a device would be at it.
        state.update()
        state.captured.step = lambda *_: time.sleep(seconds) if seconds else None
        launches = work(state.update, warm=True).launches
        began, first = time.thread_time(), state.step
        whole(session, received)
        found.append((session.side, (time.thread_time() - began) / (state.step - first), launches))

    whole = Session._train
    with as_on_a_gpu(), TemporaryDirectory() as folder, mock.patch.object(Session, "_train", train):
        config = dataclasses.replace(config, run_dir=str(Path(folder, "run")))
        with contextlib.redirect_stderr(io.StringIO()):
            loop.train(preset, config, echo=lambda _: None)
    return found[0]
