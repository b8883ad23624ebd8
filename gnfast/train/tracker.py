"""Weights & Biases: what goes to TensorBoard goes there as well, by the package wandb, where a run asks for it."""

import contextlib
import importlib
import re
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from PIL import Image

from gnfast.errors import InputError
from gnfast.io.files import open_regular, write_text

ID = "wandb-id.txt"
"""The file in a run folder with the name of its run at Weights & Biases, so that a continued run continues there."""

_ID = re.compile(r"[a-z0-9]{4,32}")


class Tracker:
    """The open run. What fails in it ends the tracking, with one warning, and not the training.

    Args:
        wandb: the module.
        run: what its `init` gave.
        say: shows a line to the user.
    """

    def __init__(self, wandb: ModuleType, run: Any, say: Callable[[str], None]):
        self._wandb, self._run, self._say, self._lost = wandb, run, say, False

    def numbers(self, step: int, values: dict[str, float]) -> None:
        """What is known of a step, by name."""
        if values:
            self._log(step, lambda: values)

    def picture(self, name: str, step: int, picture: Image.Image) -> None:
        """A grid of samples."""
        self._log(step, lambda: {name: self._wandb.Image(picture)})

    def _log(self, step: int, content: Callable[[], dict[str, Any]]) -> None:
        try:
            # After a kill a run goes back to its last checkpoint, and says again what is known there.
            if not self._lost and step >= self._run.step:
                self._run.log(content(), step=step)
        except Exception as error:
            self._lost = True
            self._say(f"warning: nothing goes to Weights & Biases from step {step} on: {error or type(error).__name__}")

    def finish(self, failed: bool) -> None:
        """Sends what is left, and says whether the training failed."""
        try:
            self._run.finish(exit_code=int(failed))
        except Exception as error:
            self._say(f"warning: Weights & Biases has not all of the run: {error or type(error).__name__}")


def module_for(project: str) -> ModuleType | None:
    """The package, if a run names a project.

    Raises:
        InputError: it is not installed.
    """
    if not project:
        return None
    with contextlib.suppress(ImportError):
        wandb = importlib.import_module("wandb")
        # The folder that it leaves where it has run is a package, too, for Python.
        if hasattr(wandb, "init"):
            return wandb
    raise InputError(f"--wandb: got {project!r}, wanted none without the package wandb: pip install wandb")


@contextlib.contextmanager
def tracked(
    wandb: ModuleType | None, project: str, settings: dict[str, Any], folder: Path, say: Callable[[str], None]
) -> Iterator[Tracker | None]:
    """The run at Weights & Biases that belongs to a run folder, new or continued, while the block lasts.

    Args:
        wandb: from `module_for`; None: there is none.
        project: where the run is shown.
        settings: what is shown of it.
        folder: where its id, and what is not sent yet, is kept.
        say: shows a line to the user.

    Raises:
        InputError: it cannot be begun: nobody is logged in, say.
    """
    if wandb is None:
        yield None
        return
    try:
        run = wandb.init(
            project=project,
            id=(known := _known(folder)) or secrets.token_hex(4),
            name=folder.name,
            dir=str(folder),
            config=settings,
            resume="allow" if known else None,
            # A run of the caller's own goes on beside it.
            reinit="create_new",
            settings=wandb.Settings(console="off"),
        )
    except Exception as error:
        raise InputError(f"--wandb: {' '.join(str(error).split()) or type(error).__name__}") from error
    write_text(folder / ID, f"{run.id}\n")
    tracker, failed = Tracker(wandb, run, say), True
    try:
        yield tracker
        failed = False
    finally:
        tracker.finish(failed)


def _known(folder: Path) -> str | None:
    """The id that an earlier session has left."""
    with contextlib.suppress(OSError, ValueError):
        with open_regular(folder / ID) as file:
            found = file.read(64).decode().strip()
        return found if _ID.fullmatch(found) else None
    return None
