"""The training program around Algorithm 1: data, log, schedule, checkpoints, and continuing where a run stopped."""

import contextlib
import copy
import dataclasses
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from gnfast.config.config import Config, as_json, decisive, option
from gnfast.data import ImageDataset
from gnfast.data.registry import registered
from gnfast.interop.device import resolve_device
from gnfast.io.files import expanded, remove_abandoned, write_text
from gnfast.io.rows import Row, read_rows
from gnfast.runs import checkpoint, lock
from gnfast.runs.record import best
from gnfast.runs.run_page import write_report
from gnfast.runs.signals import requested_stops
from gnfast.train.evaluate import Measures, as_line, as_row, evaluate, load_split, open_measures
from gnfast.train.failures import clear_errors, is_full
from gnfast.train.logs import METRICS, SPEED, RunLog, environment, loss_curve
from gnfast.train.networks import sample
from gnfast.train.parallel import Group, joined
from gnfast.train.probe import Probe
from gnfast.train.profile import watched
from gnfast.train.resume import open_run, restore
from gnfast.train.saved import SCORE
from gnfast.train.spent import Spent
from gnfast.train.state import NonFiniteLossError, State
from gnfast.train.validation import critic_losses, load_validation

# A page takes as long to draw as twenty tiny updates: while a run trains, one is to cost less than a hundredth of it.
PAGE_SECONDS = 30.0
Echo = Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """How a call of `train` ended.

    Attributes:
        run_dir: the run folder.
        step: generator updates done, over all sessions.
        trained: generator updates done by this call.
        finished: whether all of them are done.
        signal: the signal that stopped it (1, 2 or 15), or 0.
        picture: the last sample grid, if there is one.
        distances: the rows of metrics.jsonl with Fréchet distances, oldest first.
    """

    run_dir: Path
    step: int
    trained: int
    finished: bool
    signal: int
    picture: Path | None
    distances: list[dict[str, Any]]


def train(
    preset: str, config: Config, *, progress: bool = True, echo: Echo | None = None, profile: Spent | None = None
) -> Outcome:
    """Trains until `config.steps` generator updates are done, from the run folder's last checkpoint if it has one.

    On a CPU, and with the same number of threads, a run that stopped and continued gives the same numbers, bit for bit,
    as one that did not. Under torchrun the processes share each batch; the first one writes the run folder.

    Args:
        preset: the name the run goes by; a run folder of another preset is refused.
        config: the settings.
        progress: show a progress bar on stderr.
        echo: called with each line for the user; above the progress bar on stdout if None.
        profile: what was spent before; with it, the page profile.html says where this call's time goes.

    Returns:
        How it ended. SIGINT, SIGTERM and SIGHUP end it early, after a checkpoint.

    Raises:
        ValueError: no data given, or settings that do not fit together.
        RunError: the run folder belongs to another preset, other settings or other data, or cannot be read; another
            process is at work in it; the disk is full; another process of the run was lost.
        NonFiniteLossError: training diverged; the state before that step is saved.
    """
    begun = profile or Spent()
    device = _own_device(resolve_device(config.device))
    _set_arithmetic(config, device)
    folder = run_folder(preset, config)
    config = _from_anywhere(config)
    with clear_errors(folder), joined(device) as group, contextlib.ExitStack() as stack:
        if group.leads:
            # From the first moment on: preparing data may take an hour.
            stack.enter_context(lock.sole_user(folder, "gnfast train, process"))
            # Of a run that was killed before it had written its first file.
            remove_abandoned(folder, "config.json")
            echo = echo or (lambda line: tqdm.write(line))
        else:
            echo, progress, profile = (lambda line: None), False, None
        _require_divisible(config, group)
        with group.leader_first():
            dataset = _load(config, progress)
            saved = open_run(folder, preset, config, dataset.fingerprint, echo)
        begun.mark("data")
        state = State(config, dataset, device, group)
        restore(state, saved, folder)
        begun.mark("networks and optimisers")
        measures, validation = Measures(dataset), None
        if group.leads:
            measures = open_measures(config, dataset, device, progress)
            validation = load_validation(config, dataset, progress)
            for place in (folder, folder / "checkpoints", folder / "samples"):
                remove_abandoned(place)
            # After all that can go wrong before the first step, so that a mistake leaves no folder.
            settings = {"preset": preset, "config": as_json(config)}
            write_text(folder / "config.json", json.dumps(settings, indent=2) + "\n")
        log = RunLog(folder, state.step, config.tensorboard, echo, writes=group.leads)
        begun.mark("scores and log")
        with contextlib.closing(log):
            return _Session(preset, folder, state, log, measures, progress, validation, profile).run()


@dataclass
class _Session:
    """What one call of `train` does from the first update to the last."""

    preset: str
    folder: Path
    state: State
    log: RunLog
    measures: Measures
    progress: bool
    validation: ImageDataset | None
    begun: Spent | None

    def __post_init__(self) -> None:
        self.config, self.leads, self.start = self.state.config, self.state.group.leads, self.state.step
        self.probe = Probe(self.config)
        self.page_due = time.monotonic() + PAGE_SECONDS
        # Where a run goes back to when a loss is not finite.
        self.good = copy.deepcopy(self.state.state_dict())

    def run(self) -> Outcome:
        config, state, log = self.config, self.state, self.log
        self._warn_of_lost_rows()
        if self.start >= config.steps:
            # What a run shows comes after its last checkpoint, and may have been cut off.
            self._show()
            log.say(f"{self.folder}: this run has finished its {config.steps} steps; nothing to do")
            return self._outcome()
        if self.leads:
            log.session(environment(state, self.start))
        log.say(f"{self.preset}: {self._plan()}, in {self.folder}")
        if self.start == 0:
            self._evaluate()
        with watched(self, self.begun) if self.begun else contextlib.nullcontext(state) as updated:
            with requested_stops() as received, self._bar() as bar:
                self._train(received, bar, updated.update)
            self._save()
            self._show()
        if state.step < config.steps:
            name = received[0].name if received else "another process"
            log.say(f"stopped after step {state.step} by {name}; saved; repeat the command to continue")
        else:
            log.say(f"finished {config.steps} steps in {self.folder}")
        return self._outcome(received[0] if received else 0)

    def _plan(self) -> str:
        data, steps, world = self.state.batches.dataset, self.config.steps, self.state.group.world
        where = f"{self.config.model} on {self.state.device} in {self.state.precision}"
        parts = [f"{len(data)} images of {data.name}", where]
        parts += [f"{world} processes"] if world > 1 else []
        return ", ".join([*parts, f"continuing after step {self.start} of {steps}" if self.start else f"{steps} steps"])

    def _bar(self) -> tqdm:
        shown = {"unit": "step", "disable": not self.progress, "dynamic_ncols": True, "smoothing": 0.05}
        return tqdm(total=self.config.steps, initial=self.start, **shown)

    def _warn_of_lost_rows(self) -> None:
        last = max((row["step"] for row in self._rows()), default=0)
        if self.leads and self.start - last >= self.config.log_every:
            path = self.folder / METRICS
            self.log.say(f"warning: {path} has no rows of steps {last + 1} to {self.start}")

    def _train(self, received: list, bar: tqdm, update: Callable[[], None]) -> None:
        config, state, log = self.config, self.state, self.log
        began = since = time.perf_counter()
        seen = state.step
        while state.step < config.steps and not state.group.any(bool(received)):
            update()
            bar.update()
            step, last = state.step, state.step == config.steps
            if step % config.log_every == 0 or last:
                losses = self._losses()
                now = time.perf_counter()
                lr_d, lr_g = state.rates(step - 1)
                log.row(step, **losses, lr_d=lr_d, lr_g=lr_g)
                log.row(step, SPEED, seconds=now - began, steps_per_second=(step - seen) / (now - since))
                since, seen = now, step
                bar.set_postfix({name.removeprefix("loss_"): f"{value:.3f}" for name, value in losses.items()})
            if _due(step, config.probe_every) and self.leads:
                log.row(step, **self.probe.measure(state))
            if last or _due(step, config.sample_every):
                self._picture()
            if last or _due(step, config.eval_every):
                self._evaluate()
            if _due(step, config.checkpoint_every) and not last:
                self._save()

    def _losses(self) -> dict[str, float]:
        try:
            losses = self.state.take_losses()
        except NonFiniteLossError as error:
            # Losses are looked at every few steps only, and by now the weights of the step before the failure are gone.
            # They are computed again: on a CPU to the same bits, since the random states are in the copy too.
            self.state.load_state_dict(self.good)
            while self.state.step < error.step - 1:
                self.state.update()
            self._save()
            self.log.say(f"the state after step {self.state.step} is saved: the next update is the one that fails")
            raise
        self.good = copy.deepcopy(self.state.state_dict())
        return losses

    def _picture(self) -> None:
        if self.leads:
            state, batch_statistics = self.state, self.config.sample_bn == "batch"
            # Both: early in a run the moving average still shows the generator that the run began with.
            for name, generator in state.generators().items():
                self.log.picture(name, state.step, sample(generator, *state.fixed, batch_statistics=batch_statistics))

    def _evaluate(self) -> None:
        if not self.leads:
            return
        if self.validation is not None:
            self.log.row(self.state.step, **critic_losses(self.state, self.validation))
        if self.measures.extractor is not None:
            raw, ema = evaluate(self.state, self.measures, self.progress)
            self.log.row(self.state.step, **as_row(raw, ema))
            self.log.say(f"step {self.state.step}: {as_line(raw, ema)}")
        if self.state.step < self.config.steps and time.monotonic() >= self.page_due:
            # At the end the page is written after the last checkpoint.
            self._report()
            self.page_due = time.monotonic() + PAGE_SECONDS
        # Not where this step was not measured, or its distance is not finite.
        if (top := best(self._rows(), SCORE)) and top[0] == self.state.step:
            self._save(best=True)

    def _rows(self) -> list[Row]:
        return read_rows(self.folder / METRICS)

    def _show(self) -> None:
        if self.leads:
            loss_curve(self.folder)
            self._report()

    def _report(self) -> None:
        try:
            write_report(self.folder)
        except Exception as error:  # A page about the run must not end it; a full disk does.
            if is_full(error):
                raise
            self.log.say(f"warning: no report.html ({type(error).__name__}: {error}); `gnfast report` makes it later")

    def _save(self, best: bool = False) -> None:
        if self.leads:
            self.log.flush()
            content = {"preset": self.preset, "data": self.state.batches.dataset.fingerprint}
            content |= {"config": decisive(self.config), "state": self.state.state_dict()}
            checkpoint.save(self.folder / "checkpoints", self.state.step, content, best=best)

    def _outcome(self, number: int = 0) -> Outcome:
        pictures = sorted((self.folder / "samples").glob("ema-*.png"))
        step = self.state.step
        return Outcome(
            run_dir=self.folder,
            step=step,
            trained=step - self.start,
            finished=step >= self.config.steps,
            signal=int(number),
            picture=pictures[-1] if pictures else None,
            distances=[row for row in self._rows() if "distance_ema" in row],
        )


def run_folder(preset: str, config: Config) -> Path:
    """Where a run lives."""
    return expanded(config.run_dir or Path("runs", preset))


def _from_anywhere(config: Config) -> Config:
    """The settings with paths that mean the same in every working directory: config.json is read from elsewhere."""
    names = ["data_root", "extractor_weights"] + ([] if config.data in registered() else ["data"])
    paths = {name: getattr(config, name) for name in names}
    return dataclasses.replace(config, **{name: str(expanded(path).absolute()) for name, path in paths.items() if path})


def _load(config: Config, progress: bool) -> ImageDataset:
    dataset = load_split(config, config.split, progress)
    if config.classes not in (0, len(dataset.classes)):
        raise ValueError(f"--classes: got {config.classes}, but {dataset.name} has {len(dataset.classes)} classes")
    return dataset


def _own_device(device: torch.device) -> torch.device:
    """The device of this process: under torchrun, `cuda` is the one of its place on the machine."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return device


def _set_arithmetic(config: Config, device: torch.device) -> None:
    if config.threads:
        torch.set_num_threads(config.threads)
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = config.precision == "tf32"
        torch.backends.cudnn.allow_tf32 = config.precision == "tf32"
        # The shapes of a run never change, so that trying all algorithms once pays.
        torch.backends.cudnn.benchmark = not config.deterministic
        if config.deterministic:
            # cuBLAS wants this before its first call.
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)


def _require_divisible(config: Config, group: Group) -> None:
    for name in ("batch_d", "batch_g"):
        size = getattr(config, name)
        if size % (group.world * config.accumulate):
            raise ValueError(
                f"{option(name)}: got {size}, wanted a multiple of processes times --accumulate, "
                f"{group.world} x {config.accumulate}"
            )


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
