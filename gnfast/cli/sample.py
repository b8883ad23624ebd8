"""`gnfast sample RUN`: images from the generator of a run or of an exported file."""

from dataclasses import dataclass
from typing import Literal

from gnfast.cli.options import argument, parse, spelled_out
from gnfast.io.files import expanded, output_file, output_folder
from gnfast.runs.record import WEIGHTS

HELP = """\
Draw images from the generator of a run's newest checkpoint, or of a file of `gnfast export`.

Examples:
  gnfast sample runs/digits
  gnfast sample runs/digits --n 5000 --out fakes --raw
  gnfast sample runs/digits --best
  gnfast sample G.safetensors --interpolate 8 --out walk.png
"""


@dataclass(frozen=True)
class SampleOptions:
    """What to draw, and where to."""

    run: argument("RUN|FILE")
    """A run folder, RUN/checkpoints/FILE.pt, or a file that `gnfast export` wrote."""
    n: int = 64
    """How many images."""
    out: str = ""
    """Where to: FILE.png or FILE.jpg for one grid, or a folder for one PNG per image. RUN/sample-ema.png (-raw,
    -ema-best, …) if empty."""
    weights: Literal[*WEIGHTS] = "ema"
    """The moving average of the generator, or the generator itself; --ema and --raw are short for them."""
    best: bool = False
    """Take the run's checkpoint with the best Fréchet distance instead of the newest."""
    seed: int = 0
    """Seed of the latent vectors."""
    bn: Literal["batch", "running", "run"] = "run"
    """Batch-norm statistics: each batch's own, as in the papers' code, running ones, or what the run samples with."""
    classes: tuple[int, ...] = ()
    """Labels that the images take in turn, of a class-conditional generator; all its classes if none is given."""
    interpolate: int = 0
    """Instead of --n images, this many rows of ten, each a walk from one latent vector to another."""
    device: str = "auto"
    """`auto` (a GPU where there is one), `cpu`, `cuda`, `cuda:1`, …"""
    threads: int | None = None
    """CPU threads; 0 leaves PyTorch's choice. Another number can change the last bits of the results. None takes the
    run's own setting."""


def run(words: list[str]) -> int:
    """`gnfast sample RUN|FILE [--n --out --ema/--raw --best]`."""
    words = spelled_out(words)
    usage = "which run? usage: gnfast sample RUN [--n N] [--out PATH] [--ema | --raw] [--best]"
    options = parse(SampleOptions, words, "sample", help=HELP, usage=usage)
    from gnfast.train.sample import is_picture, sample_run

    # A file holds one kind of weights: only a wish that was spelt out can be wrong.
    asked = any(word.partition("=")[0] == "--weights" for word in words)
    kind = output_file if is_picture(options.out) else output_folder
    path = sample_run(
        expanded(options.run),
        count=options.n,
        out=kind(options.out) if options.out else None,
        weights=options.weights if asked else None,
        best=options.best,
        seed=options.seed,
        batch_norm=options.bn,
        classes=options.classes,
        interpolate=options.interpolate,
        device=options.device,
        threads=options.threads,
    )
    print(path)
    return 0
