"""`gnfast export RUN --out FILE.safetensors`: a run's generator as one file."""

from dataclasses import dataclass
from typing import Literal

from gnfast.cli.options import argument, parse, spelled_out
from gnfast.io.files import expanded, output_file
from gnfast.runs.record import WEIGHTS

HELP = """\
Write the generator of a run's newest checkpoint, or of a checkpoint of the papers' code, as one safetensors file, with
its settings and scores.

Examples:
  gnfast export runs/digits --out G.safetensors
  gnfast export runs/digits --best
  gnfast sample G.safetensors --n 100
  gnfast export logs/GN-GAN_CIFAR10_RES_0/best_model.pt --out published.safetensors
  python -c "from gnfast.train.export import load_generator; print(load_generator('G.safetensors'))"
"""


@dataclass(frozen=True)
class ExportOptions:
    """Which generator, and where to."""

    run: argument("RUN|FILE.pt")
    """A run folder, RUN/checkpoints/FILE.pt, or a checkpoint of the papers' code."""
    out: str = ""
    """The file to write; RUN/generator-ema.safetensors (-raw, -ema-best, …) if empty, or FILE.safetensors."""
    weights: Literal["", *WEIGHTS] = ""
    """The moving average of the generator (that, or what a file has, if empty), or the generator itself; --ema and
    --raw are short for them."""
    best: bool = False
    """Take the run's checkpoint with the best Fréchet distance instead of the newest."""


def run(words: list[str]) -> int:
    """`gnfast export RUN [--out --ema/--raw --best]`."""
    usage = "which run? usage: gnfast export RUN|FILE.pt --out FILE.safetensors [--ema | --raw] [--best]"
    options = parse(ExportOptions, spelled_out(words), "export", help=HELP, usage=usage)
    from gnfast.runs.checkpoint import locate
    from gnfast.train.export import export

    source = expanded(options.run)
    place, name = locate(source, options.best), f"generator-{options.weights or 'ema'}.safetensors"
    default = place.output(name) if place else source.with_suffix(".safetensors")
    out = output_file(options.out) if options.out else default
    print(export(source, out, options.weights or None, options.best))
    return 0
