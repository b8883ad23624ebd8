"""The training program around Algorithm 1: data, log, schedule, checkpoints, and continuing where a run stopped."""

import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from gnfast.data import load as load_data
from gnfast.metrics import load_extractor
from gnfast.train import checkpoint
from gnfast.train.checkpoint import RunError
from gnfast.train.config import Config, as_json, differences
from gnfast.train.evaluate import evaluation
from gnfast.train.logs import RunLog, environment, loss_curve, read_metrics, write_text
from gnfast.train.signals import requested_stops
from gnfast.train.state import State, resolve_device, sample


@dataclass(frozen=True)
class Outcome:
    """How a call of `train` ended.

    Attributes:
        run_dir: the run folder.
        step: generator updates done, over all sessions.
        trained: generator updates done by this call.
        finished: whether all of them are done.
        signal: the signal that stopped it (2 or 15), or 0.
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


def train(preset: str, config: Config, *, progress: bool = True, echo: Callable[[str], None] | None = None) -> Outcome:
    """Trains until `config.steps` generator updates are done, from the run folder's last checkpoint if it has one.

    On a CPU, and with the same number of threads, a run that stopped and continued gives the same numbers, bit for bit,
    as one that did not.

    Args:
        preset: the name the run goes by; a run folder of another preset is refused.
        config: the settings.
        progress: show a progress bar on stderr.
        echo: called with each line for the user; above the progress bar on stdout if None.

    Returns:
        How it ended. SIGINT and SIGTERM end it early, after a checkpoint.

    Raises:
        ValueError: no data given, or settings that do not fit together.
        RunError: the run folder belongs to another preset, other settings or other data, or cannot be read.
        NonFiniteLossError: training diverged.
    """
    echo = echo or (lambda line: tqdm.write(line))
    device = resolve_device(config.device)
    if config.threads:
        torch.set_num_threads(config.threads)
    folder = Path(config.run_dir or Path("runs", preset))
    dataset = load_data(
        config.data,
        split=config.split,
        resolution=config.resolution,
        channels=config.channels,
        download=config.download,
        root=config.data_root or None,
        progress=progress,
    )
    state = State(config, dataset, device)
    extractor = None
    if config.extractor != "none":
        extractor = load_extractor(config.extractor, dataset, device=device, progress=progress)
    saved = open_run(folder, preset, config, dataset.fingerprint, echo)
    if saved is not None:
        state.load_state_dict(saved["state"])
    start = state.step
    with contextlib.ExitStack() as stack:
        log = RunLog(folder, start, config.tensorboard, echo)
        stack.callback(log.close)
        if start >= config.steps:
            log.say(f"{folder}: this run has finished its {config.steps} steps; nothing to do")
            return _outcome(folder, state, start, config)
        _append_environment(folder, environment(device, start))
        log.say(
            f"{preset}: {len(dataset.images)} images of {dataset.name}, {config.model} on {device}, "
            + (f"continuing after step {start} of {config.steps}" if start else f"{config.steps} steps")
            + f", in {folder}"
        )
        evaluate = evaluation(config, dataset, extractor, log, progress)
        save = lambda: checkpoint.save(  # noqa: E731
            folder / "checkpoints",
            state.step,
            {"preset": preset, "data": dataset.fingerprint, "state": state.state_dict()},
        )
        if start == 0:
            evaluate(state)
        stopped = stack.enter_context(requested_stops())
        bar = stack.enter_context(
            tqdm(
                total=config.steps, initial=start, unit="step", disable=not progress, dynamic_ncols=True, smoothing=0.05
            )
        )
        since, seen = time.perf_counter(), start
        while state.step < config.steps and not stopped:
            state.update()
            bar.update()
            step, last = state.step, state.step == config.steps
            if step % config.log_every == 0 or last:
                losses = state.take_losses()
                now = time.perf_counter()
                log.row(step, **losses, lr_d=_rate(state.optim_d), lr_g=_rate(state.optim_g))
                log.scalars(step, steps_per_second=(step - seen) / (now - since))
                since, seen = now, step
                bar.set_postfix({name.removeprefix("loss_"): f"{value:.3f}" for name, value in losses.items()})
            if last or _due(step, config.sample_every):
                # Both: early in a run the moving average still shows the generator that the run began with.
                for name, generator in (("raw", state.generator), ("ema", state.ema.module)):
                    log.picture(name, step, sample(generator, state.fixed_z, config.sample_bn == "batch"))
            if last or _due(step, config.eval_every):
                evaluate(state)
            if last or _due(step, config.checkpoint_every):
                save()
        bar.close()
        loss_curve(folder)
        if state.step < config.steps:
            path = save()
            log.say(
                f"stopped after step {state.step} by {stopped[0].name}; saved {path}; repeat the command to continue"
            )
        else:
            log.say(f"finished {config.steps} steps in {folder}")
        return _outcome(folder, state, start, config, stopped[0] if stopped else 0)


def open_run(
    folder: Path, preset: str, config: Config, fingerprint: str, warn: Callable[[str], None]
) -> dict[str, Any] | None:
    """Prepares a run folder, and returns the checkpoint to continue from, or None for a new run.

    Raises:
        RunError: the folder is not a run's, or of another preset, other settings or other data.
    """
    record = folder / "config.json"
    if record.exists():
        known = json.loads(record.read_text(encoding="utf-8"))
        if known["preset"] != preset:
            raise RunError(f"{folder} is a run of {known['preset']}, not of {preset}; choose another --run-dir")
        changed = differences(known["config"], config)
        if changed:
            raise RunError(
                f"{folder} was started with other settings; choose another --run-dir, or repeat them: "
                + "; ".join(changed)
            )
    elif folder.exists() and any(folder.iterdir()):
        raise RunError(f"{folder} is not empty and not a run folder (no config.json); choose another --run-dir")
    saved = checkpoint.load_newest(folder / "checkpoints", warn)
    if saved is not None:
        if saved["preset"] != preset:
            raise RunError(f"{folder}/checkpoints are of {saved['preset']}, not of {preset}; choose another --run-dir")
        if saved["data"] != fingerprint:
            raise RunError(f"{folder} was trained on other images than {config.data!r} holds now")
    folder.mkdir(parents=True, exist_ok=True)
    write_text(record, json.dumps({"preset": preset, "config": as_json(config)}, indent=2) + "\n")
    return saved


def _outcome(folder: Path, state: State, start: int, config: Config, number: int = 0) -> Outcome:
    pictures = sorted((folder / "samples").glob("ema-*.png"))
    distances = [row for row in read_metrics(folder) if "distance_ema" in row]
    finished = state.step >= config.steps
    picture = pictures[-1] if pictures else None
    return Outcome(folder, state.step, state.step - start, finished, int(number), picture, distances)


def _append_environment(folder: Path, entry: dict[str, Any]) -> None:
    path = folder / "environment.json"
    sessions = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    write_text(path, json.dumps([*sessions, entry], indent=2) + "\n")


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _rate(optimizer: torch.optim.Optimizer) -> float:
    return optimizer.param_groups[0]["lr"]
