"""The training program around Algorithm 1: data, log, schedule, checkpoints, and continuing where a run stopped."""

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from gnfast.config.chosen import chosen
from gnfast.config.config import Config, as_json, option
from gnfast.config.networks import require_networks
from gnfast.data import ImageDataset, Request, cache
from gnfast.data.objects import open_object
from gnfast.data.registry import registered, require_source
from gnfast.interop.device import resolve_device
from gnfast.io.files import expanded, remove_abandoned, write_text
from gnfast.runs import lock
from gnfast.train.evaluate import load_split, open_measures
from gnfast.train.failures import clear_errors
from gnfast.train.logs import RunLog
from gnfast.train.outcome import Outcome
from gnfast.train.parallel import Group, joined
from gnfast.train.resume import open_run, require_same_images, restore
from gnfast.train.scored import require_extractor, with_extractor
from gnfast.train.session import Session
from gnfast.train.side_work import SideWork, goes_on_beside
from gnfast.train.spent import Spent
from gnfast.train.state import State
from gnfast.train.tracker import module_for, tracked
from gnfast.train.validation import load_validation

Echo = Callable[[str], None]


def train(
    preset: str | Config,
    config: Config | None = None,
    *,
    dataset: Any = None,
    progress: bool = True,
    echo: Echo | None = None,
    profile: Spent | None = None,
    **settings: Any,
) -> Outcome:
    """Trains until `steps` generator updates are done, from the run folder's last checkpoint if it has one.

    `train("gngan-cifar10-resnet", steps=1000, run_dir="runs/mine")` is `gnfast train` with these options. On a CPU, and
    with the same number of threads, a run that stopped and continued gives the same numbers, bit for bit, as one that
    did not. Under torchrun the processes share each batch; the first one writes the run folder.

    Args:
        preset: a preset's name, or a `Config` of your own. A run folder of another name is refused.
        config: the settings where they are not the preset's, under the name that `preset` then gives the run.
        dataset: the real images where they are not what `data` names: a data set with a length whose items are images
            or (image, label), as torchvision's (`gnfast.data.objects.open_object` has the kinds). It is read as a
            whole by each call, once, and prepared as files are: converted to `channels`, resized to `resolution`, and
            left out with one warning that counts them where Pillow cannot decode them. So it should have no random
            transforms; what else its `__getitem__` raises ends the call. Each process of torchrun needs it.
        progress: show a progress bar on stderr.
        echo: called with each line for the user; above the progress bar on stdout if None.
        profile: what was spent before; with it, the page profile.html says where this call's time goes.
        settings: fields of `Config` that differ from the above.

    Returns:
        How it ended. SIGINT, SIGTERM and SIGHUP end it early, after a checkpoint.

    Raises:
        InputError: no such preset or setting; the message names the nearest.
        ValueError: no data given, images that cannot be read, or settings that do not fit together.
        RunError: the run folder belongs to another preset, other settings or other data, or cannot be read; another
            process is at work in it; the disk is full; another process of the run was lost.
        NonFiniteLossError: training diverged; the state before that step is saved.
    """
    name, config = chosen(preset, config, settings, dataset is not None)
    return _train(name, config, dataset, progress, echo, profile)


def _train(
    preset: str, config: Config, dataset: Any, progress: bool, echo: Echo | None, profile: Spent | None
) -> Outcome:
    begun, wandb = profile or Spent(), module_for(config.wandb)
    device = _own_device(resolve_device(config.device))
    _set_arithmetic(config, device)
    folder = run_folder(preset, config)
    if dataset is None:
        require_source(config.data, "data")
    config = _from_anywhere(config)
    require_networks(config)
    with clear_errors(folder), joined(device) as group, contextlib.ExitStack() as stack:
        if group.leads:
            # From the first moment on: preparing data may take an hour.
            stack.enter_context(lock.sole_user(folder, "gnfast train, process"))
            # Of a run that was killed before it had written its first file.
            remove_abandoned(folder, "config.json")
            echo = echo or (lambda line: tqdm.write(line))
        else:
            echo, progress, profile = (lambda line: None), False, None
        # Images last: they may take an hour, and all that is wrong with the settings themselves is known before.
        _require_divisible(config, group)
        said: list[str] = []
        saved = open_run(folder, preset, config, _keeping(echo, said))
        with group.leader_first():
            require_extractor(config.extractor, config.extractor_weights, progress)
            if dataset is None:
                images = load_split(config, config.split, progress)
            else:
                images = _read(dataset, config, folder, progress, group)
            _require_classes(images, config)
        require_same_images(folder, saved, config.data, images.fingerprint)
        if dataset is not None:
            group.require_same("dataset", images.fingerprint)
        begun.mark("data")
        config = with_extractor(config, images, device, folder, group)
        state = State(config, images, device, group)
        restore(state, saved, folder)
        begun.mark("networks and optimisers")
        with group.leader_first():
            measures = open_measures(config, images, device, progress)
            validation = load_validation(config, images, progress)
        if group.leads:
            for place in (folder, folder / "checkpoints", folder / "samples"):
                remove_abandoned(place)
            # After all that can go wrong before the first step, so that a mistake leaves no folder.
            settings = {"preset": preset, "config": as_json(config)}
            write_text(folder / "config.json", json.dumps(settings, indent=2) + "\n")
        shown = {"preset": preset, **as_json(config)}
        tracker = stack.enter_context(tracked(wandb if group.leads else None, config.wandb, shown, folder, echo))
        log = RunLog(folder, state.step, config.tensorboard, echo, group.leads, tracker)
        log.note(*said)
        begun.mark("scores and log")
        with contextlib.closing(log), contextlib.closing(SideWork(state, threaded=goes_on_beside(device))) as side:
            return Session(preset, folder, state, log, side, measures, progress, validation, profile).run()


def _keeping(echo: Echo, said: list[str]) -> Echo:
    """`echo`, which also keeps each line for a log that is not open yet."""

    def keep(line: str) -> None:
        echo(line)
        said.append(line)

    return keep


def run_folder(preset: str, config: Config) -> Path:
    """Where a run lives."""
    return expanded(config.run_dir or Path("runs", preset))


def _from_anywhere(config: Config) -> Config:
    """The settings with paths that mean the same in every working directory: config.json is read from elsewhere."""
    names = ["data_root", "extractor_weights"] + ([] if config.data in registered() else ["data"])
    paths = {name: getattr(config, name) for name in names}
    return dataclasses.replace(config, **{name: str(_absolute(path)) for name, path in paths.items() if path})


def _absolute(path: str) -> Path:
    """The path from the root, without .. where that leads to the same, as it does except behind a link."""
    whole = expanded(path).absolute()
    plain = Path(os.path.normpath(whole))
    return plain if plain.exists() and whole.exists() and plain.samefile(whole) else whole


def _read(dataset: Any, config: Config, folder: Path, progress: bool, group: Group) -> ImageDataset:
    """A data set that is an object, prepared."""
    asked = {name: getattr(config, name) for name in ("split", "resolution", "channels", "crop")}
    source = open_object(dataset, Request(**asked, progress=progress), folder)
    # What an earlier call has left may be of other images. The leader comes first.
    if group.leads and (left := cache.entry_of(source)):
        left.remove()
    return cache.prepared(source)


def _require_classes(dataset: ImageDataset, config: Config) -> None:
    if config.classes not in (0, len(dataset.classes)):
        there = len(dataset.classes)
        wanted = f"{there}, or 0 and a --model that takes no labels" if there > 1 else "0"
        raise ValueError(f"--classes: got {config.classes}, but {dataset.name} has {there} classes; wanted {wanted}")


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
