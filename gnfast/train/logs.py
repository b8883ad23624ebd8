"""What a run leaves to read: log.txt, metrics.jsonl, TensorBoard events, sample grids, the loss curve."""

import io
import json
import os
import platform
import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import torch
from PIL import Image
from torch import Tensor

import gnfast
from gnfast.data import to_uint8
from gnfast.io.files import atomic_write, open_append, write_text
from gnfast.io.rows import Row, parsed, read_lines, read_rows
from gnfast.kernels import build_info
from gnfast.runs import drawing, evaluations
from gnfast.runs.checkpoint import RunError
from gnfast.runs.record import points, read_json
from gnfast.train.tracker import Tracker

if TYPE_CHECKING:
    from gnfast.train.state import State

# By their ending. PNGs are a tenth larger than at the usual level, and four times as fast.
PICTURES = {".png": {"format": "PNG", "compress_level": 1}}
PICTURES |= {ending: {"format": "JPEG", "quality": 95, "subsampling": 0} for ending in (".jpg", ".jpeg")}
LOG, METRICS, SPEED = "log.txt", "metrics.jsonl", "speed.jsonl"


class RunLog:
    """The open log files of one session of a run.

    `metrics.jsonl` holds nothing that depends on time or machine load, so that the file of a continued run can be
    compared with that of an uninterrupted one byte by byte; speed goes to `speed.jsonl`.

    Args:
        folder: the run folder.
        step: step to continue after; rows and events of later steps are dropped, and of a run that has not begun all.
        tensorboard: write event files.
        echo: called with each line of the log, besides the file.
        writes: whether this process keeps a log; of several, one does, and the others only `say`, `row` and `close`.
        tracker: gets what TensorBoard gets; it is not closed.
    """

    def __init__(
        self,
        folder: Path,
        step: int,
        tensorboard: bool,
        echo: Callable[[str], None] = print,
        writes: bool = True,
        tracker: Tracker | None = None,
    ):
        self.folder = folder
        self.echo = echo
        self._tracker = tracker
        self._files: dict[str, TextIO] = {}
        for name in (LOG, METRICS, SPEED):
            if writes and name != LOG:
                _cut(folder / name, step, self.say)
            self._files[name] = open_append(folder / name) if writes else open(os.devnull, "a")  # noqa: SIM115
        if writes:
            _set_aside(folder / evaluations.FILE, step, self.say)
            _cut(folder / evaluations.FILE, step, self.say)
        self._board = None
        self._thread_errors = threading.excepthook
        if tensorboard and writes:
            from torch.utils.tensorboard import SummaryWriter

            try:
                str(folder).encode()
                self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
                threading.excepthook = self._failed_thread
            except UnicodeEncodeError:
                self.say("warning: no TensorBoard events: it takes no folder whose name is not UTF-8")

    def say(self, line: str) -> None:
        """One line for the user and for log.txt, with the time of day in the file."""
        self.echo(line)
        self.note(line)

    def note(self, *lines: str) -> None:
        """Lines for log.txt alone."""
        for line in lines:
            print(time.strftime("%Y-%m-%d %H:%M:%S"), line, file=self._files[LOG], flush=True)

    def row(self, step: int, name: str = METRICS, **values: Any) -> None:
        """One row of metrics.jsonl, or of speed.jsonl; its numbers go to TensorBoard too."""
        print(json.dumps({"step": step, **values}), file=self._files[name], flush=True)
        numbers = {key: value for key, value in values.items() if isinstance(value, int | float)}
        self._event(step, [{"tag": key, "simple_value": value} for key, value in numbers.items()])
        if self._tracker:
            self._tracker.numbers(step, numbers)

    def session(self, entry: dict[str, Any]) -> None:
        """Adds an entry to environment.json, and says where its precision is not that of the session before."""
        path = self.folder / "environment.json"
        before = self._sessions(path)
        was = before[-1].get("precision") if before and isinstance(before[-1], dict) else None
        if was not in (None, entry["precision"]):
            self.say(f"warning: computes in {entry['precision']} from here on, until now in {str(was)[:20]}")
        write_text(path, json.dumps([*before, entry], indent=2) + "\n")

    def _sessions(self, path: Path) -> list[Any]:
        """The sessions before; a file that does not tell them is put aside."""
        try:
            found = read_json(path)
            if not isinstance(found, list):
                raise RunError(f"{path} is not one of a run")
            return found
        except FileNotFoundError:
            return []
        except RunError as error:
            aside = path.with_name(f"{path.name}.damaged")
            os.replace(path, aside)
            self.say(f"warning: {error}; a new one is begun, and {aside.name} is the file as it was")
            return []

    def picture(self, name: str, step: int, images: Tensor) -> None:
        """Saves a grid of images, (N, C, H, W) float in [-1, 1], as samples/NAME-STEP.png."""
        picture = grid(to_uint8(images).cpu())
        encoded = save_picture(picture, self.folder / "samples" / f"{name}-{step:06d}.png")
        # As it is: TensorBoard's writer would encode it once more, which takes longer than all the rest.
        size = {"width": picture.width, "height": picture.height, "colorspace": len(picture.getbands())}
        self._event(step, [{"tag": name, "image": {**size, "encoded_image_string": encoded}}])
        if self._tracker:
            self._tracker.picture(name, step, picture)

    def _event(self, step: int, values: list[dict[str, Any]]) -> None:
        """One event for TensorBoard with all that is known of a step: each costs as much as a row."""
        if self._board is not None and values:
            from tensorboard.compat.proto.summary_pb2 import Summary

            self._board.file_writer.add_summary(Summary(value=values), step)

    def flush(self) -> None:
        """Brings the rows to disk, so that no checkpoint outlives the rows before it.

        Raises:
            RunError: the run folder has gone.
        """
        require_rows(self.folder)
        for file in self._files.values():
            os.fsync(file.fileno())

    def close(self) -> None:
        """Closes the files."""
        threading.excepthook = self._thread_errors
        for file in self._files.values():
            file.close()
        if self._board is not None:
            self._board.close()

    def _failed_thread(self, args: threading.ExceptHookArgs) -> None:
        """TensorBoard raises what failed in its thread where the next number is given to it, too: once is enough."""
        if not type(args.thread).__module__.startswith("tensorboard."):
            self._thread_errors(args)


def require_rows(folder: Path) -> None:
    """Raises RunError where metrics.jsonl, and with it most likely the folder, was deleted during a run."""
    if not (folder / METRICS).exists():
        raise RunError(f"{folder} or its {METRICS} was deleted or moved while the run was training")


def _stays(row: Row, step: int) -> bool:
    """Whether it is of a step that is not done again."""
    return 0 < step >= row["step"]


def _set_aside(path: Path, step: int, warn: Callable[[str], None]) -> None:
    """Copies what `gnfast eval` has measured of steps that are done again: the run does not measure it again."""
    if later := [row for row in read_rows(path) if not _stays(row, step)]:
        aside = path.with_name(f"{path.name}.before")
        with open_append(aside) as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in later)
        warn(f"warning: scores by gnfast eval of steps after {step} are of weights that are no more: now in {aside}")


def _cut(path: Path, step: int, warn: Callable[[str], None]) -> None:
    """Drops the rows of later steps, and with a warning and a copy those that cannot be read."""
    kept, damaged, changed, line = [], [], False, b"\n"
    for number, line in enumerate(read_lines(path), 1):
        row = parsed(line)
        if row is None:
            damaged.append(number)
        elif _stays(row, step):
            kept.append(line if line.endswith(b"\n") else line + b"\n")
        changed |= not kept or kept[-1] is not line
    if not line.endswith(b"\n") and parsed(line) is None:
        # As a kill leaves it: a row that was being written does not count.
        damaged.pop()
    if damaged:
        copy = path.with_name(f"{path.name}.damaged")
        with atomic_write(copy) as part:
            shutil.copyfile(path, part)
        lines = ", ".join(map(str, damaged[:10])) + (", …" if len(damaged) > 10 else "")
        warn(f"warning: {path}: line {lines} cannot be read and is left out; {copy.name} is the file as it was")
    if changed:
        with atomic_write(path) as part:
            part.write_bytes(b"".join(kept))


def save_picture(picture: Image.Image, path: Path) -> bytes:
    """Writes a picture in one step, in the format of `PICTURES` that its name ends in, and returns its bytes."""
    encoded = io.BytesIO()
    picture.save(encoded, **PICTURES[path.suffix.lower()])
    with atomic_write(path) as part:
        part.write_bytes(encoded.getvalue())
    return encoded.getvalue()


def as_picture(image: Tensor) -> Image.Image:
    """An image (C, H, W) of uint8, C 1 or 3, as a grey or colour picture."""
    return Image.fromarray((image[0] if len(image) == 1 else image.permute(1, 2, 0)).contiguous().numpy())


def grid(images: Tensor, columns: int | None = None, scale: int | None = None, gap: int = 1) -> Image.Image:
    """Images side by side on a white ground, enlarged without smoothing.

    Args:
        images: (N, C, H, W) uint8, C 1 or 3.
        columns: images per row; the least square that holds them if None.
        scale: pixels per pixel; if None, the factor that brings each image to about 64 pixels.
        gap: white pixels between images, before enlargement.

    Returns:
        A grey or colour picture.
    """
    count, channels, height, width = images.shape
    columns = columns or max(1, round(count**0.5))
    scale = scale or max(1, 64 // max(height, width))
    rows = -(-count // columns)
    sheet = images.new_full((channels, rows * (height + gap) + gap, columns * (width + gap) + gap), 255)
    for index, image in enumerate(images):
        top, left = gap + index // columns * (height + gap), gap + index % columns * (width + gap)
        sheet[:, top : top + height, left : left + width] = image
    picture = as_picture(sheet)
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def loss_curve(folder: Path) -> None:
    """Draws the losses and distances of metrics.jsonl as curves.png; nothing if there is nothing to draw yet."""
    rows = read_rows(folder / METRICS)
    losses = dict.fromkeys(name for row in rows for name in row if name.startswith("loss_"))
    curves = {name: found for name in [*losses, "distance_ema", "distance_raw"] if (found := points(rows, name))}
    kinds = list(dict.fromkeys(name.partition("_")[0] for name in curves))
    if "loss" not in kinds:
        return
    with drawing.drawing(), atomic_write(folder / "curves.png") as part:
        figure, panels = drawing.canvas(len(kinds), 1, 3.2 * len(kinds))
        # Fitting margins to labels would take as long as all the rest.
        figure.set_layout_engine(None)
        figure.subplots_adjust(left=0.12, bottom=0.16 / len(kinds), right=0.98, top=1 - 0.05 / len(kinds), hspace=0.12)
        for kind, axes in zip(kinds, panels, strict=True):
            shown = [(name.partition("_")[2], found) for name, found in curves.items() if name.startswith(kind)]
            for index, (name, found) in enumerate(shown):
                axes.plot(*zip(*found, strict=True), label=name, color=drawing.colour(index))
            axes.set_ylabel(kind)
            drawing.legend(axes)
        if "distance" in kinds:
            extractor = next((row["extractor"] for row in reversed(rows) if "extractor" in row), "")
            panels[-1].set_ylabel(f"Fréchet distance, lower is better\n({extractor})")
            drawing.log_values(panels[-1], [y for _, found in shown for _, y in found], 3)
        panels[-1].set_xlabel("generator updates")
        part.write_bytes(drawing.png(figure))


def environment(state: "State", step: int) -> dict[str, Any]:
    """What a session that continues after `step` runs on: one entry of environment.json."""
    device = state.device
    return {
        "started": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "continued_after_step": step,
        "command": sys.argv,
        "gnfast": gnfast.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "precision": state.precision,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "processes": state.group.world,
        "build": {library: str(facts) for library, facts in build_info().items()},
    }
