"""The training program around Algorithm 1: data, log, schedule, checkpoints, and continuing where a run stopped."""

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path

import torch
from tqdm import tqdm

from gnfast.config.config import Config, as_json, option
from gnfast.data import ImageDataset
from gnfast.data.registry import registered
from gnfast.interop.device import resolve_device
from gnfast.io.files import expanded, remove_abandoned, write_text
from gnfast.runs import lock
from gnfast.train.evaluate import load_split, open_measures
from gnfast.train.failures import clear_errors
from gnfast.train.logs import RunLog
from gnfast.train.parallel import Group, joined
from gnfast.train.resume import open_run, restore
from gnfast.train.scored import with_extractor
from gnfast.train.session import Outcome, Session
from gnfast.train.side_work import SideWork, goes_on_beside
from gnfast.train.spent import Spent
from gnfast.train.state import State
from gnfast.train.validation import load_validation

Echo = Callable[[str], None]


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
        config = with_extractor(config, dataset, device, folder, group)
        state = State(config, dataset, device, group)
        restore(state, saved, folder)
        begun.mark("networks and optimisers")
        with group.leader_first():
            measures = open_measures(config, dataset, device, progress)
            validation = load_validation(config, dataset, progress)
        if group.leads:
            for place in (folder, folder / "checkpoints", folder / "samples"):
                remove_abandoned(place)
            # After all that can go wrong before the first step, so that a mistake leaves no folder.
            settings = {"preset": preset, "config": as_json(config)}
            write_text(folder / "config.json", json.dumps(settings, indent=2) + "\n")
        log = RunLog(folder, state.step, config.tensorboard, echo, writes=group.leads)
        begun.mark("scores and log")
        with contextlib.closing(log), contextlib.closing(SideWork(state, threaded=goes_on_beside(device))) as side:
            return Session(preset, folder, state, log, side, measures, progress, validation, profile).run()


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
