"""`gnfast sample RUN`: images from the generator of a run or of an exported file."""

from dataclasses import dataclass
from typing import Literal

from gnfast.cli.common import UsageError, parse, spelled_out, user_errors
from gnfast.io.files import expanded, output_file, output_folder


@dataclass(frozen=True)
class SampleOptions:
    """Draw images from the generator of a run's newest checkpoint, or of a file that `gnfast export` wrote."""

    n: int = 64
    """How many images."""
    out: str = ""
    """Where to: FILE.png for one grid, or a folder for one PNG per image. RUN/sample-ema.png or -raw.png if empty."""
    weights: Literal["ema", "raw"] = "ema"
    """The moving average of the generator, or the generator itself; --ema and --raw are short for them."""
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


def run(words: list[str]) -> int:
    """`gnfast sample RUN|FILE [--n --out --ema/--raw]`."""
    rest = spelled_out(words)
    if not rest or (rest[0].startswith("-") and rest[0] not in ("-h", "--help")):
        raise UsageError("sample: which run? usage: gnfast sample RUN [--n N] [--out PATH] [--ema | --raw]")
    source = None if rest[0] in ("-h", "--help") else rest.pop(0)
    options = parse(
        SampleOptions,
        rest,
        prog="gnfast sample RUN",
        description="Draw images from the generator of a run's newest checkpoint, or of a file of `gnfast export`.\n\n"
        "Examples:\n  gnfast sample runs/digits\n  gnfast sample runs/digits --n 5000 --out fakes --raw\n"
        "  gnfast sample G.safetensors --interpolate 8 --out walk.png",
    )
    from gnfast.train.sample import sample_run

    # A file holds one kind of weights: only a wish that was spelt out can be wrong.
    asked = any(word.partition("=")[0] == "--weights" for word in rest)
    with user_errors():
        kind = output_file if options.out.lower().endswith(".png") else output_folder
        out = kind(options.out) if options.out else None
        path = sample_run(
            expanded(source),
            count=options.n,
            out=out,
            weights=options.weights if asked else None,
            seed=options.seed,
            batch_norm=options.bn,
            classes=options.classes,
            interpolate=options.interpolate,
            device=options.device,
        )
    print(path)
    return 0
