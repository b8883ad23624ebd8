"""What a run leaves to read: log.txt, metrics.jsonl, TensorBoard events, sample grids, the loss curve."""

import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

import gnfast
from gnfast.data import to_uint8
from gnfast.files import write_text


class RunLog:
    """The open log files of one session of a run.

    `metrics.jsonl` holds nothing that depends on time or machine load, so that the file of a continued run can be
    compared with that of an uninterrupted one byte by byte; speed goes to `speed.jsonl`.

    Args:
        folder: the run folder.
        step: step to continue after; rows and events of later steps are dropped.
        tensorboard: write event files.
        echo: called with each line of the log, beside the file.
        writes: whether this process leaves anything; of several, one does.
    """

    def __init__(
        self, folder: Path, step: int, tensorboard: bool, echo: Callable[[str], None] = print, writes: bool = True
    ):
        self.folder = folder
        self.echo = echo
        self.writes = writes
        if writes:
            for name in ("metrics.jsonl", "speed.jsonl"):
                _truncate(folder / name, step)
        self._metrics, self._speed, self._text = (
            (folder / name if writes else Path(os.devnull)).open("a", encoding="utf-8")
            for name in ("metrics.jsonl", "speed.jsonl", "log.txt")
        )
        self._board = None
        if tensorboard and writes:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def say(self, line: str) -> None:
        """One line for the user and for log.txt, with the time of day in the file."""
        self.echo(line)
        print(time.strftime("%Y-%m-%d %H:%M:%S"), line, file=self._text, flush=True)

    def row(self, step: int, **values: Any) -> None:
        """One row of metrics.jsonl; its numbers go to TensorBoard too."""
        print(json.dumps({"step": step, **values}), file=self._metrics, flush=True)
        self.scalars(step, **values)

    def scalars(self, step: int, **values: Any) -> None:
        """Numbers for TensorBoard only."""
        if self._board is not None:
            for name, value in values.items():
                if isinstance(value, int | float):
                    self._board.add_scalar(name, value, step)

    def speed(self, step: int, **values: float) -> None:
        """One row of speed.jsonl; its numbers go to TensorBoard too."""
        print(json.dumps({"step": step, **values}), file=self._speed, flush=True)
        self.scalars(step, **values)

    def session(self, entry: dict[str, Any]) -> None:
        """Adds an entry to environment.json."""
        if self.writes:
            path = self.folder / "environment.json"
            sessions = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
            write_text(path, json.dumps([*sessions, entry], indent=2) + "\n")

    def picture(self, name: str, step: int, images: Tensor) -> Path:
        """Saves a grid of images, (N, C, H, W) float in [-1, 1], as samples/NAME-STEP.png."""
        path = self.folder / "samples" / f"{name}-{step:06d}.png"
        path.parent.mkdir(exist_ok=True)
        picture = grid(to_uint8(images).cpu())
        picture.save(path)
        if self._board is not None:
            self._board.add_image(
                name,
                torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).reshape(
                    picture.height, picture.width, -1
                ),
                step,
                dataformats="HWC",
            )
        return path

    def close(self) -> None:
        """Closes the files."""
        for file in (self._metrics, self._speed, self._text):
            file.close()
        if self._board is not None:
            self._board.close()


def read_metrics(folder: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl (or speed.jsonl); a last line that a kill cut short is left out."""
    path = folder / name
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def _truncate(path: Path, step: int) -> None:
    rows = [row for row in read_metrics(path.parent, path.name) if row["step"] <= step]
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


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
    picture = Image.fromarray((sheet[0] if channels == 1 else sheet.permute(1, 2, 0)).contiguous().numpy())
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def loss_curve(folder: Path) -> Path | None:
    """Draws the losses and distances of metrics.jsonl as curves.png; None if there is nothing to draw yet."""
    rows = read_metrics(folder)
    losses = [row for row in rows if "loss_generator" in row]
    distances = [row for row in rows if "distance_ema" in row]
    if not losses:
        return None
    # Figure, not pyplot: no global state and no display.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6 if distances else 3.2), layout="constrained")
    axes = figure.subplots(2 if distances else 1, 1, sharex=True, squeeze=False)[:, 0]
    steps = [row["step"] for row in losses]
    for name in [name for name in losses[-1] if name.startswith("loss_")]:
        axes[0].plot(steps, [row.get(name) for row in losses], label=name.removeprefix("loss_"), linewidth=1)
    axes[0].set_ylabel("loss")
    axes[0].legend(frameon=False)
    if distances:
        steps = [row["step"] for row in distances]
        for name in ("raw", "ema"):
            axes[1].plot(steps, [row[f"distance_{name}"] for row in distances], label=name, marker="o", markersize=3)
        axes[1].set_yscale("log")
        axes[1].set_ylabel(f"Fréchet distance\n({distances[-1]['extractor']})")
        axes[1].legend(frameon=False)
    axes[-1].set_xlabel("generator updates")
    path = folder / "curves.png"
    figure.savefig(path, dpi=120)
    return path


def environment(device: torch.device, step: int, processes: int) -> dict[str, Any]:
    """What a session ran on: one entry of environment.json."""
    try:
        from gnfast.kernels import build_info

        built = {str(name): str(value) for name, value in build_info().items()}
    except Exception as error:  # The record must not stop a run that works without the extension.
        built = {"unavailable": f"{type(error).__name__}: {error}"}
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
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "processes": processes,
        "build": built,
    }
