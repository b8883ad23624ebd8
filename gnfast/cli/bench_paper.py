"""`gnfast bench paper`: papers' trainings with gnfast and as the papers' code runs them, for the same time."""

import math
import os
import sys
from dataclasses import dataclass

import torch

from gnfast.cli.common import UsageError
from gnfast.cli.options import parse
from gnfast.interop.device import resolve_device
from gnfast.io.files import output_folder
from gnfast.kernels.compiled import notice

HELP = """\
Train what the papers train, with gnfast and as the papers' code does, for the same time; a table and a picture.

For each preset: steps/s, images/s and memory of whole iterations of gnfast, of the papers' way and of the strongest
baseline, double backward tuned for this machine, in turns on the same images after their losses were found to agree.
Then gnfast and the papers' way train with the same seed and settings for the rest of the preset's time (one after the
other on a GPU, half of it each; at once on a CPU, on a thread each), and their Fréchet distances are laid over training
time: FID where Inception's weights are there, otherwise the distance in the features of a classifier of the images'
classes. Images without classes are not trained on then.

OUT gets results.json, table.md, learning.png and the run folders. Repeating the command continues one that was stopped;
what has been measured is kept. Preparing data and training a classifier come before a preset's time, and what a run
does before its first update is not counted.

Examples:
  gnfast bench paper --presets cifar10 stl10 celebahq --minutes 30
  gnfast bench paper --presets cifar10 --data cifar10=cifar10.tar.xz --scale 0.01 --minutes 3
  gnfast bench paper --presets gngan-cifar10-cnn --data digits --scale 0.001 --set batch_d=16 batch_g=16 --minutes 0.5
"""
# What follows from the comparison, or would make its two sides differ in what they learn.
FIXED = ("impl", "rewrite", "cuda_graph", "memory_format", "device", "threads", "seed", "eval_every", "log_every")


@dataclass(frozen=True)
class PaperOptions:
    """What to train, how large, and for how long."""

    presets: tuple[str, ...] = ("cifar10", "stl10", "celebahq")
    """Presets by name (`gnfast presets`), or cifar10, stl10 and celebahq for GN-GAN's two each."""
    minutes: float = 20.0
    """Wall-clock minutes of each preset; at least half of them are training."""
    scale: float | None = None
    """Factor on steps and measured images; channels shrink by its root. 1 on a GPU; to be said on a CPU."""
    data: tuple[str, ...] = ()
    """NAME=PATH: where a data set's images are; or NAME alone: a data set that stands in for all others."""
    set: tuple[str, ...] = ()
    """Settings of every run, as NAME=VALUE: precision=bfloat16 n_fake=50000."""
    device: str = "auto"
    """`auto` (a GPU where there is one), `cpu`, `cuda`, `cuda:1`, …"""
    out: str = "runs/bench-paper"
    """Folder of the results and runs."""


def run(words: list[str]) -> int:
    """`gnfast bench paper [--option value …]`."""
    options = parse(PaperOptions, words, "bench paper", help=HELP)
    from gnfast.bench.paper import Plan, bench_paper, presets_of
    from gnfast.bench.paper.pages import PICTURE, TABLE
    from gnfast.reproduce.scale import scale_of

    presets = presets_of(options.presets)
    if not 0 < options.minutes < math.inf:
        raise UsageError(f"--minutes: got {options.minutes:g}, wanted a number above 0")
    for word in options.set:
        if (name := word.partition("=")[0].replace("-", "_")) in FIXED:
            raise UsageError(f"--set: got {name}, which the comparison sets itself")
    device = resolve_device(options.device)
    if line := notice(device.type):
        print(f"warning: {line}")
    if options.scale is None and device.type == "cpu":
        raise UsageError(
            "--scale: there is no GPU, and on a CPU a preset at full size learns something only after days: give "
            "--scale 0.01, say, or --scale 1 for full size all the same"
        )
    scale = scale_of(1.0 if options.scale is None else options.scale, options.data, options.set)
    out = output_folder(options.out)
    if device.type == "cpu":
        # As each of the runs has one, so that speeds are theirs.
        torch.set_num_threads(1)
    # The profiler, which counts memory, would write its own log between the lines.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    status = bench_paper(Plan(presets, scale, options.minutes, device, out), progress=sys.stderr.isatty(), echo=_told)
    if (out / TABLE).exists():
        print(f"\n{(out / TABLE).read_text(encoding='utf-8')}")
    for name in (TABLE, PICTURE):
        if (out / name).exists():
            print(out / name)
    return status


def _told(line: str) -> None:
    print(line, flush=True)
