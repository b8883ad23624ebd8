"""One call of `gnfast train` from its first update to its last: when a row, a picture, a checkpoint is due."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tqdm import tqdm

from gnfast.config.config import as_json, decisive
from gnfast.data import ImageDataset
from gnfast.io.numbers import counted, fixed, number
from gnfast.io.rows import Row, read_rows
from gnfast.kernels.compiled import notice
from gnfast.runs import checkpoint
from gnfast.runs.average import unmoved
from gnfast.runs.record import best
from gnfast.runs.run_page import write_report
from gnfast.runs.signals import requested_stops
from gnfast.train import first_step
from gnfast.train.evaluate import Measures, as_line, as_row, evaluate
from gnfast.train.failures import is_full
from gnfast.train.logs import METRICS, SPEED, RunLog, environment, loss_curve
from gnfast.train.networks import sample
from gnfast.train.outcome import Outcome
from gnfast.train.probe import Probe
from gnfast.train.profile import Profile
from gnfast.train.ring import NonFiniteLossError, means
from gnfast.train.saved import SCORE
from gnfast.train.scored import as_told
from gnfast.train.side_work import Seen, SideWork
from gnfast.train.snapshot import Live
from gnfast.train.spent import Spent
from gnfast.train.state import State
from gnfast.train.validation import critic_losses

# A page takes as long to draw as twenty tiny updates. While a run trains, pages take less than this share of its time,
# and the first one comes after so many seconds.
PAGE_SHARE, PAGE_SECONDS = 0.005, 60.0
# Where there is no bar, a line says so often how far it is.
LINE_SECONDS = 60.0


@dataclass
class Session:
    """What one call of `train` does from the first update to the last."""

    preset: str
    folder: Path
    state: State
    log: RunLog
    side: SideWork
    measures: Measures
    progress: bool
    validation: ImageDataset | None
    begun: Spent | None
    """What the start took, where the run is profiled."""

    def __post_init__(self) -> None:
        self.config, self.leads, self.start = self.state.config, self.state.group.leads, self.state.step
        self.probe = Probe(self.config)
        self.page_due, self.page_took = time.monotonic() + PAGE_SECONDS, 0.0
        self.said, self.warned, self.logged = False, False, 0

    def run(self) -> Outcome:
        config, state, log = self.config, self.state, self.log
        self._warn_of_lost_rows()
        if self.start >= config.steps:
            # What a run shows comes after its last checkpoint, and may have been cut off.
            self._show()
            log.say(f"{self.folder}: this run has finished its {counted(config.steps, 'step')}; nothing to do")
            return self._outcome()
        if self.leads:
            log.session(environment(state, self.start))
        log.say(f"{self.preset}: {self._plan()}, in {self.folder}")
        dataset = state.batches.dataset
        labelled = dataset.labels is not None
        if len(dataset) < config.batch_d:
            count = counted(len(dataset), "image")
            log.say(f"warning: {count} for batches of {config.batch_d}: each comes several times")
        log.say(as_told(self.measures.extractor, labelled, config.n_fake, config.eval_every, config.steps))
        if line := notice(state.device.type):
            log.say(f"warning: {line}")
        if self.start == 0:
            self._evaluate()
        with self._watched() as self.updated:
            with requested_stops() as received, self._bar() as self.bar:
                try:
                    self._train(received)
                    self._save()
                    self.side.finish()
                except NonFiniteLossError as error:
                    self._go_back_before(error)
                    raise
            self._show()
        if state.step < config.steps:
            name = received[0].name if received else "another process"
            log.say(f"stopped after step {state.step} by {name}; saved; repeat the command to continue")
        else:
            log.say(f"finished {counted(config.steps, 'step')} in {self.folder}")
        return self._outcome(received[0] if received else 0)

    def _watched(self) -> contextlib.AbstractContextManager[State | Profile]:
        """What updates the state: itself, or a profile of it."""
        if self.begun is None:
            return contextlib.nullcontext(self.state)
        self.begun.mark("first scores")
        # What came before the first update is told as a part of the start.
        self.side.finish()
        self.side.spent.entries.clear()
        return Profile(self.state, self.folder, self.begun, self.side.spent, self.log.say)

    def _plan(self) -> str:
        data, steps, world = self.state.batches.dataset, self.config.steps, self.state.group.world
        where = f"{self.config.model} on {self.state.device} in {self.state.precision}"
        parts = [f"{len(data)} images of {data.name}", where]
        parts += [f"{world} processes"] if world > 1 else []
        return ", ".join(
            [*parts, f"continuing after step {self.start} of {steps}" if self.start else counted(steps, "step")]
        )

    def _bar(self) -> tqdm:
        shown = {
            "unit": "step",
            "disable": not self.progress,
            "dynamic_ncols": True,
            "smoothing": 0.05,
            "mininterval": 0.5,
        }
        return tqdm(total=self.config.steps, initial=self.start, **shown)

    def _warn_of_lost_rows(self) -> None:
        last = max((row["step"] for row in self._rows()), default=0)
        if self.leads and self.start - last >= self.config.log_every:
            path = self.folder / METRICS
            self.log.say(f"warning: {path} has no rows of steps {last + 1} to {self.start}")

    def _train(self, received: list) -> None:
        state, side = self.state, self.side
        # Of the last row: only rows that are logged one after the other look at it.
        self.began = self.since = time.perf_counter()
        self.seen = state.step
        self.told = time.monotonic(), state.step
        first = first_step.shown(self.bar, self.log.say, state.step + 1, state.device)
        while state.step < self.config.steps and not state.group.any(bool(received) or side.failed):
            with first if state.step == self.start else contextlib.nullcontext():
                self.updated.update()
            self.bar.update()
            self._after(state.step)
            self._tell()
        if state.logged < state.step:
            side.submit([("losses", self._losses())], rows=True)
        side.finish()

    def _after(self, step: int) -> None:
        """Has done what is due after a step."""
        config, last = self.config, step == self.config.steps
        logs, tasks = last or step % config.log_every == 0, []
        if logs:
            tasks.append(("log", self._row()))
        elif _due(step, config.checkpoint_every):
            # Nothing that a loss may have spoilt becomes a checkpoint.
            tasks.append(("losses", self._losses()))
        if self.leads and _due(step, config.probe_every):
            tasks.append(("probe", self._probe))
        if self.leads and (last or _due(step, config.sample_every)):
            tasks.append(("samples", self._picture))
        evaluates = last or _due(step, config.eval_every)
        saves = self.leads and _due(step, config.checkpoint_every) and not last
        if saves and not evaluates:
            tasks.append(("checkpoint", self._checkpoint))
        if logs and not self.said:
            self._say_first_calls()
        if tasks:
            self.side.submit(tasks, proves=logs, rows=[name for name, _ in tasks] == ["log"])
        if evaluates:
            self.side.finish()
            with self.updated.apart() if isinstance(self.updated, Profile) else contextlib.nullcontext():
                self._evaluate()
                if saves:
                    self._save()

    def _tell(self) -> None:
        """Where no bar does it, how far the run is, how fast, and how long it will take if it goes on so."""
        now, step, steps = time.monotonic(), self.state.step, self.config.steps
        since, before = self.told
        if self.progress or now - since < LINE_SECONDS or step == steps:
            return
        self.told, speed = (now, step), (step - before) / (now - since)
        left = tqdm.format_interval((steps - step) / speed)
        self.log.say(f"step {step} of {steps}, {number(speed, 3)} steps/s, {left} left")

    def _say_first_calls(self) -> None:
        """What came before the first replay of a graph, once there is one."""
        captured = self.state.captured
        if captured is not None and captured.captured:
            self.said, seconds = True, captured.seconds
            first, capture, triton = (seconds.get(name, 0.0) for name in ("first calls", "capture", "Triton"))
            self.log.say(
                f"a step is one CUDA graph from here on: {first:.1f} s for its first calls, {capture:.1f} s to capture "
                f"it; {triton:.1f} s of this were Triton's"
            )

    def _row(self) -> Callable[[Seen], None]:
        """What logs the losses of the steps since the last row."""
        state, measured = self.state, self._losses()
        state.logged = state.step

        def write(seen: Seen) -> None:
            step, losses = seen.step, measured(seen)
            now = time.perf_counter()
            lr_d, lr_g = state.rates(step - 1)
            self.log.row(step, **losses, lr_d=lr_d, lr_g=lr_g)
            speed = (step - self.seen) / (now - self.since)
            self.log.row(step, SPEED, seconds=now - self.began, steps_per_second=speed)
            self.since, self.seen, self.logged = now, step, step
            shown = {name.removeprefix("loss_"): fixed(value, 3) for name, value in losses.items()}
            self.bar.set_postfix(shown, refresh=False)

        return write

    def _losses(self) -> Callable[[Seen], dict[str, float]]:
        """What gives the means of the losses since the last row, and raises where one of them is not finite."""
        state, start = self.state, self.state.logged
        if state.group.world > 1:
            # Here all processes are at the same step. A checkpoint then holds what all have lost.
            state.losses.values.copy_(state.group.mean(state.losses.values))
        return lambda seen: means(state.loss_names, seen.losses(start), seen.step)

    def _probe(self, seen: Seen) -> None:
        self.log.row(seen.step, **self.probe.measure(seen.state))

    def _picture(self, seen: Seen) -> None:
        state, batch_statistics = seen.state, self.config.sample_bn == "batch"
        # Both: early in a run the moving average still shows the generator that the run began with.
        for name, generator in state.generators().items():
            self.log.picture(name, seen.step, sample(generator, *state.fixed, batch_statistics=batch_statistics))

    def _go_back_before(self, error: NonFiniteLossError) -> None:
        """Saves the state before the update that failed.

        Losses are looked at every few steps only, and by now the weights of that state are gone. They are computed
        again: on a CPU to the same bits, since the random states are in the copy too. All processes begin with the
        leader's copy: on a thread that had more to do, it may be of an earlier step.
        """
        state = self.state
        state.load_state_dict(state.group.of_leader(self.side.good.state_dict()))
        while state.step < error.step - 1:
            state.update()
        # Rows may have been written of steps after that copy.
        state.logged = max(state.logged, self.logged)
        if self.leads:
            self._checkpoint(Live(state))
        self.log.say(f"the state after step {state.step} is saved: the next update is the one that fails")

    def _evaluate(self) -> None:
        if self.validation is not None:
            self.log.row(self.state.step, **critic_losses(self.state, self.validation))
        if self.measures.extractor is not None:
            began = time.perf_counter()
            with self.side.spent("evaluation"):
                raw, ema = evaluate(self.state, self.measures, self.progress)
            self.log.row(self.state.step, **as_row(raw, ema))
            seconds = time.perf_counter() - began
            self.log.say(f"step {self.state.step}: {as_line(raw, ema)}; measured in {seconds:.1f} s")
            if ema.covariance and not self.warned:
                self.log.say(f"warning: covariance {ema.covariance}")
            self.warned = True
        if not self.leads:
            return
        if self.state.step < self.config.steps and time.monotonic() >= self.page_due:
            # At the end the page is written after the last checkpoint.
            self.side.submit([("report", lambda _: self._report())])
            self.page_due = time.monotonic() + max(PAGE_SECONDS, self.page_took / PAGE_SHARE)
        # Not where this step was not measured, or its distance is not finite.
        if (top := best(self._rows(), SCORE)) and top[0] == self.state.step:
            self._save(best=True)

    def _rows(self) -> list[Row]:
        return read_rows(self.folder / METRICS)

    def _show(self) -> None:
        if self.leads:
            with self.side.spent("curves"):
                loss_curve(self.folder)
            with self.side.spent("report"):
                self._report()

    def _report(self) -> None:
        began = time.monotonic()
        try:
            write_report(self.folder)
            self.page_took = time.monotonic() - began
        except Exception as error:  # A page about the run must not end it; a full disk does.
            if is_full(error):
                raise
            self.log.say(f"warning: no report.html ({type(error).__name__}: {error}); `gnfast report` makes it later")

    def _save(self, best: bool = False) -> None:
        if self.leads:
            self.side.submit([("checkpoint", partial(self._checkpoint, best=best))])

    def _checkpoint(self, seen: Seen, best: bool = False) -> None:
        self.log.flush()
        content = {"preset": self.preset, "data": self.state.batches.dataset.fingerprint}
        content |= {"config": decisive(self.config), "state": seen.state_dict()}
        checkpoint.save(self.folder / "checkpoints", seen.step, content, best=best)

    def _outcome(self, number: int = 0) -> Outcome:
        # Of a short run, the average's are those of the first weights.
        kind = "raw" if unmoved(as_json(self.config), self.state.step) else "ema"
        pictures = sorted((self.folder / "samples").glob(f"{kind}-*.png"))
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


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
